"""A path as a target: an output or a part of one, an input that no stage makes, or a copy of something known."""

from __future__ import annotations

import os
from pathlib import Path

from tasks.errors import UserError
from tasks.lineage import hashing
from tasks.lineage.ancestry import files_of
from tasks.lineage.graph import Artifact, Graph
from tasks.lineage.statement import Statement
from tasks.lineage.target import Target, itself, near, output
from tasks.lineage.wording import short, size
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout

_HASH_AT_MOST = 1 << 28  # bytes: more takes longer than an answer should


def resolve(graph: Graph, checkout: Checkout, here: Path, text: str) -> Target | None:
    """The target at the path `text`, taken from `here`, then from the root; None if nothing is known of it.

    Raises `UserError` for a folder of several outputs, and for a part of an output that never was in it.
    """
    for path in _below_root(checkout.root, here, text):
        found = _output(graph, checkout, path) or _input(graph, checkout, path) or _subject(graph, path)
        if found:
            return found
    places = [place for place in (here / text, checkout.root / text) if os.path.isfile(place)]
    return _copy(graph, places[0]) if places else None


def _below_root(root: Path, here: Path, text: str) -> list[str]:
    """`text` as a path below the root, as seen from `here` and from the root."""
    found = []
    for base in (here, root):
        absolute = Path(os.path.normpath(base / text))
        if absolute != root and absolute.is_relative_to(root):
            found.append(absolute.relative_to(root).as_posix())
    return list(dict.fromkeys(found))


def _output(graph: Graph, checkout: Checkout, path: str) -> Target | None:
    outs = dict.fromkeys(artifact.path for artifact in graph.makers)
    out = next((out for out in outs if path == out or path.startswith(out + "/")), None)
    if out is None:
        parts = [out for out in outs if out.startswith(path + "/")]
        if len(parts) > 1:
            raise UserError(f"{path} holds several outputs; name one of them: {', '.join(sorted(parts))}.")
        out = path = parts[0] if parts else ""
    if not out:
        return None
    artifact, notes = _version(graph, checkout, out)
    maker = graph.makers[artifact][-1]
    if path == out:
        return output(artifact, maker, *notes)
    files = files_of(maker, path)
    if not files:
        close = near(path, maker.subjects)
        meant = (
            f"did you mean {' or '.join(close)}?" if close else f"`axon lineage {out} --format json` lists its files."
        )
        raise UserError(f"{out} has no {path.removeprefix(out + '/')}; {meant}")
    digest = f", SHA-256 {files[''].sha256}" if "" in files else ""
    return output(artifact, maker, f"{path} is a part of {out}{digest}", *notes)


def _version(graph: Graph, checkout: Checkout, out: str) -> tuple[Artifact, list[str]]:
    """The version of an output that is meant: the one that lies here, that of `dvc.lock`, or the newest."""
    known = [artifact for artifact in graph.makers if artifact.path == out]
    newest = max(known, key=lambda artifact: graph.makers[artifact][-1].sequence)
    lock = stages.read_lock(checkout.root)
    recorded = next((o.get("md5") for e in lock.values() for o in e.get("outs", ()) if o["path"] == out), None)
    chosen, notes = next((a for a in known if a.digest == recorded), newest), []
    if recorded and chosen.digest != recorded:
        notes.append(f"no statement speaks for {out} as dvc.lock records it ({short(recorded)}); the newest is shown")
    here = checkout.root / out
    if not here.exists():
        return chosen, [
            *notes,
            f"{out} is not in the workspace now; `dvc checkout {out}` brings back what is in the cache",
        ]
    if _size(here) > _HASH_AT_MOST:
        return chosen, [*notes, f"{out} is large and was not hashed; `axon audit {out}` does that"]
    found = stages.digest(here)
    if found == chosen.digest:
        return chosen, notes
    actual = next((artifact for artifact in known if artifact.digest == found), None)
    if actual:
        return actual, [f"dvc.lock records another version of {out} than the one in the workspace, which is shown"]
    return chosen, [
        *notes,
        f"{out} in the workspace is not this: it was altered ({short(found)}) and nothing speaks for it",
    ]


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _input(graph: Graph, checkout: Checkout, path: str) -> Target | None:
    """Code, raw data or the environment, as the newest execution that read it did."""
    artifacts: dict[str, Artifact] = {}
    for statement in graph.kind("stage"):
        for dep, digests in statement.inputs.items():
            if path == dep or path.startswith(dep + "/"):
                artifacts[dep] = Artifact(dep, digests["md5"] or digests["sha256"])
    if not artifacts:
        return None
    notes = [f"{path} is read as a part of {' and of '.join(artifacts)}"] if path not in artifacts else []
    for artifact in artifacts.values():
        here = checkout.root / artifact.path
        if not here.exists() or (_size(here) <= _HASH_AT_MOST and stages.digest(here) != artifact.digest):
            notes.append(f"{artifact.path} has changed since an execution read it last; what was read then is shown")
    name = f"{path} {short(next(iter(artifacts.values())).digest)}" if path in artifacts else path
    return Target(kind="input", name=name, artifacts=tuple(artifacts.values()), notes=tuple(notes))


def _subject(graph: Graph, path: str) -> Target | None:
    """A file that another statement than an execution's speaks for: `dvc.lock`, a model's signature."""
    speaking = [s for s in graph.statements.values() if path in s.subjects and s.kind in ("run", "register")]
    return itself(speaking[-1], f"the newest statement that speaks for {path}") if speaking else None


def _copy(graph: Graph, place: Path) -> Target | None:
    """A file under another name, known by its content."""
    if place.stat().st_size > _HASH_AT_MOST:
        raise UserError(f"{place} is no path of an output, and with {size(place.stat().st_size)} too large to be known "
                        "by its content here.")  # fmt: skip
    sha256 = hashing.sha256_file(place)
    for statement in reversed(graph.kind("stage")):
        for name, digest in statement.subjects.items():
            if digest.sha256 == sha256:
                return _holding(statement, name, f"{place} is a copy of {name}, SHA-256 {sha256}")
    return None


def _holding(statement: Statement, name: str, note: str) -> Target:
    out = next(out for out in statement.outputs if name == out or name.startswith(out + "/"))
    return output(Artifact(out, statement.outputs[out]), statement, note)
