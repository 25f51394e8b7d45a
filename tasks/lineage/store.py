"""The chain of statements on disk: one signed file each below `lineage/statements`, written once and in order.

The newest digest is also kept outside git, in `.axon/lineage-head.json`. A new statement continues from there, even
where the file it names is gone: then the gap stays visible, and no rewriting of the folder is ever made good by
appending to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.files import read_json, write_bytes, write_json
from tasks.lineage import envelope as envelopes
from tasks.lineage import statement as statements
from tasks.lineage.envelope import BadEnvelope
from tasks.lineage.keys import Key
from tasks.lineage.shape import BadStatement
from tasks.lineage.statement import Statement
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout

_NAME = re.compile(r"(\d{6,})-([a-z0-9_]+)\.json")


@dataclass(frozen=True)
class Head:
    """The newest statement that this checkout knows of, and the key that signed it."""

    sequence: int
    digest: str
    key: str


@dataclass(frozen=True)
class Stored:
    """A statement with its file and its envelope; the signature is not verified."""

    path: Path
    envelope: Mapping[str, Any]
    statement: Statement

    @property
    def reference(self) -> dict[str, str]:
        """How a journal, and MLflow through it, names the statement: its path below the root, and its digest."""
        return {"path": f"lineage/statements/{self.path.name}", "digest": self.statement.digest}


class StatementStore:
    """The statements of the checkout at `root`, whose untracked state is in `state`."""

    def __init__(self, root: Path, state: Path) -> None:
        self.folder = root / "lineage" / "statements"
        self._head = state / "lineage-head.json"
        self._lock = state / "locks" / "lineage"

    @classmethod
    def of(cls, checkout: Checkout) -> StatementStore:
        """The store of the main checkout, also from a temporary copy that DVC runs an experiment in."""
        return cls(checkout.state.parent, checkout.state)

    def paths(self) -> list[Path]:
        """The files of statements in the order of their sequence numbers."""
        found = [path for path in self.folder.glob("*.json") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_sequence(path), path.name))

    def read(self, path: Path) -> Stored:
        """One statement, not verified; a `UserError` that says what is wrong if it is not one."""
        try:
            envelope = envelopes.from_bytes(path.read_bytes())
            parsed = statements.parse(envelopes.payload_of(envelope))
        except (OSError, BadEnvelope, BadStatement) as error:
            raise UserError(
                f"{path} is not a readable statement: {error}. Restore it with: git checkout {path}", exit_code=1
            ) from None
        return Stored(path, envelope, parsed)

    def all(self) -> list[Stored]:
        """Every statement in order; a `UserError` at the first that cannot be read."""
        return [self.read(path) for path in self.paths()]

    def newest_first(self, name: str | None = None) -> Iterator[Stored]:
        """Every statement from the newest back, each read when it is reached; only those of one stage or kind."""
        return (self.read(path) for path in reversed(self.paths()) if name is None or _name(path) == name)

    def head(self) -> Head | None:
        """The newest statement as known here; that of the folder where nothing is (a fresh clone); None if neither."""
        known = self._known_head()
        newest = next(self.newest_first(), None)
        if newest is None or (known is not None and not self._continues(newest, known)):
            return known
        return Head(newest.statement.sequence, newest.statement.digest, envelopes.key_of(newest.envelope))

    def append(self, name: str, body: Mapping[str, Any], key: Key) -> Stored:
        """Give `body` its place in the chain, sign it, write it, then the head. `name` is the stage or the kind."""
        with guard.exclusive(self._lock, who=f"the statement of {name}", waiting=lambda _: None):
            head = self.head()
            paths = self.paths()
            last = max(head.sequence if head else 0, _sequence(paths[-1]) if paths else 0)
            body = statements.chained(body, last + 1, head.digest if head else None)
            payload = statements.canonical(body)
            parsed = statements.parse(payload)
            envelope = envelopes.sign(payload, key)
            path = self.folder / f"{last + 1:06d}-{name}.json"
            if not _NAME.fullmatch(path.name):
                raise ValueError(f"{name!r} cannot be part of a statement's file name")
            write_bytes(path, envelopes.to_bytes(envelope))
            path.chmod(0o644)
            write_json(self._head, {"sequence": last + 1, "digest": parsed.digest, "key": key.fingerprint})
        return Stored(path, envelope, parsed)

    def latest_by_stage(self) -> dict[str, Statement]:
        """The newest statement of every stage."""
        found: dict[str, Statement] = {}
        done: set[str] = set()
        for path in reversed(self.paths()):
            if _name(path) in done:
                continue
            statement = self.read(path).statement
            if statement.stage:
                found.setdefault(statement.stage, statement)
            if _name(path) in (statement.stage, statement.kind):
                done.add(_name(path))
        return found

    def producer_of(self, out: str, md5: str) -> Statement | None:
        """The newest statement whose output `out` has DVC's digest `md5`."""
        return next((s.statement for s in self.newest_first() if s.statement.outputs.get(out) == md5), None)

    def _known_head(self) -> Head | None:
        if not self._head.is_file():
            return None
        try:
            known = read_json(self._head)
            return Head(int(known["sequence"]), str(known["digest"]), str(known["key"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._head} is damaged ({error!r}). Restore it from a copy; or remove it, and the chain goes on "
                f"from the newest statement in {self.folder}.",
                exit_code=1,
            ) from None

    def _continues(self, newest: Stored, known: Head) -> bool:
        """Whether the folder holds the known head, by the key that signed it, as its newest statement or before."""
        same = [newest] if newest.statement.sequence == known.sequence else []
        same += [self.read(path) for path in self.paths() if not same and _sequence(path) == known.sequence]
        return any((s.statement.digest, envelopes.key_of(s.envelope)) == (known.digest, known.key) for s in same)


def _sequence(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _name(path: Path) -> str:
    """The stage or kind in a file's name: where to look first, no more."""
    return path.stem.partition("-")[2]
