"""Stage `data`: sources to cleaned, de-duplicated, split records, a manifest, and all that was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tasks.data import maths, own_files, preparation, python_docs, records, removals
from tasks.data.cleaning import Limits
from tasks.data.packages import Package
from tasks.data.records import Demonstration, Record, Reject, TextRecord
from tasks.data.removals import Removals
from tasks.data.sources import check_sources
from tasks.errors import UserError
from tasks.files import write_json
from tasks.steps.context import StepContext

N_PHASES = 5


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """What the sources hold as read; `n_read` counts texts, `n_asked` demonstrations, by source.

    `listed` is the removal list, and the other two count what it took out of each.
    """

    docs: python_docs.Collected
    own: list[own_files.OwnRecords]
    n_read: Counter[str]
    n_asked: Counter[str]
    listed: Removals
    n_removed_texts: Counter[str] = field(default_factory=Counter)
    n_removed_demonstrations: Counter[str] = field(default_factory=Counter)


def _read_own_files(context: StepContext, listed: Removals, n_removed: Counter[str]) -> list[own_files.OwnRecords]:
    """The records of `data.files`; past the limit of damaged lines these are written to rejects before it fails."""
    found = []
    for number, file in enumerate(context.params.data.files):
        read = own_files.read_file(file.path, file.license, context.root)
        damaged = removals.drop(read.damaged, f"damaged_{number}", listed, None, context.fan_out)
        n_removed.update(r.source for r in damaged.removed)
        found.append(replace(read, damaged=damaged.kept))
    try:
        for own in found:
            own_files.check_damage(own, context.params.data.max_damaged_fraction)
    except UserError:
        _write_rejects(context, [reject for own in found for reject in own.damaged])
        raise
    return found


def _write_rejects(context: StepContext, rejects: Sequence[Reject]) -> None:
    path = context.root / "data" / "rejects.parquet"
    records.write(path, records.to_columns(rejects, records.REJECT_COLUMNS))


def _read(context: StepContext, rejects: preparation.Rejects) -> _Sources:
    listed, n_removed = removals.read(context.root), Counter[str]()
    own = _read_own_files(context, listed, n_removed)
    docs = python_docs.collect(context.params.data.python_docs.packages, context.fan_out)
    rejects.texts += [*docs.unreadable, *(reject for o in own for reject in o.damaged)]
    n_read = Counter(t.source for t in docs.texts) + Counter(r.source for r in docs.unreadable)
    n_read.update({o.source: len(o.texts) + len(o.damaged) + n_removed[o.source] for o in own})
    n_asked = Counter({o.source: len(o.demonstrations) for o in own})
    return _Sources(docs=docs, own=own, n_read=n_read, n_asked=n_asked, listed=listed, n_removed_texts=n_removed)


def _texts(context: StepContext, sources: _Sources, rejects: preparation.Rejects) -> list[TextRecord]:
    """Texts that pass the filters, without what the removal list names and without duplicates."""
    params = context.params.data
    limits, like = Limits(**params.filters.model_dump()), params.near_duplicates
    read = preparation.normalised([*sources.docs.texts, *(t for own in sources.own for t in own.texts)])
    dropped = removals.drop(read, "text", sources.listed, like, context.fan_out)
    sources.n_removed_texts.update(t.source for t in dropped.removed)
    texts = preparation.drop_exact(preparation.clean(dropped.kept, limits, rejects), rejects)
    return preparation.drop_near(texts, "text_signatures", like, context.fan_out, rejects, dropped.signatures)


def _demonstrations(
    context: StepContext, sources: _Sources, texts: Sequence[TextRecord], rejects: preparation.Rejects
) -> tuple[list[Demonstration], int]:
    """Demonstrations of all sources without what the removal list names and without duplicates, and how many public
    symbols have no fit sentence."""
    params, listed, like = context.params.data, sources.listed, context.params.data.near_duplicates
    asked, n_unfit = python_docs.questions(texts, sources.docs.public)
    own = [d for o in sources.own for d in o.demonstrations]
    dropped = removals.drop([*asked, *own], "demonstration", listed, like, context.fan_out)
    asked_kept = [d for d in dropped.kept if d.source == python_docs.SOURCE]
    own_kept = [d for d in dropped.kept if d.source != python_docs.SOURCE]
    own_kept = preparation.drop_long(own_kept, params.filters.max_chars, rejects)
    spoken = preparation.drop_exact([*asked_kept, *own_kept], rejects)
    spoken = preparation.drop_near(
        spoken, "demonstration_signatures", like, context.fan_out, rejects, dropped.signatures
    )
    spoken = preparation.at_most(spoken, python_docs.SOURCE, params.python_docs.max_questions, rejects)
    generated = maths.generate(
        params.maths.kinds,
        n_questions=params.maths.max_questions,
        max_operand=params.maths.max_operand,
        seed=context.params.seed,
    )
    sources.n_asked.update({python_docs.SOURCE: len(asked), maths.SOURCE: len(generated)})
    # Generated questions are templates: one is removed for itself, never for being like another.
    removed = [d for d in generated if listed.lists(d)] if listed else []
    sources.n_removed_demonstrations.update(d.source for d in [*dropped.removed, *removed])
    gone = {d.record_id for d in removed}
    return [*(d for d in generated if d.record_id not in gone), *spoken], n_unfit


def _split(
    context: StepContext,
    texts: Sequence[TextRecord],
    demonstrations: Sequence[Demonstration],
    rejects: preparation.Rejects,
) -> tuple[list[TextRecord], list[Demonstration]]:
    """Everything with its split, and no run of words both held out and in training."""
    params = context.params.data
    splits = preparation.split_groups(texts, demonstrations, params.splits)
    headed = [python_docs.with_heading(t) if t.source == python_docs.SOURCE else t for t in texts]
    return preparation.remove_overlap(
        [replace(t, split=splits[t.group]) for t in headed],
        preparation.split_demonstrations(demonstrations, splits, params.splits),
        n_words=params.overlap_words,
        min_chars=params.filters.min_chars,
        rejects=rejects,
    )


def _check_not_empty(texts: Sequence[TextRecord], demonstrations: Sequence[Demonstration]) -> None:
    tables: tuple[tuple[str, Sequence[Record], Sequence[str]], ...] = (
        ("texts to pretrain on", texts, records.TEXT_SPLITS),
        ("demonstrations", demonstrations, records.DEMONSTRATION_SPLITS),
    )
    for name, kept, splits in tables:
        missing = [split for split in splits if not any(record.split == split for record in kept)]
        if missing:
            raise UserError(
                f"data: {len(kept)} {name} are left after filtering, none of them for {', '.join(missing)}; "
                "data/rejects.parquet says why others went. Add packages, files or questions under data in "
                "params.yaml, or loosen data.filters.",
                exit_code=1,
            )


def _counts(
    n_read: Counter[str], kept: Sequence[Record], rejects: Sequence[Reject], source: str, n_removed: Counter[str]
) -> dict[str, Any]:
    """What became of the records of one source. What the removal list took out is counted, and kept nowhere."""
    return {
        "read": n_read[source],
        "kept": sum(record.source == source for record in kept),
        "rejected": dict(Counter(r.reason for r in rejects if r.source == source)),
    } | ({"removed": n_removed[source]} if n_removed[source] else {})


def _sizes(kept: Sequence[Record], splits: Sequence[str]) -> dict[str, dict[str, int]]:
    sizes = {split: {"records": 0, "bytes": 0} for split in splits}
    for record in kept:
        sizes[record.split]["records"] += 1
        sizes[record.split]["bytes"] += len(record.content.replace("\x00", "").encode())
    return sizes


def _package(package: Package, texts: Sequence[TextRecord]) -> dict[str, Any]:
    of_package = [t for t in texts if t.package == package.name]
    return {
        "version": package.version,
        "license": package.license,
        "files": len(package.files),
        "records": len(of_package),
        "bytes": sum(len(t.text.encode()) for t in of_package),
    }


def _manifest(
    context: StepContext,
    sources: _Sources,
    texts: Sequence[TextRecord],
    demonstrations: Sequence[Demonstration],
    rejects: preparation.Rejects,
) -> dict[str, Any]:
    everything: list[Record] = [*texts, *demonstrations]
    n_read, n_asked = sources.n_read, sources.n_asked
    n_texts, n_demonstrations = sources.n_removed_texts, sources.n_removed_demonstrations
    return {
        "sources": {
            source: {
                "text": _counts(n_read, texts, rejects.texts, source, n_texts),
                "demonstrations": _counts(n_asked, demonstrations, rejects.demonstrations, source, n_demonstrations),
            }
            for source in sorted({*sources.n_read, *sources.n_asked})
        },
        "packages": {package.name: _package(package, texts) for package in sources.docs.packages},
        "cut_paragraphs": {
            "paragraphs": len(rejects.paragraphs),
            "bytes": sum(len(r.text.encode()) for r in rejects.paragraphs),
        },
        "splits": {
            "text": _sizes(texts, records.TEXT_SPLITS),
            "demonstrations": _sizes(demonstrations, records.DEMONSTRATION_SPLITS),
        },
        "tasks": {
            split: dict(Counter(d.task for d in demonstrations if d.split == split))
            for split in records.DEMONSTRATION_SPLITS
        },
        "licenses": dict(Counter(record.license for record in everything)),
        "filters": context.params.data.filters.model_dump(),
        "near_duplicates": context.params.data.near_duplicates.model_dump(),
    } | ({"removed": _removed(sources)} if sources.listed else {})


def _removed(sources: _Sources) -> dict[str, int]:
    return {
        "listed": len(sources.listed.entries),
        "texts": sum(sources.n_removed_texts.values()),
        "demonstrations": sum(sources.n_removed_demonstrations.values()),
    }


def run(context: StepContext) -> None:
    """Write data/text.parquet, data/demonstrations.parquet, data/rejects.parquet and data/manifest.json."""
    check_sources(context.params, context.root)
    rejects = preparation.Rejects()
    context.report(0, N_PHASES, {})
    sources = _read(context, rejects)
    context.report(1, N_PHASES, {})
    texts = _texts(context, sources, rejects)
    context.report(2, N_PHASES, {})
    demonstrations, n_unfit = _demonstrations(context, sources, texts, rejects)
    context.report(3, N_PHASES, {})
    texts, demonstrations = _split(context, texts, demonstrations, rejects)
    # A paragraph that was cut from one text may be all that is listed of another.
    left_out = [r for r in rejects.all() if not (sources.listed and sources.listed.lists(r))]
    _write_rejects(context, left_out)
    _check_not_empty(texts, demonstrations)
    context.report(4, N_PHASES, {})
    manifest = _manifest(context, sources, texts, demonstrations, rejects)
    manifest["public_symbols_without_a_fit_sentence"] = n_unfit
    manifest["overlap"] = preparation.prove_no_overlap(texts, demonstrations, n_words=context.params.data.overlap_words)
    folder = context.root / "data"
    records.write(folder / "text.parquet", records.to_columns(texts, records.TEXT_COLUMNS))
    records.write(folder / "demonstrations.parquet", records.to_columns(demonstrations, records.DEMONSTRATION_COLUMNS))
    write_json(folder / "manifest.json", manifest)
    context.report(N_PHASES, N_PHASES, {})
