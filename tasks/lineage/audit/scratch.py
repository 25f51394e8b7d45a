"""A scratch workspace in which a stage can run again from what it was recorded to have read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import yaml

from tasks.errors import UserError
from tasks.lineage import hashing
from tasks.lineage.audit.code import git
from tasks.lineage.hashing import FileDigest, listing_digest
from tasks.lineage.statement import CODE, DATA, Statement
from tasks.runtime.checkout import Checkout

_NOT_COPIED = (".git", ".axon", ".dvc", ".venv", "lineage")


class NotThere(Exception):
    """Something that the stage read then can be found no more."""


def prepare(checkout: Checkout, statement: Statement, folder: Path) -> None:
    """Fill the empty `folder` with code, inputs and parameters as the statement has them, each verified by SHA-256.

    Raises `NotThere` for what is gone.
    """
    _copy_code(checkout.root, statement, folder)
    for path, digests in statement.inputs.items():
        if digests["kind"] != CODE:
            _copy_input(checkout, path, digests, folder)
    (folder / "dvc.lock").unlink(missing_ok=True)  # else the inputs would be held against the newest run's
    _write_parameters(checkout.root, statement, folder)


def _copy_code(root: Path, statement: Statement, folder: Path) -> None:
    """The tree of the recorded commit if its code is what ran; else that of the working tree."""
    if statement.commit and not statement.is_dirty:
        archive = git(root, "archive", "--format=tar", statement.commit)
        if archive is not None:
            with tarfile.open(fileobj=BytesIO(archive)) as tar:
                tar.extractall(folder, filter="data")
            if _closure(folder, statement) == statement.closure:
                return
            shutil.rmtree(folder)
            folder.mkdir()
    _copy_working_tree(root, statement, folder)
    if _closure(folder, statement) != statement.closure:
        at = f" (commit {statement.commit})" if statement.commit else ""
        raise NotThere(f"the code that {statement.stage} ran with{at} is neither committed nor in the working tree")


def _copy_working_tree(root: Path, statement: Statement, folder: Path) -> None:
    """The files that git tracks or would track; without git everything but outputs and state."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is not None:
        names = [name.decode("utf-8", "surrogateescape") for name in listed.split(b"\0") if name]
    else:
        outs = tuple(statement.outputs)
        names = [
            path.relative_to(root).as_posix()
            for top in sorted(root.iterdir())
            if top.name not in _NOT_COPIED
            for path in ([top] if top.is_file() else sorted(top.rglob("*")))
        ]
        names = [name for name in names if not name.startswith(outs)]
    for name in names:
        if (root / name).is_file() and name.partition("/")[0] not in _NOT_COPIED:
            _copy(root / name, folder / name)


def _closure(folder: Path, statement: Statement) -> str:
    files: dict[str, FileDigest] = {}
    for path, digests in statement.inputs.items():
        if digests["kind"] == CODE and (folder / path).exists():
            files.update(hashing.tree(folder / path).named(path))
    return listing_digest(files)


def _copy_input(checkout: Checkout, path: str, digests: dict[str, str], folder: Path) -> None:
    """An input from the workspace, or from DVC's cache."""
    target = folder / path
    if _is(target, digests["sha256"]):
        return
    for source in (checkout.root / path, None):
        _remove(target)
        if source is None:
            _from_cache(checkout, digests["md5"], target)
        elif source.is_dir():
            shutil.copytree(source, target, copy_function=shutil.copyfile)
        elif source.is_file():
            _copy(source, target)
        if _is(target, digests["sha256"]):
            return
    where = "neither in the workspace nor in DVC's cache" if digests["kind"] == DATA else "not in the workspace"
    raise NotThere(f"{path} with SHA-256 {digests['sha256']} is {where}; fetch it with `dvc pull` or git")


def recorded(checkout: Checkout, statement: Statement, name: str, folder: Path) -> Path | None:
    """The file `name` as the execution wrote it: in the workspace, or out of DVC's cache in `folder`; None if gone."""
    expected = statement.subjects[name].sha256
    here = checkout.root / name
    if here.is_file() and hashing.sha256_file(here) == expected:
        return here
    out = next(out for out in statement.outputs if name == out or name.startswith(out + "/"))
    if not (folder / out).exists():
        _from_cache(checkout, statement.outputs[out], folder / out)
    kept = folder / name
    return kept if kept.is_file() and hashing.sha256_file(kept) == expected else None


def _is(path: Path, sha256: str) -> bool:
    try:
        return hashing.tree(path).sha256 == sha256
    except (OSError, UserError):
        return False


def _from_cache(checkout: Checkout, md5: str, target: Path) -> None:
    """What of an object the cache has; the caller verifies it."""
    source = _object(checkout, md5)
    if source is None:
        return
    if not md5.endswith(".dir"):
        _copy(source, target)
        return
    try:
        entries = [(str(entry["relpath"]), str(entry["md5"])) for entry in json.loads(source.read_bytes())]
    except (ValueError, TypeError, KeyError):
        return
    for relpath, name in entries:
        file = _object(checkout, name)
        if file is not None and (target / relpath).resolve().is_relative_to(target.resolve()):
            _copy(file, target / relpath)


def _object(checkout: Checkout, md5: str) -> Path | None:
    from dvc.config import Config

    folder = checkout.state.parent / ".dvc"
    cache = Path(Config(str(folder)).get("cache", {}).get("dir") or folder / "cache") if folder.is_dir() else folder
    path = cache / "files" / "md5" / md5[:2] / md5[2:]
    return path if path.is_file() else None


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_parameters(root: Path, statement: Statement, folder: Path) -> None:
    """The `params.yaml` of now with the values that the stage ran with; the others do not concern it."""
    tree = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    for key, value in statement.parameters.items():
        *path, last = key.split(".")
        section = tree
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


_DROPPED = ("AXON_", "MLFLOW_", "OPENLINEAGE_", "PREFECT_API", "RAY_ADDRESS", "DVC_")


def environment(checkout: Checkout, folder: Path) -> dict[str, str]:
    """This process's environment without what leads to its run, its stores or its state; statements are off."""
    state = str(checkout.state)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_DROPPED) and not value.startswith(state)
    }
    return {**kept, "AXON_LINEAGE": "off", "PYTHONPATH": str(folder)}


def run(command: list[str], folder: Path, variables: dict[str, str], log: Path) -> int:
    """Run a command in the scratch workspace, its output into `log`; returns its exit code."""
    with log.open("wb") as output:
        return subprocess.run(
            command, cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        ).returncode
