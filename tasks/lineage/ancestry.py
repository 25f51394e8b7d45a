"""All statements behind a statement, and what among its ancestors no statement speaks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tasks.lineage.hashing import FileDigest, listing_digest
from tasks.lineage.statement import DATA, Statement

RAW = "sources"  # the folder of data that no stage makes


@dataclass(frozen=True)
class Ancestry:
    """`statements`: the one asked for and all behind it, in the order of the chain. `unstated`: data that went into
    one of them without a statement that says how it was made, each as "PATH, read by STAGE"."""

    statements: tuple[Statement, ...]
    unstated: tuple[str, ...]


def trace(target: Statement, known: Iterable[Statement]) -> Ancestry:
    """The ancestry of `target` among the `known` statements. Signatures are not verified here."""
    by_digest = {statement.digest: statement for statement in known}
    found = {target.digest: target}
    waiting, unstated = [target], set()
    while waiting:
        statement = waiting.pop()
        behind = [by_digest[digest] for digest in statement.statements_behind if digest in by_digest]
        who = statement.stage or statement.kind
        unstated |= {f"statement {d}, named by {who}" for d in statement.statements_behind if d not in by_digest}
        unstated |= {f"{path}, read by {who}" for path in _unexplained(statement, behind)}
        waiting += [other for other in behind if other.digest not in found]
        found.update((other.digest, other) for other in behind)
    ordered = sorted(found.values(), key=lambda statement: statement.sequence)
    return Ancestry(tuple(ordered), tuple(sorted(unstated)))


def _unexplained(statement: Statement, behind: Iterable[Statement]) -> list[str]:
    """Data inputs that none of the statements behind made: as an output, a part of one, or a folder of several."""
    makers = list(behind)
    return [
        path
        for path, digests in statement.inputs.items()
        if digests["kind"] == DATA
        and path.partition("/")[0] != RAW
        and not any(
            digest_of(maker, path) == digests["sha256"] or any(out.startswith(path + "/") for out in maker.outputs)
            for maker in makers
        )
    ]


def files_of(statement: Statement, path: str) -> dict[str, FileDigest]:
    """The subjects at and below `path`, by their path in it ("" for `path` itself)."""
    return {
        name.removeprefix(path).removeprefix("/"): digest
        for name, digest in statement.subjects.items()
        if name == path or name.startswith(path + "/")
    }


def digest_of(statement: Statement, path: str) -> str | None:
    """SHA-256 of a file, or of the listing of a directory, that the statement speaks for; None if it does not."""
    files = files_of(statement, path)
    if not files:
        return None
    return files[""].sha256 if "" in files else listing_digest(files)
