"""Stage `data`: sources to cleaned, de-duplicated, split records, a manifest, and all that was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks.data import maths, own_files, preparation, python_docs, records
from tasks.data.cleaning import Limits
from tasks.data.packages import Package
from tasks.data.records import Demonstration, Record, Reject, TextRecord
from tasks.data.sources import check_sources
from tasks.errors import UserError
from tasks.files import write_json
from tasks.steps.context import StepContext

N_PHASES = 5


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """What the sources hold as read; `n_read` counts texts, `n_asked` demonstrations, by source."""

    docs: python_docs.Collected
    own: list[own_files.OwnRecords]
    n_read: Counter[str]
    n_asked: Counter[str]


def _read_own_files(context: StepContext) -> list[own_files.OwnRecords]:
    """The records of `data.files`; past the limit of damaged lines these are written to rejects before it fails."""
    found = [own_files.read_file(own.path, own.license, context.root) for own in context.params.data.files]
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
    own = _read_own_files(context)
    docs = python_docs.collect(context.params.data.python_docs.packages, context.fan_out)
    rejects.texts += [*docs.unreadable, *(reject for o in own for reject in o.damaged)]
    n_read = Counter(t.source for t in docs.texts) + Counter(r.source for r in docs.unreadable)
    n_read.update({o.source: len(o.texts) + len(o.damaged) for o in own})
    n_asked = Counter({o.source: len(o.demonstrations) for o in own})
    return _Sources(docs=docs, own=own, n_read=n_read, n_asked=n_asked)


def _texts(context: StepContext, sources: _Sources, rejects: preparation.Rejects) -> list[TextRecord]:
    """Texts that pass the filters, without duplicates."""
    params = context.params.data
    limits = Limits(**params.filters.model_dump())
    read = [*sources.docs.texts, *(t for own in sources.own for t in own.texts)]
    texts = preparation.drop_exact(preparation.clean(read, limits, rejects), rejects)
    return preparation.drop_near(texts, "text_signatures", params.near_duplicates, context.fan_out, rejects)


def _demonstrations(
    context: StepContext, sources: _Sources, texts: Sequence[TextRecord], rejects: preparation.Rejects
) -> tuple[list[Demonstration], int]:
    """Demonstrations of all sources without duplicates, and how many public symbols have no fit sentence."""
    params = context.params.data
    asked, n_unfit = python_docs.questions(texts, sources.docs.public)
    own = [d for o in sources.own for d in o.demonstrations]
    spoken = preparation.drop_exact([*asked, *preparation.drop_long(own, params.filters.max_chars, rejects)], rejects)
    spoken = preparation.drop_near(spoken, "demonstration_signatures", params.near_duplicates, context.fan_out, rejects)
    spoken = preparation.at_most(spoken, python_docs.SOURCE, params.python_docs.max_questions, rejects)
    generated = maths.generate(
        params.maths.kinds,
        n_questions=params.maths.max_questions,
        max_operand=params.maths.max_operand,
        seed=context.params.seed,
    )
    sources.n_asked.update({python_docs.SOURCE: len(asked), maths.SOURCE: len(generated)})
    return [*generated, *spoken], n_unfit


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


def _counts(n_read: int, kept: Sequence[Record], rejects: Sequence[Reject], source: str) -> dict[str, Any]:
    return {
        "read": n_read,
        "kept": sum(record.source == source for record in kept),
        "rejected": dict(Counter(r.reason for r in rejects if r.source == source)),
    }


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
    return {
        "sources": {
            source: {
                "text": _counts(sources.n_read[source], texts, rejects.texts, source),
                "demonstrations": _counts(sources.n_asked[source], demonstrations, rejects.demonstrations, source),
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
    _write_rejects(context, rejects.all())
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
