"""What a decision is made on: held-out prompts and texts that neither model was trained on, fixed by their digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data import records
from tasks.errors import UserError
from tasks.evaluation import prompts as held_out
from tasks.evaluation.prompts import Prompt
from tasks.parameter_sections import Gate

FOLDER = "lineage/evaluation-sets"


@dataclass(frozen=True)
class EvaluationSet:
    """The items themselves. What is kept of them beside the decision are ids and digests: no text, which somebody may
    ask to be forgotten."""

    prompts: list[Prompt]
    texts: list[tuple[str, str]]  # (record id, text)

    def listed(self) -> dict[str, list[list[str]]]:
        """[record id, SHA-256 of the content] of every item, in a fixed order."""
        prompts = [[p["record_id"], _sha256(f"{p['prompt']}\x00{p['target']}")] for p in self.prompts]
        return {"prompts": prompts, "texts": [[record, _sha256(text)] for record, text in self.texts]}

    def to_bytes(self) -> bytes:
        return (json.dumps(self.listed(), indent=1) + "\n").encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the file that lists the items."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class HeldOut:
    """The test split as it is now, without what is in the way: prompts that do not fit, and `known` records."""

    prompts: list[Prompt]
    texts: list[tuple[str, str]]
    n_known: int

    @classmethod
    def of(cls, root: Path, *, fits: Callable[[str], bool], known: Collection[str]) -> HeldOut:
        """`known`: ids of the records that one of the models was trained on, to be left out."""
        prompts = held_out.of_split(records.read(root / "data" / "demonstrations.parquet"), records.TEST)
        table = records.read(root / "data" / "text.parquet", ["record_id", "split", "text"])
        texts = [
            (bytes(record).hex(), text)
            for record, split, text in zip(table["record_id"], table["split"], table["text"], strict=True)
            if split == records.TEST
        ]
        fitting = [p for p in prompts if fits(p["prompt"])]
        free = [p for p in fitting if p["record_id"] not in known]
        free_texts = [(record, text) for record, text in texts if record not in known]
        n_known = len(fitting) - len(free) + len(texts) - len(free_texts)
        return cls(free, free_texts, n_known)

    def draw(self, gate: Gate) -> EvaluationSet:
        """A set of the sizes that `gate` asks for, as far as there are items; by ids, which are hashes.

        Raises `UserError` where nothing is left.
        """
        chosen, _ = held_out.choose(self.prompts, n_maths=gate.n_maths, n_docs=gate.n_docs, fits=lambda _: True)
        texts = sorted(self.texts)[: gate.n_texts]
        if not chosen or not texts:
            what = "prompt" if not chosen else "text"
            raise UserError(
                f"the gate has no held-out {what} that both models can be measured on: {self.n_known} item(s) of the "
                "test split were training data of one of them, others do not fit preferences.prompt_tokens. Raise "
                "data.splits.test in params.yaml.",
                exit_code=1,
            )
        return EvaluationSet(chosen, texts)

    def again(self, listed: Mapping[str, Any]) -> EvaluationSet | None:
        """The set that was listed before, if every item of it is still here and still the same."""
        prompts = {p["record_id"]: p for p in self.prompts}
        texts = dict(self.texts)
        wanted_prompts = [prompts.get(record) for record, _ in listed["prompts"]]
        wanted_texts = [(record, texts.get(record)) for record, _ in listed["texts"]]
        found = EvaluationSet(
            [p for p in wanted_prompts if p is not None], [(r, text) for r, text in wanted_texts if text is not None]
        )
        return found if found.listed() == dict(listed) else None
