"""Who holds records: outputs of stage executions, by the record index and the statements, and the workspace itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.data.records import read
from tasks.lineage import ancestry
from tasks.lineage.records import ids as record_ids
from tasks.lineage.records import tables
from tasks.lineage.records.answers import Ancestry, Use, inherited
from tasks.lineage.records.usage import SHAPING
from tasks.lineage.statement import Statement
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout
from tasks.runtime.stages import Stage
from tasks.tracking import journal


@dataclass(frozen=True, kw_only=True)
class Holding:
    """An output that holds records: `md5` is DVC's digest of it. roles: how many of the records it has in each role,
    through `tasks.lineage.records.usage`. is_current: whether `dvc.lock` records this very output."""

    path: str
    md5: str
    stage: str
    roles: Mapping[str, int]
    is_current: bool


@dataclass(frozen=True, kw_only=True)
class Holders:
    """What the statements and the record index say of some records.

    shaped: the statements of executions in whose results a record has a part; where it was only kept, validated or
    judged on, the model is the same without it. unknown: those of which the index or the statements do not know all
    that stands behind.
    """

    holdings: list[Holding]
    shaped: dict[str, Statement]
    unknown: dict[str, Statement]


def direct_uses(state: Path, wanted: Collection[bytes]) -> tuple[list[Use], set[str]]:
    """The direct uses of any of the records `wanted` (with how many of them as the count), and all executions that
    the index knows."""
    found, indexed = [], set()
    ids = record_ids.of_bytes(sorted(wanted))
    for path in sorted((state / "records").glob("*/records.parquet")):
        rows = record_ids.find(tables.read(path.parent).ids, ids)
        rows = rows[rows >= 0]
        for of_uses in sorted(path.parent.glob("uses-*.parquet")):
            stage, execution = tables.execution_of(of_uses)
            indexed.add(execution)
            roles = {total.role for total in tables.read_totals(of_uses)} if len(rows) else set()
            for role in sorted(roles):
                of_role = [np.intersect1d(rows, part) for part in tables.read_rows(of_uses, [role])]
                if n := sum(map(len, of_role)):
                    found.append(Use(stage, execution, role, n))
    return found, indexed


def find(checkout: Checkout, statements: Sequence[Statement], wanted: Collection[bytes]) -> Holders:
    """Every output of every stated execution that holds one of the records `wanted`."""
    uses, indexed = direct_uses(checkout.state, wanted)
    made = [statement for statement in statements if statement.kind == "stage" and statement.execution]
    traced = {s.digest: ancestry.trace(s, statements) for s in made}
    behind = {digest: _executions(found.statements) for digest, found in traced.items()}
    held = inherited(uses, {s.digest: Ancestry(str(s.execution), behind[s.digest]) for s in made})
    current = {
        (out["path"], out.get("md5")) for entry in stages.read_lock(checkout.root).values() for out in entry["outs"]
    }
    holdings = []
    for statement in made:
        if statement.digest in held:
            roles = {use.role: use.count for use in sorted(held[statement.digest], key=lambda use: use.count)}
            holdings += [
                Holding(path=out, md5=md5, stage=str(statement.stage), roles=roles, is_current=(out, md5) in current)
                for out, md5 in statement.outputs.items()
            ]
    dark = {digest for digest, found in traced.items() if found.unstated or not behind[digest] <= indexed}
    unknown = {s.digest: s for s in made if s.digest in dark and s.digest not in held}
    shaped = {s.digest: s for s in made if any(use.role in SHAPING for use in held.get(s.digest, ()))}
    return Holders(holdings=holdings, shaped=shaped, unknown=unknown)


def _executions(statements: Sequence[Statement]) -> frozenset[str]:
    return frozenset(s.execution for s in statements if s.execution and s.kind == "stage")


def in_workspace(root: Path, graph: Mapping[str, Stage], wanted: Collection[bytes]) -> dict[str, int]:
    """Rows of records `wanted` in each Parquet file of the outputs that names records, where there are any."""
    ids, found = set(wanted), {}
    for path in parquet_files(root, graph):
        identities = read(path, ["record_id"])["record_id"]
        n = sum(identity in ids for identity in identities)
        if n:
            found[path.relative_to(root).as_posix()] = n
    return found


def parquet_files(root: Path, graph: Mapping[str, Stage]) -> list[Path]:
    """The Parquet files with a column `record_id` among the outputs in the workspace."""
    import pyarrow.parquet as parquet

    outs = [root / out for stage in graph.values() for out in stage.outs]
    files = [file for out in outs for file in ([out] if out.is_file() else sorted(out.rglob("*")))]
    return [f for f in files if f.suffix == ".parquet" and "record_id" in parquet.read_schema(f).names]


def affected_stages(graph: Mapping[str, Stage], changed: Collection[str], same: Collection[str] = ()) -> list[str]:
    """The stages that run again when the paths `changed` change, in order.

    All that such a stage writes may change, but for the outputs `same`.
    """
    found: dict[str, None] = {}
    paths = set(changed)
    for name, stage in graph.items():
        if any(_touches(dep, path) for dep in stage.deps for path in paths):
            found[name] = None
            paths.update(set(stage.outs) - set(same))
    return list(found)


def _touches(dep: str, path: str) -> bool:
    return dep == path or dep.startswith(f"{path}/") or path.startswith(f"{dep}/")


def seconds_by_stage(checkout: Checkout) -> dict[str, float]:
    """How long each stage worked when it last finished, in seconds, from the journals of this checkout."""
    newest: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(checkout.journals.glob("*.jsonl"), reverse=True):
        newest[path.name.split("-")[1]].append(path)
    found = {}
    for stage, paths in newest.items():
        for path in paths:
            events = journal.read(path)[0]
            worked = [event["values"]["work_s"] for event in events if "work_s" in event.get("values", {})]
            if worked and events[-1].get("status") == "FINISHED":
                found[stage] = float(worked[-1])
                break
    return found
