"""What differs between two runs, executions or registered versions, field by field, and what follows from that.

Two sides are compared stage by stage. What went in from outside counts as a cause: settings, raw data, code and
environment. What one stage hands to the next is no cause of its own; it is listed under the stages behind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tasks.errors import UserError
from tasks.lineage.ancestry import digest_of
from tasks.lineage.graph import Graph, model_of
from tasks.lineage.record_changes import RecordChange
from tasks.lineage.statement import CODE, DATA, ENVIRONMENT, Statement
from tasks.lineage.target import Target
from tasks.lineage.wording import flat

Side = Mapping[str, Statement]
_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class Change:
    """A field that differs; `before` or `after` is None where one side has no such field. `stages`: those it was
    found at."""

    name: str
    before: Any
    after: Any
    stages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Causes: parameters, commands, data, code, environment, stages on one side alone. Consequences: outputs (the
    stages whose outputs differ, in their order; `name` is the path), records. `unexplained`: stages whose outputs
    differ though nothing that went into them does. `only`: (side, stage)."""

    parameters: tuple[Change, ...] = ()
    commands: tuple[Change, ...] = ()
    data: tuple[Change, ...] = ()
    code: tuple[Change, ...] = ()
    environment: tuple[Change, ...] = ()
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()
    versions: tuple[Change, ...] = ()
    outputs: tuple[Change, ...] = ()
    records: tuple[RecordChange, ...] = ()
    unexplained: tuple[str, ...] = ()
    commits: tuple[str | None, str | None] = (None, None)

    @property
    def is_empty(self) -> bool:
        return not any(value for name, value in vars(self).items() if name != "commits")

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages whose outputs differ, in the order of the chain."""
        return tuple(dict.fromkeys(stage for change in self.outputs for stage in change.stages))

    def as_json(self) -> dict[str, Any]:
        return {"is_empty": self.is_empty, "stages": list(self.stages), **asdict(self)}


def side_of(graph: Graph, target: Target) -> dict[str, Statement]:
    """The executions that a target stands on, one for each stage: the newest, in the order of the chain.

    Raises `UserError` for a target that no execution stands behind.
    """
    if not target.statements:
        raise UserError(
            f"{target.name} has no statement that says how it was made, so that there is nothing to compare. Two runs "
            "(run~1 run), executions, stages (ppo~1 ppo), outputs or registered versions can be compared."
        )
    starts = [s for start in target.statements for s in (graph.behind(start) if start.kind == "run" else [start])]
    found = {str(s.stage): s for s in graph.ancestors(starts) if s.kind == "stage"}
    own = {str(start.stage): start for start in starts if start.kind == "stage"}
    return dict(sorted({**found, **own}.items(), key=lambda entry: entry[1].sequence))


def compare(
    before: Side, after: Side, *, versions: tuple[Change, ...] = (), records: tuple[RecordChange, ...] = ()
) -> Difference:
    """The difference between two sides; `versions` and `records` are taken over as they are."""
    both = [stage for stage in after if stage in before]
    found = Difference(
        parameters=_gathered((s, flat(before[s].parameters), flat(after[s].parameters)) for s in both),
        commands=_gathered((s, _command(before[s]), _command(after[s])) for s in both),
        data=_gathered((s, *_data(before, after, s)) for s in both),
        code=_gathered((s, _inputs(before[s], CODE), _inputs(after[s], CODE)) for s in both),
        environment=_gathered((s, _circumstances(before[s]), _circumstances(after[s])) for s in both),
        outputs=_gathered((s, before[s].outputs, after[s].outputs) for s in both),
        only_before=tuple(stage for stage in before if stage not in after),
        only_after=tuple(stage for stage in after if stage not in before),
        versions=versions,
        records=records,
        commits=(_commit(before), _commit(after)),
    )
    return _with_unexplained(found, before, after, both)


def version_change(before: Target, after: Target) -> tuple[Change, ...]:
    """Two registered versions may hold different outputs of the same executions."""
    if not (before.kind == after.kind == "version"):
        return ()
    models = [model_of(target.statements[0]) for target in (before, after)]
    if models[0].path == models[1].path:
        return ()
    return (Change(name="model", before=models[0].path, after=models[1].path, stages=()),)


def _gathered(stages: Iterable[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> tuple[Change, ...]:
    """The fields that differ, each once with the stages it differs at in the same way."""
    found: dict[tuple[str, str], Change] = {}
    for stage, before, after in stages:
        for name in [*before, *(name for name in after if name not in before)]:
            old, new = before.get(name, _ABSENT), after.get(name, _ABSENT)
            if old == new and type(old) is type(new):
                continue
            old, new = (None if value is _ABSENT else value for value in (old, new))
            known = found.get((name, repr((old, new))))
            stages_so_far = (*known.stages, stage) if known else (stage,)
            found[name, repr((old, new))] = Change(name=name, before=old, after=new, stages=stages_so_far)
    return tuple(found.values())


def _command(statement: Statement) -> dict[str, Any]:
    return {"command": statement.external.get("command")}


def _inputs(statement: Statement, kind: str) -> dict[str, str]:
    return {path: d["sha256"] for path, d in statement.inputs.items() if d["kind"] == kind}


def _circumstances(statement: Statement) -> dict[str, Any]:
    """Python, libraries, machine, and what else determines the result besides parameters."""
    environment = dict(statement.environment)
    flags = environment.pop("flags", [])
    rest = {key: value for key, value in statement.determines.items() if key not in statement.parameters}
    pinned = _inputs(statement, ENVIRONMENT)
    return {**flat(environment), **{f"flags.{flag}": True for flag in flags}, **rest, **pinned}


def _data(before: Side, after: Side, stage: str) -> tuple[dict[str, str], dict[str, str]]:
    """The data inputs of a stage, without those that a stage of both sides handed on."""
    old, new = _inputs(before[stage], DATA), _inputs(after[stage], DATA)
    handed_on = {
        path
        for path in old.keys() & new.keys()
        if _is_made(before, before[stage], path) and _is_made(after, after[stage], path)
    }
    raw, raw_after = ({p: d for p, d in side.items() if p not in handed_on} for side in (old, new))
    return raw, raw_after


def _is_made(side: Side, reader: Statement, path: str) -> bool:
    """Whether an input is, or is in, or holds, what a stage of the same side wrote."""
    digests = reader.inputs[path]
    return any(
        digest_of(other, path) == digests["sha256"]
        or (other.digest in reader.statements_behind and any(out.startswith(path + "/") for out in other.outputs))
        for other in side.values()
    )


def _commit(side: Side) -> str | None:
    """The commit of the newest execution of a side."""
    return next((s.commit for s in reversed(list(side.values())) if s.commit), None)


def _with_unexplained(found: Difference, before: Side, after: Side, both: list[str]) -> Difference:
    """`found` with the stages whose outputs differ although nothing of what they read does."""
    causes = (found.parameters, found.commands, found.data, found.code, found.environment)
    explained = {stage for changes in causes for change in changes for stage in change.stages}
    unexplained = [
        stage
        for stage in both
        if stage not in explained
        and before[stage].outputs != after[stage].outputs
        and _inputs(before[stage], DATA) == _inputs(after[stage], DATA)
    ]
    return replace(found, unexplained=tuple(unexplained))


def outputs_by_stage(found: Difference) -> dict[str, list[Change]]:
    """Stage → the outputs of it that differ."""
    by_stage: dict[str, list[Change]] = defaultdict(list)
    for change in found.outputs:
        for stage in change.stages:
            by_stage[stage].append(change)
    return dict(by_stage)
