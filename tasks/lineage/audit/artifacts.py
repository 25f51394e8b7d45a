"""The files in the workspace: every output of the newest executions, and what they read that no stage makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tasks.errors import UserError
from tasks.lineage import ancestry, hashing
from tasks.lineage.audit.code import git
from tasks.lineage.audit.findings import Part, listed
from tasks.lineage.audit.scene import Entry, Scene
from tasks.lineage.hashing import FileDigest
from tasks.lineage.statement import DATA, ENVIRONMENT, Statement

_RESTORE = "Delete it and run `axon run`: it is restored from DVC's cache, or made again."


def check_outputs(scene: Scene, cached: Mapping[str, object]) -> None:
    """Hash every file of every output of the newest executions; `cached` are the MD5s that DVC's cache has."""
    part = scene.part("artifacts")
    for entry in scene.current_asked.values():
        for out, md5 in entry.statement.outputs.items():
            expected = files_below(entry.statement, out)
            if not (scene.root / out).exists():
                _missing(part, out, md5, entry, is_cached=md5 in cached)
                continue
            part.count("outputs")
            if check_tree(part, scene.root / out, out, md5, expected, entry.place, do=_RESTORE):
                scene.reached.add((out, md5))


def files_below(statement: Statement, out: str) -> dict[str, FileDigest]:
    """The files that the statement speaks for at or below `out`, by their path below the root."""
    return {f"{out}/{name}" if name else out: d for name, d in ancestry.files_of(statement, out).items()}


def _missing(part: Part, out: str, md5: str, entry: Entry, *, is_cached: bool) -> None:
    if is_cached:
        part.missed("outputs that are in DVC's cache alone")
        return
    part.find(
        out,
        expected=f"the output of {entry.place}, MD5 {md5}",
        found="it is neither in the workspace nor in DVC's cache",
        do="Fetch it with `dvc pull`, or make it again with `axon run`.",
    )


def check_tree(
    part: Part, path: Path, place: str, md5: str | None, expected: Mapping[str, FileDigest], who: str, *, do: str
) -> bool:
    """Whether the files at `path` are the `expected` ones (by path, where `place` stands for `path`), and no other.

    `md5`: what DVC's digest must be. Each difference is a finding that names the file below `place`.
    """
    try:
        tree, found_md5 = hashing.measure(path)
    except (OSError, UserError) as error:
        part.find(place, expected=f"files as {who} has them", found=f"it cannot be read: {error}", do=do)
        return False
    found = tree.named(place)
    part.count("files", len(found))
    part.count("bytes", tree.size)
    is_same = True
    for name in dict.fromkeys([*expected, *found]):
        before, now = expected.get(name), found.get(name)
        if before != now:
            is_same = False
            part.find(name, expected=f"{_described(before)} ({who})", found=_described(now), do=do)
    if is_same and md5 is not None and found_md5 != md5:
        part.find(place, expected=f"MD5 {md5} ({who})", found=f"MD5 {found_md5}", do=do)
        return False
    return is_same


def _described(digest: FileDigest | None) -> str:
    return f"SHA-256 {digest.sha256}, {digest.size} bytes" if digest else "no such file"


def check_inputs(scene: Scene, *, sources_may_move: bool = False) -> None:
    """What the newest executions read and no stage makes (sources, constraints.txt), as it stands in the workspace."""
    part = scene.part("artifacts")
    known: dict[str, tuple[str, str]] = {}
    for path, sha256, entry in _raw_inputs(scene.current_asked.values()):
        if sources_may_move and path.partition("/")[0] == ancestry.RAW:
            continue
        part.count("inputs")
        if path not in known:
            known[path] = _digest_of(scene.root / path)
        found, how = known[path]
        if found != sha256:
            stage = entry.statement.stage
            edited = _edited(scene.root, path)
            part.find(
                edited[0] if len(edited) == 1 else path,
                expected=f"{path} as stage {stage} read it last, SHA-256 {sha256} ({entry.place})",
                found=f"{how}; git shows edits of {listed(edited)}" if len(edited) > 1 else how,
                do=f"If you are editing it: `axon run` makes {stage} anew. If not: git checkout {path}",
            )


def _raw_inputs(entries: Iterable[Entry]) -> list[tuple[str, str, Entry]]:
    return [
        (path, digests["sha256"], entry)
        for entry in entries
        for path, digests in entry.statement.inputs.items()
        if digests["kind"] == ENVIRONMENT or (digests["kind"] == DATA and path.partition("/")[0] == ancestry.RAW)
    ]


def _edited(root: Path, path: str) -> list[str]:
    """The files at or below `path` that git sees as edited, new or missing: a digest over a folder names none."""
    output = git(root, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames", "--", path) or b""
    return [entry[3:].decode("utf-8", "replace") for entry in output.split(b"\0") if entry]


def _digest_of(path: Path) -> tuple[str, str]:
    """The tree digest at `path`, and how to tell of it."""
    try:
        digest = hashing.tree(path).sha256
    except (OSError, UserError) as error:
        return "", f"it cannot be read: {error}" if path.exists() else "it is missing"
    return digest, f"SHA-256 {digest}"
