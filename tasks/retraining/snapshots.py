"""What brings a run back: `dvc.lock`, `params.yaml` and `dvc.yaml` as they were; artifacts come by their digests."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError
from tasks.files import write_bytes
from tasks.lineage.graph import Graph
from tasks.lineage.statement import Statement
from tasks.lineage.store import StatementStore
from tasks.lineage.targets import Resolver
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout

FOLDER = "lineage/runs"
FILES = ("dvc.lock", "dvc.yaml", "params.yaml")


def keep(checkout: Checkout, execution: str) -> None:
    """Copy the files of the run `execution`, as they are now, to `lineage/runs/`."""
    folder = checkout.state.parent / FOLDER / execution
    for name in FILES:
        write_bytes(folder / name, (checkout.root / name).read_bytes())
        (folder / name).chmod(0o644)


@dataclass(frozen=True, kw_only=True)
class Restored:
    """The run that was brought back; `missing`: its artifacts that no cache has; `commit`: of the code it ran."""

    run: Statement
    missing: list[str]
    commit: str | None


def restore(checkout: Checkout, wanted: str) -> Restored:
    """Bring back parameters, `dvc.lock` and artifacts of a run (`run~1`, or the first 8 characters of its id).

    Raises `UserError` where `wanted` is no run, its files are gone or altered, or its graph of stages is another one
    than this checkout's: then nothing was changed.
    """
    statements = [stored.statement for stored in StatementStore.of(checkout).all()]
    named = wanted if wanted.startswith("run") else f"run:{wanted}"
    target = Resolver(Graph(statements), checkout).resolve(named)
    run = target.statements[0] if target.statements else None
    if run is None or run.kind != "run":
        raise UserError(f"{wanted} is not a run; name one as run, run~1 or by the first 8 characters of its id.")
    content = _read(checkout, run)
    if content["dvc.yaml"] != (checkout.root / "dvc.yaml").read_bytes():
        commit = _commit(statements, run)
        raise UserError(
            f"run {run.execution} had another dvc.yaml, so its stages are not those of this code. "
            f"Check out its commit first{': git checkout ' + commit if commit else ''}.",
            exit_code=1,
        )
    before = {name: (checkout.root / name).read_bytes() for name in FILES if (checkout.root / name).is_file()}
    for name in ("params.yaml", "dvc.lock"):
        write_bytes(checkout.root / name, content[name])
    try:
        missing = check_out(checkout.root)
    except BaseException:
        for name, old in before.items():
            write_bytes(checkout.root / name, old)
        raise
    return Restored(run=run, missing=missing, commit=_commit(statements, run))


def _read(checkout: Checkout, run: Statement) -> dict[str, bytes]:
    """The kept files, each with the digest that the statement gives."""
    content = {}
    for name in FILES:
        path = checkout.state.parent / FOLDER / str(run.execution) / name
        if not path.is_file():
            raise UserError(f"{path} is missing: run {run.execution} cannot be brought back without it.", exit_code=1)
        content[name] = path.read_bytes()
        expected = run.subjects.get(name)
        if expected is None or hashlib.sha256(content[name]).hexdigest() != expected.sha256:
            raise UserError(f"{path} is not what the statement of run {run.execution} names.", exit_code=1)
    return content


def _commit(statements: list[Statement], run: Statement) -> str | None:
    """The commit of the code of the newest stage behind the run."""
    behind = {s.digest: s for s in statements}
    commits = [behind[digest].commit for digest in run.statements_behind if digest in behind]
    return next((commit for commit in reversed(commits) if commit), None)


def check_out(root: Path) -> list[str]:
    """Have DVC put every output of `dvc.lock` in its place; returns those that no cache has."""
    from dvc.exceptions import CheckoutError, DvcException
    from dvc.repo import Repo

    try:
        with contextlib.chdir(root), Repo(str(root)) as repo:
            repo.checkout(force=True)
    except CheckoutError as error:
        return sorted(str(target) for target in error.target_infos)
    except DvcException as error:
        raise UserError(f"DVC cannot bring the artifacts back: {error}", exit_code=1) from None
    lock = stages.read_lock(root)
    outs = [str(out["path"]) for entry in lock.values() for out in entry.get("outs", ())]
    return sorted(out for out in outs if not (root / out).exists())
