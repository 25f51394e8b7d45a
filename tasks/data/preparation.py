"""The order in which records of all sources are filtered, freed of duplicates, split, and freed of overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tasks.data import near_duplicates, overlap
from tasks.data.cleaning import Limits, normalise, why_rejected
from tasks.data.maths import SOURCE as MATHS
from tasks.data.python_docs import TASK as DOCS
from tasks.data.records import (
    HELD_OUT_SPLITS,
    TRAINING_SPLITS,
    Demonstration,
    Record,
    Reject,
    TextRecord,
    reject,
)
from tasks.data.splits import assign, split_of_demonstration

if TYPE_CHECKING:
    from tasks.parameter_sections import NearDuplicates, Splits
    from tasks.steps.context import FanOut

T = TypeVar("T", TextRecord, Demonstration)


@dataclass
class Rejects:
    """Everything left out, texts and demonstrations apart, since the manifest counts them apart."""

    texts: list[Reject] = field(default_factory=list)
    demonstrations: list[Reject] = field(default_factory=list)
    paragraphs: list[Reject] = field(default_factory=list)

    def of(self, record: Record) -> list[Reject]:
        return self.texts if isinstance(record, TextRecord) else self.demonstrations

    def all(self) -> list[Reject]:
        return [*self.texts, *self.demonstrations, *self.paragraphs]


def normalised(records: Sequence[TextRecord]) -> list[TextRecord]:
    return [replace(record, text=normalise(record.text)) for record in records]


def clean(records: Sequence[TextRecord], limits: Limits, rejects: Rejects) -> list[TextRecord]:
    """Keep of normalised records those that pass the filters."""
    kept = []
    for record in records:
        why = why_rejected(record.text, limits)
        if why is None:
            kept.append(record)
        else:
            rejects.texts.append(reject(record, why[0], f"{record.symbol}: {why[1]}".removeprefix(": ")))
    return kept


def drop_exact(records: Sequence[T], rejects: Rejects) -> list[T]:
    """Keep the first of records with the same content, in whichever source."""
    first: dict[str, T] = {}
    for record in records:
        same = first.setdefault(record.content, record)
        if same is not record:
            rejects.of(record).append(reject(record, "exact_duplicate", f"{record.symbol} as {_name(same)}"))
    return list(first.values())


def _name(record: Record) -> str:
    return record.symbol or record.record_id.hex()


def drop_near(
    records: Sequence[T],
    name: str,
    like: NearDuplicates,
    fan_out: FanOut,
    rejects: Rejects,
    known: Mapping[str, np.ndarray] | None = None,
) -> list[T]:
    """Keep the first record of each cluster of near-duplicates, so that no cluster can straddle two splits.

    `known` are signatures by content that were computed before.
    """
    known = known or {}
    new = [record.content for record in records if record.content not in known]
    signed = dict(zip(new, near_duplicates.sign_all(name, new, like.permutations, fan_out), strict=True))
    signatures = [known[text] if text in known else signed[text] for text in (record.content for record in records)]
    first = near_duplicates.clusters(signatures, like.threshold)
    kept = []
    for number, record in enumerate(records):
        if first[number] == number:
            kept.append(record)
        else:
            detail = f"{record.symbol} like {_name(records[first[number]])}"
            rejects.of(record).append(reject(record, "near_duplicate", detail))
    return kept


def drop_long(demonstrations: Sequence[Demonstration], max_chars: int, rejects: Rejects) -> list[Demonstration]:
    """Keep demonstrations of at most `max_chars` characters; the other filters are for prose, not for questions."""
    kept = []
    for d in demonstrations:
        if (length := len(d.prompt) + len(d.answer)) > max_chars:
            rejects.demonstrations.append(reject(d, "too_long", f"{length} characters, at most {max_chars}"))
        else:
            kept.append(d)
    return kept


def at_most(demonstrations: Sequence[Demonstration], source: str, n: int, rejects: Rejects) -> list[Demonstration]:
    """Keep the first `n` demonstrations of one source and all of the others."""
    kept, n_kept = [], 0
    for d in demonstrations:
        n_kept += d.source == source
        if d.source == source and n_kept > n:
            rejects.demonstrations.append(reject(d, "over_max_questions"))
        else:
            kept.append(d)
    return kept


def split_groups(
    texts: Sequence[TextRecord], demonstrations: Sequence[Demonstration], shares: Splits
) -> dict[str, str]:
    """Group to split. The groups of texts are assigned first, and demonstrations about them follow."""
    splits = assign((t.group for t in texts), shares)
    for is_maths in (True, False):
        groups = {d.group for d in demonstrations if (d.source == MATHS) == is_maths}
        splits.update(assign(groups - splits.keys(), shares))
    return splits


def split_demonstrations(
    demonstrations: Sequence[Demonstration], splits: dict[str, str], shares: Splits
) -> list[Demonstration]:
    """Demonstrations of a training group go to train or to preference: symbols one by one, other groups whole."""
    return [
        replace(d, split=split_of_demonstration(d.symbol or d.group, splits[d.group], shares)) for d in demonstrations
    ]


def remove_overlap(
    texts: Sequence[TextRecord],
    demonstrations: Sequence[Demonstration],
    *,
    n_words: int,
    min_chars: int,
    rejects: Rejects,
) -> tuple[list[TextRecord], list[Demonstration]]:
    """Cut held-out paragraphs that share a run of words with training; drop what is then too short, and held-out
    demonstrations whose answer shares one.

    Texts and answers about symbols that are shorter than a run must not stand in training as a whole either.
    Maths is not searched: its phrasings are templates that all splits share; its splits are by operands.
    """
    training = training_texts(texts, demonstrations)
    index = overlap.RunIndex(training, n_words)
    whole = {text.lower() for text in training}
    kept_texts: list[TextRecord] = []
    for record in texts:
        if record.split not in HELD_OUT_SPLITS:
            kept_texts.append(record)
            continue
        text, removed = overlap.cut_shared(record.text, index)
        rejects.paragraphs += [
            Reject(source=record.source, reason="overlap_paragraph", detail=record.symbol, text=paragraph)
            for paragraph in removed
        ]
        if len(text) < min_chars or text.lower() in whole:
            rejects.texts.append(reject(record, "overlap"))
        else:
            kept_texts.append(replace(record, text=normalise(text)))
    kept_demonstrations: list[Demonstration] = []
    for d in demonstrations:
        known = index.shared_spans(d.answer) or (d.task == DOCS and d.answer.lower() in whole)
        if d.split in HELD_OUT_SPLITS and d.source != MATHS and known:
            rejects.demonstrations.append(reject(d, "overlap"))
        else:
            kept_demonstrations.append(d)
    return kept_texts, kept_demonstrations


def training_texts(texts: Sequence[TextRecord], demonstrations: Sequence[Demonstration]) -> list[str]:
    """Everything that a model may be trained on, preferences included."""
    return [t.text for t in texts if t.split in TRAINING_SPLITS] + [
        part for d in demonstrations if d.split in TRAINING_SPLITS for part in (d.prompt, d.answer)
    ]


def prove_no_overlap(
    texts: Sequence[TextRecord], demonstrations: Sequence[Demonstration], *, n_words: int
) -> dict[str, int]:
    """Count again, by the exact comparison, what must not be there: every count but the sizes must be 0.

    Raises RuntimeError otherwise, since that is a defect and not a user's mistake.
    """
    held_out = [t.text for t in texts if t.split in HELD_OUT_SPLITS]
    held_out += [d.answer for d in demonstrations if d.split in HELD_OUT_SPLITS and d.source != MATHS]
    training = training_texts(texts, demonstrations)
    proof = overlap.count_overlaps(held_out, training, n_words)
    asked = [d for d in demonstrations if d.split in TRAINING_SPLITS]
    tested = [d for d in demonstrations if d.split in HELD_OUT_SPLITS]
    held_out_files = {t.file for t in texts if t.split in HELD_OUT_SPLITS and t.file}
    held_out_files |= {d.file for d in tested if d.file}
    training_groups = {d.group for d in asked}
    training_prompts = {d.prompt for d in asked}
    wholes = {t.text.lower() for t in texts if t.split in HELD_OUT_SPLITS}
    wholes |= {d.answer.lower() for d in tested if d.task == DOCS}
    wrong = {
        "overlaps": proof["overlaps"],
        "texts_also_in_training": len(wholes & {t.lower() for t in training}),
        "training_questions_about_held_out_modules": sum(d.file in held_out_files for d in asked),
        "groups_in_both": len({d.group for d in tested} & training_groups),
        "prompts_in_both": sum(d.prompt in training_prompts for d in tested),
    }
    if any(wrong.values()):
        raise RuntimeError(f"held-out text is in training text: {wrong}")
    return proof | wrong
