"""Whether the code that a stage ran with is where its statement says: at the commit, or still in the working tree.

Files of a commit are read from git's objects into memory and hashed here; the working tree does not count for them.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tasks.errors import UserError
from tasks.lineage import hashing
from tasks.lineage.audit.findings import Part, listed
from tasks.lineage.audit.scene import Entry, Scene
from tasks.lineage.hashing import FileDigest, listing_digest
from tasks.lineage.statement import CODE, Statement

_LIMIT_S = 60
_FILES = ("100644", "100755")


@dataclass
class _Sources:
    """The code of commits and of the working tree; each file is hashed once."""

    root: Path
    commits: dict[str, dict[str, str] | None] = field(default_factory=dict)  # {commit: {path: git's object}}
    blobs: dict[str, FileDigest] = field(default_factory=dict)
    worked: dict[str, dict[str, FileDigest]] = field(default_factory=dict)

    def load(self, commit: str, paths: Iterable[str]) -> None:
        """Hash the files at or below `paths` in a commit, all in two processes of git."""
        names = self.commits.get(commit)
        if names is None:
            names = self.commits[commit] = _names(self.root, commit)
        wanted = set(paths)
        blobs = {blob for name, blob in (names or {}).items() if any(_is_at(name, path) for path in wanted)}
        given = "".join(f"{blob}\n" for blob in sorted(blobs - set(self.blobs)))
        output = (git(self.root, "cat-file", "--batch", given=given.encode()) or b"") if given else b""
        position = 0
        while position < len(output):
            end = output.index(b"\n", position)
            name, _, size = output[position:end].decode().split(" ")[:3]
            content = output[end + 1 : end + 1 + int(size)]
            self.blobs[name] = FileDigest(hashlib.sha256(content).hexdigest(), len(content))
            position = end + 2 + int(size)

    def at(self, commit: str, paths: list[str]) -> str | None:
        """The closure digest of `paths` at a commit; None if git has no such commit, or not all of its objects."""
        if commit not in self.commits:
            self.load(commit, paths)
        names = self.commits[commit]
        if names is None:
            return None
        chosen = {name: blob for name, blob in names.items() if any(_is_at(name, path) for path in paths)}
        if not set(chosen.values()) <= set(self.blobs):
            return None
        return listing_digest({name: self.blobs[blob] for name, blob in chosen.items()})

    def now(self, paths: list[str]) -> str:
        """The closure digest of `paths` in the working tree; what is missing there is left out."""
        found: dict[str, FileDigest] = {}
        for path in paths:
            if path not in self.worked:
                self.worked[path] = _below(self.root, path)
            found.update(self.worked[path])
        return listing_digest(found)


def _below(root: Path, path: str) -> dict[str, FileDigest]:
    try:
        return hashing.tree(root / path).named(path)
    except (OSError, UserError):
        return {}


def _is_at(name: str, path: str) -> bool:
    return name == path or name.startswith(path + "/")


def _names(root: Path, commit: str) -> dict[str, str] | None:
    """{path below `root`: object} of the files in a commit; None if git cannot tell."""
    output = git(root, "ls-tree", "-r", "-z", commit)
    if output is None:
        return None
    names = {}
    for line in filter(None, output.split(b"\0")):
        facts, _, name = line.partition(b"\t")
        mode, _, blob = facts.decode().split(" ")
        path = name.decode("utf-8", "surrogateescape")
        if mode in _FILES and not hashing.is_ignored(PurePosixPath(path)):
            names[path] = blob
    return names


def git(root: Path, *arguments: str, given: bytes | None = None) -> bytes | None:
    """What git prints; None if it fails or there is none."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments], cwd=root, capture_output=True, input=given, timeout=_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def check(scene: Scene) -> None:
    """The code of every execution at its commit; where that has it not, the newest ones against the working tree."""
    part, sources = scene.part("code"), _Sources(scene.root)
    entries = [entry for entry in scene.asked if entry.statement.closure is not None and _paths(entry.statement)]
    head = (git(scene.root, "rev-parse", "--verify", "HEAD") or b"").decode().strip()
    by_commit: dict[str, set[str]] = {head: set()} if head else {}
    for entry in entries:
        commit = _clean_commit(entry.statement) or head
        if commit:
            by_commit.setdefault(commit, set()).update(_paths(entry.statement))
    for commit, paths in by_commit.items():
        sources.load(commit, paths)
    current = {entry.statement.digest for entry in scene.current_asked.values()}
    places: dict[str, list[str]] = {"working": [], "edited": []}
    for entry in entries:
        place = _check_one(part, sources, entry, head, is_current=entry.statement.digest in current)
        places.setdefault(place, []).append(str(entry.statement.stage))
    if places["working"]:
        why = "was not committed, or its commit is not here" if head else "cannot be looked up without git"
        stages = listed(dict.fromkeys(places["working"]))
        part.note(f"The code of {stages} {why}: it was compared with the working tree.")
    if places["edited"]:
        part.note(f"The code of {listed(places['edited'])} was edited since it ran; its commit has what ran.")


def _clean_commit(statement: Statement) -> str | None:
    return None if statement.is_dirty else statement.commit


def _paths(statement: Statement) -> list[str]:
    return sorted(path for path, digests in statement.inputs.items() if digests["kind"] == CODE)


def _check_one(part: Part, sources: _Sources, entry: Entry, head: str, *, is_current: bool) -> str:
    """Find the code of one execution; where it was found."""
    statement, paths = entry.statement, _paths(entry.statement)
    commit = _clean_commit(statement)
    committed = sources.at(commit, paths) if commit else None
    if committed is not None and committed != statement.closure:
        part.find(
            f"{entry.place} code",
            expected=f"code with the digest {statement.closure} at commit {commit}",
            found=f"the commit has {committed}",
            do="The statement or the commit is not what ran. Fetch the commit anew from where it was pushed to.",
        )
        return "other"
    is_here = sources.now(paths) == statement.closure if is_current or committed is None else False
    if committed is not None:
        part.count("closures at their commit")
        return "edited" if is_current and not is_here else "commit"
    if is_here:
        part.count("closures in the working tree")
        return "working"
    if head and sources.at(head, paths) == statement.closure:
        part.count("closures at HEAD")
        return "head"
    if not is_current:
        part.missed("closures of earlier executions")
        return "nowhere"
    at = f"; it ran at commit {statement.commit}" if statement.commit else ""
    edits = " with uncommitted edits" if at and statement.is_dirty else ""
    part.find(
        f"{entry.place} code",
        expected=f"the code of stage {statement.stage}, digest {statement.closure}",
        found=f"neither in the working tree nor {'at HEAD' if head else 'in git, which is not here'}{at}{edits}",
        do=f"Commit code before it runs. `axon run {statement.stage}` makes it anew with the code as it is.",
    )
    return "nowhere"
