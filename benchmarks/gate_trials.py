"""Does the gate let worse models through? Real models of a finished default run, 20 trials of each kind.

Run: `.venv/bin/python -m benchmarks.gate_trials ROOT [TRIALS [KIND …]]`, ROOT a checkout after `axon run`. Fine-tunes
its pretrained model with other seeds and holds each against one champion, by the gate's own measuring and rules:

- worse: as many steps as the champion, on the same questions with the answers of other questions of the same task;
- equal: the champion itself, its answers drawn with other seeds than the champion's;
- retrained: the champion's recipe with another seed: another model, of about the same quality;
- better: four times the champion's steps, with as many on pretraining text between them. (Six times the steps on
  demonstrations alone answer better, but forget text, and the guard on bits per byte refuses them: 0 of 20.)
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axon_models.decoder.model import Decoder
from tasks.evaluation import prompts as held_out
from tasks.parameters import Parameters, load
from tasks.promotion import measuring
from tasks.promotion.gate import Decision, Rules, decide
from tasks.promotion.items import EvaluationSet, HeldOut
from tasks.promotion.measuring import ROLES, Lengths
from tasks.steps.context import StepContext
from tasks.tokenizers import bytelevel, chat
from tasks.training import tokens
from tasks.training.batches import Batch, stream_batch
from tasks.training.device import setup
from tasks.training.examples import Example
from tasks.training.loop import Recipe, fit
from tasks.training.losses import packed_loss, stream_loss
from tasks.training.outputs import read_model
from tasks.training.packing import PackedData

KINDS = ("equal", "worse", "retrained", "better")
CHAMPION_STEPS, BETTER_STEPS = 60, 240
TEXT_ROWS, TEXT_LENGTH = 4, 256  # of a step on text
N_MATHS, N_DOCS, N_TEXTS = 300, 30, 40


def tuned(
    context: StepContext, n_steps: int, seed: int, examples: list[Example], to: Path, *, with_text: bool = False
) -> str:
    """Fine-tune `models/pretrain` on `examples`; returns the directory of the model.

    With `with_text` each of the `n_steps` is followed by one on pretraining text.
    """
    from axon_models import checkpoint

    section = context.params.sft
    n_all = 2 * n_steps if with_text else n_steps
    device = setup(context.params)
    model = read_model(context, "pretrain")
    recipe = Recipe.of("sft", section, context.params.precision, model.config)
    recipe = replace(recipe, n_steps=n_all, evaluate_every=n_all)
    data = PackedData.of(examples, seq_len=section.seq_len, batch_size=section.batch_size, seed=seed)
    stream = tokens.text_stream(context.root, "train")

    def batch(k: int) -> Batch:
        if not with_text:
            return data.batch(k, device)
        if k % 2 == 0:
            return data.batch(k // 2, device)
        return stream_batch(stream, k // 2, batch_size=TEXT_ROWS, seq_len=TEXT_LENGTH, seed=seed, device=device)

    def loss(model: Decoder, rows: dict[str, Tensor]) -> Tensor:
        return packed_loss(model, rows) if "segments" in rows else stream_loss(model, rows)

    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            recipe,
            batch=batch,
            loss=loss,
            evaluate=dict,
            context=replace(context, checkpoints=Path(folder), checkpoint_every_s=1e9),
        )
    checkpoint.save(model, to, tokenizer_dir=context.root / "tokenizer")
    return str(to)


def shuffled(examples: list[Example], seed: int) -> list[Example]:
    """The questions with the answers of other questions of the same task."""
    by_task: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_task[example.task].append(example)
    made = []
    for members in by_task.values():
        answers = [e.tokens[e.prompt_length :] for e in members]
        random.Random(seed).shuffle(answers)
        made += [replace(e, tokens=[*e.prompt, *answer]) for e, answer in zip(members, answers, strict=True)]
    return made


class Trials:
    """One champion, and what each kind of challenger is made by."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.params: Parameters = load(root)
        self.folder = folder
        self.context = StepContext(
            params=self.params,
            root=root,
            checkpoints=folder,
            checkpoint_every_s=1e9,
            report=lambda *_: None,
            fan_out=lambda *_: [],
        )
        self.examples = tokens.demonstrations(root, "train")
        tokenizer = bytelevel.load(root / "tokenizer")
        longest = self.params.preferences.prompt_tokens
        sizes = self.params.gate.model_copy(update={"n_maths": N_MATHS, "n_docs": N_DOCS, "n_texts": N_TEXTS})
        self.params = self.params.model_copy(update={"gate": sizes})
        self.items: EvaluationSet = HeldOut.of(
            root, fits=lambda prompt: len(chat.encode_prompt(tokenizer, prompt)) <= longest, known=()
        ).draw(sizes)
        self.champion = tuned(self.context, CHAMPION_STEPS, 0, self.examples, folder / "champion")
        self._measured: dict[tuple[str, int], Any] = {}

    def challenger(self, kind: str, trial: int) -> str:
        to = self.folder / f"{kind}-{trial}"
        makers: dict[str, Callable[[], str]] = {
            "worse": lambda: tuned(self.context, CHAMPION_STEPS, trial, shuffled(self.examples, trial), to),
            "equal": lambda: self.champion,
            "retrained": lambda: tuned(self.context, CHAMPION_STEPS, trial, self.examples, to),
            "better": lambda: tuned(self.context, BETTER_STEPS, trial, self.examples, to, with_text=True),
        }
        return makers[kind]()

    def decide(self, kind: str, trial: int) -> Decision:
        """The gate's decision; answers of the equal challenger are drawn with seeds of their own."""
        challenger = self.challenger(kind, trial)
        other = 1000 + trial if kind == "equal" else 0
        directories = {"challenger": challenger, "champion": self.champion}
        room = self.params.preferences
        lengths = Lengths(prompt=room.prompt_tokens, answer=room.max_new_tokens, window=self.params.pretrain.seq_len)
        found = []
        for key, item in measuring.shards(self.items, directories, lengths, self.params):
            role = key[0]
            if role == "challenger" and other and "seed" in item:
                item["seed"] = held_out.shard_seed(other, item["seed"])
            name = json.dumps([item["model"], item.get("seed"), item.get("prompts"), item.get("texts")])
            known = (name, 0)
            if known not in self._measured:
                result = measuring.run(item)
                if role == "challenger" and kind != "equal":
                    found.append((key, result))
                    continue
                self._measured[known] = result
            found.append((key, self._measured[known]))
        torch.set_num_threads(self.params.threads)
        gate = self.params.gate
        limits = {k: v for k, v in gate.limits.model_dump().items() if k != "kl_to_sft"}
        rules = Rules(
            metric=gate.metric, margin=gate.margin, guards=limits, level=gate.level, n_resamples=gate.n_resamples
        )
        assert set(directories) == set(ROLES)
        return decide(measuring.measured(self.items, measuring.tables(self.items, found, gate.n_seeds)), rules)


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    n_trials = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(root, Path(folder))
        rows = []
        for kind in sys.argv[3:] or KINDS:
            started = time.monotonic()
            decisions = [trials.decide(kind, trial) for trial in range(1, n_trials + 1)]
            gains = [d.improvement.mean for d in decisions]
            low, high = min(gains), max(gains)
            n = sum(d.promotes for d in decisions)
            rows.append(f"| {kind} | {n} of {n_trials} | {low:+.3f} to {high:+.3f} |")
            reasons = {reason.split(" ")[0] for d in decisions for reason in d.reasons}
            print(
                f"{kind}: {n} of {n_trials} promoted, {time.monotonic() - started:.0f} s, {sorted(reasons)}", flush=True
            )
    print("| challenger | promoted | improvement of the judge's score |\n| --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
