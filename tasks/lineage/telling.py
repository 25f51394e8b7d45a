"""The answers about records, and differences, laid out for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tasks.lineage.difference import Change, Difference, outputs_by_stage
from tasks.lineage.holders import Holder, Holding
from tasks.lineage.record_changes import RecordChange
from tasks.lineage.records.answers import Contents, Found, Share, Use
from tasks.lineage.wording import many, short, value

_N_FOUND = 40
_MEASURES = {
    "kept": "stands in it",
    "tokenized": "stands in it",
    "tokenizer": "the vocabulary was learnt from it",
    "trained": "trained on",
    "validated": "measured on during training",
    "prompt": "answers sampled to it",
    "compared": "its ranked answers trained on",
    "calibrated": "sets the zero of the reward",
    "evaluated": "judged on",
    "shown": "shown in it",
}


def _table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, show_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return table


def _section(title: str, *parts: RenderableType) -> list[RenderableType]:
    return [Text(), Text(title, style="bold underline"), *parts]


def holding(found: Holding, notes: Sequence[str] = ()) -> RenderableType:
    """A record: what it is, who used it, and everything that contains it."""
    parts: list[RenderableType] = [Text(f"record {found.record}", style="bold"), *_notes(notes)]
    for facts in found.facts:
        origin = " ".join(text for text in (facts.source, facts.package, facts.version) if text)
        parts.append(Text(f"{facts.kind} of {origin}, licence {facts.license or 'unknown'}, split {facts.split}"))
    for place in found.places:
        parts.append(Text(f"in {place.path}: {' '.join(p for p in (place.file, place.symbol) if p)}", style="dim"))
    if not found.places:
        parts.append(Text("not in data/ as it lies in the workspace", style="dim"))
    if found.uses:
        used = _table("execution", "how", "times", numbers=["times"])
        for use in found.uses:
            used.add_row(f"{use.stage} {short(use.execution)}", _MEASURES.get(use.role, use.role), f"{use.count:,}")
        parts += _section("Used directly by", used)
    shaped = [holder for holder in found.holders if holder.is_shaped]
    rest = [holder for holder in found.holders if not holder.is_shaped]
    if shaped:
        parts += _section("Shaped by it", _holders(shaped))
    if rest:
        parts += _section("Not shaped by it, though it stands there or was measured on", _holders(rest))
    if not found.holders:
        parts += _section("Contains it", Text("nothing that a statement names", style="dim"))
    if found.unindexed:
        parts.append(Text(f"\nNot in the record index, so not known: {', '.join(found.unindexed)}", style="yellow"))
    return Group(*parts)


def _notes(notes: Iterable[str]) -> list[Text]:
    return [Text(f"Note: {note}", style="yellow") for note in notes]


def _holders(holders: Iterable[Holder]) -> Table:
    """A line for what an execution made: how the record came into it."""
    by_maker: dict[tuple[str, bool], list[Holder]] = defaultdict(list)
    for holder in holders:
        by_maker[holder.maker.digest, holder.is_version].append(holder)
    table = _table("what", "made by", "how")
    for (_, is_version), group in by_maker.items():
        maker, first = group[0].maker, group[0]
        names = [holder.name for holder in group]
        shown = [name for name in names if not name.startswith("metrics/")] or names
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        what = Text.assemble((", ".join(shown), "bold magenta" if is_version else "bold"), (more, "dim"))
        through = list(dict.fromkeys(use.stage for use in first.uses if use not in first.direct))
        ways = ["directly"] if first.direct else []
        ways += [f"by descent from {', '.join(through)}"] if through else []
        table.add_row(what, f"{maker.stage} {short(str(maker.execution))}", " and ".join(ways))
    return table


def matches(text: str, found: Sequence[Found], notes: Sequence[str] = ()) -> RenderableType:
    """Several records with a text: their ids, to ask about one of them."""
    table = _table("record", "stands in")
    places: dict[str, list[str]] = defaultdict(list)
    for one in found:
        places[one.record_id].append(one.where)
    for record, where in list(places.items())[:_N_FOUND]:
        is_out = set(where) == {"data/rejects.parquet"}
        table.add_row(record, ", ".join(where) + (": rejected, so in no model" if is_out else ""))
    title = Text(f"{many(len(places), 'record')} with {text}", style="bold")
    parts: list[RenderableType] = [title, *_notes(notes), Text(), table]
    if len(places) > _N_FOUND:
        parts.append(Text(f"… and {len(places) - _N_FOUND:,} more, which --format json lists", style="dim"))
    parts.append(Text("\nWhat contains one of them: axon lineage record ID", style="dim"))
    return Group(*parts)


def contents(name: str, found: Contents) -> RenderableType:
    """The records in a model: by source, licence and split, and what each execution did with them."""
    parts: list[RenderableType] = [Text(f"{many(found.n_records, 'record')} shaped {name}", style="bold")]
    table = _table("source", "package", "licence", "split", "kind", "records", numbers=["records"])
    for row, n in _by_origin(found.distinct):
        table.add_row(*row, f"{n:,}")
    parts += _section("By source, licence and split", table)
    uses = _table("stage", "execution", "what for", "records", "times", numbers=["records", "times"])
    for (stage, execution, role), shares in found.by_use.items():
        n_records, n_uses = sum(share.n_records for share in shares), sum(share.n_uses for share in shares)
        uses.add_row(stage, short(execution), _MEASURES.get(role, role), f"{n_records:,}", f"{n_uses:,}")
    parts += _section("By what was done with them", uses)
    if found.unindexed:
        named = ", ".join(found.unindexed)
        parts.append(Text(f"\nExecutions behind it that the record index does not know: {named}", style="yellow"))
    return Group(*parts)


def _by_origin(shares: Iterable[Share]) -> list[tuple[tuple[str, ...], int]]:
    counted: dict[tuple[str, ...], int] = defaultdict(int)
    for facts, n_records, _ in shares:
        package = f"{facts.package} {facts.version}".strip()
        counted[facts.source, package, facts.license, facts.split, facts.kind] += n_records
    return sorted(counted.items())


def contents_as_json(name: str, found: Contents) -> dict[str, Any]:
    return {
        "model": name,
        "n_records": found.n_records,
        "by_origin": [{**share.facts._asdict(), "n_records": share.n_records} for share in found.distinct],
        "by_use": [
            {"stage": stage, "execution": execution, "role": role, "n_records": share.n_records, "n_uses": share.n_uses}
            | share.facts._asdict()
            for (stage, execution, role), shares in found.by_use.items()
            for share in shares
        ],
        "unindexed": found.unindexed,
    }


def holding_as_json(found: Holding) -> dict[str, Any]:
    return {
        "record": found.record,
        "facts": [facts._asdict() for facts in found.facts],
        "places": [place._asdict() for place in found.places],
        "uses": [_use(use) for use in found.uses],
        "holders": [
            {
                "name": holder.name,
                "is_version": holder.is_version,
                "path": holder.artifact.path,
                "md5": holder.artifact.digest,
                "stage": holder.maker.stage,
                "execution": holder.maker.execution,
                "is_shaped": holder.is_shaped,
                "direct": [_use(use) for use in holder.direct],
                "by_descent": [_use(use) for use in holder.uses if use not in holder.direct],
            }
            for holder in found.holders
        ],
        "unindexed": found.unindexed,
    }


def _use(use: Use) -> dict[str, Any]:
    return {"stage": use.stage, "execution": use.execution, "role": use.role, "count": use.count}


def difference(before: str, after: str, found: Difference) -> RenderableType:
    """What differs, causes first; one line where nothing does."""
    title = Text.assemble((before, "bold"), " → ", (after, "bold"))
    if found.is_empty:
        return Group(title, Text("no difference"))
    parts: list[RenderableType] = [title]
    parts += _changes("Model", found.versions)
    parts += _changes("Parameters", found.parameters)
    parts += _changes("Commands", found.commands)
    parts += _changes("Data from outside", found.data, is_digest=True)
    parts += _changes("Code", found.code, is_digest=True)
    if found.code and all(found.commits) and found.commits[0] != found.commits[1]:
        paths = " ".join(change.name for change in found.code)
        commits = " ".join(short(str(commit)) for commit in found.commits)
        parts.append(Text(f"  line by line: git diff {commits} -- {paths}", style="dim"))
    parts += _changes("Environment", found.environment)
    for stages, side in ((found.only_before, before), (found.only_after, after)):
        if stages:
            parts += _section(f"Only in {side}", Text(f"  {', '.join(stages)}"))
    if found.outputs:
        listed = [
            Text.assemble("  ", (stage, "bold green"), "  ", ", ".join(change.name for change in changes))
            for stage, changes in outputs_by_stage(found).items()
        ]
        parts += _section("Stages behind that, whose outputs changed", *listed)
    if found.records:
        parts += _section("Records", *(line for change in found.records for line in _records(change)))
    if found.unexplained:
        why = "  their outputs differ although nothing that went in does: they are not deterministic"
        parts += _section("Unexplained", Text(f"  {', '.join(found.unexplained)}", style="yellow"), Text(why, "dim"))
    return Group(*parts)


def _changes(title: str, changes: Sequence[Change], *, is_digest: bool = False) -> list[RenderableType]:
    if not changes:
        return []
    lines = []
    for change in changes:
        before, after = (_shown(side, is_digest=is_digest) for side in (change.before, change.after))
        line = Text.assemble("  ", (change.name, "bold"), f"  {before} → {after}")
        if change.stages:
            line.append(f"  [{', '.join(change.stages)}]", style="dim")
        lines.append(line)
    return _section(title, *lines)


def _shown(side: Any, *, is_digest: bool) -> str:
    if side is None:
        return "none"
    text = value(side)
    is_long_hex = len(text) in (32, 36, 64) and set(text.removesuffix(".dir")) <= set("0123456789abcdef")
    return short(text) if is_digest or is_long_hex else text


def _records(change: RecordChange) -> list[Text]:
    if change.unknown:
        return [Text(f"  {change.path}: not known: {change.unknown}", style="yellow")]
    counted = f"{change.n_before:,} → {change.n_after:,}, {change.n_added:,} added, {change.n_removed:,} removed"
    if not change.n_added and not change.n_removed:
        counted = f"the same {many(change.n_after, 'record')}, in other splits or with other facts"
    lines = [Text.assemble("  ", (change.path, "bold"), f"  {counted}")]
    for sign, some, n in (("+", change.added, change.n_added), ("−", change.removed, change.n_removed)):
        lines += [Text(f"    {sign} {record}", style="green" if sign == "+" else "red") for record in some]
        if n > len(some):
            lines.append(Text(f"    {sign} {n - len(some):,} more", style="dim"))
    return lines
