"""Write the statements of a stage, of a pipeline run, and of a registration.

Everything a statement names is hashed here, from the files themselves, and must agree with what the stage saw when it
started (its inputs) and when it ended (its outputs). A stage without a statement has failed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.lineage import hashing, keys, registrations, statement, surroundings
from tasks.lineage.hashing import FileDigest
from tasks.lineage.statement import Body, Statement
from tasks.lineage.store import StatementStore, Stored
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout
from tasks.runtime.stages import Stage

SWITCH = "AXON_LINEAGE"
SOURCES, CONSTRAINTS = "sources", "constraints.txt"
_DETERMINING = ("seed", "threads", "precision", "device")


def is_on() -> bool:
    """Whether statements are written: unless `AXON_LINEAGE` is off. Raises `UserError` for another value."""
    value = os.environ.get(SWITCH, "on").lower()
    if value not in ("on", "off"):
        raise UserError(f"{SWITCH}={value} in the environment must be on or off.")
    return value == "on"


def kind_of(dep: str, graph: Mapping[str, Stage]) -> str:
    """What a dependency of a stage is: data, environment or code."""
    if dep == CONSTRAINTS:
        return statement.ENVIRONMENT
    if dep == SOURCES or dep.startswith(SOURCES + "/"):
        return statement.DATA
    return statement.DATA if _made(graph, [dep]) else statement.CODE


def _made(graph: Mapping[str, Stage], deps: Iterable[str]) -> set[str]:
    """Those of `deps` that a stage writes, or that hold or are part of what one writes."""
    outs = [out for stage in graph.values() for out in stage.outs]
    return {
        dep for dep in deps if any(dep == out or dep.startswith(out + "/") or out.startswith(dep + "/") for out in outs)
    }


def prepare(checkout: Checkout, stage: Stage, inputs: Mapping[str, str]) -> None:
    """Find before the work what would keep the statement from being written: a bad key, a damaged statement."""
    store = StatementStore.of(checkout)
    with _writing(f"stage {stage.name}"):
        keys.signing_key(checkout)
        store.head()
        _producers(store, {dep: (inputs[dep], {}) for dep in _made(stages.read_stages(checkout.root), inputs)})


def record_stage(
    checkout: Checkout,
    stage: Stage,
    inputs: Mapping[str, str],
    values: Mapping[str, Any],
    outputs: Mapping[str, str],
    execution: str,
    pipeline: str | None,
    started: float,
    finished: float | None = None,
    *,
    workers: Sequence[Sequence[str]] | None = None,
) -> Stored:
    """Write the statement of an execution that has just ended.

    `inputs` and `outputs` are DVC's digests by path, `values` the whole parameters, `started` in seconds since 1970,
    `workers` the nodes of those that trained together, by every time that they were started.
    Raises `UserError` (exit code 1) where a file is no longer what was hashed then, or nothing can be written.
    """
    root, store = checkout.root, StatementStore.of(checkout)
    subjects, made = _outputs(root, stage, outputs)
    materials, producers = _inputs(root, stage, inputs, store)
    determines = {key: stages.value_at(values, key) if key in stage.params else None for key in _DETERMINING}
    body = statement.build_stage(
        stage=stage.name,
        command=stage.cmd,
        parameters={key: stages.value_at(values, key) for key in stage.params},
        subjects=subjects,
        outputs=made,
        determines={**determines, "workers": _n_workers(stage, values, workers)},
        environment=surroundings.environment(root, determines["device"]),
        materials=[*materials, *statement.behind(producers)],
        execution=execution,
        pipeline=pipeline,
        started=started,
        finished=finished or time.time(),
        who=surroundings.who(root),
    )
    with _writing(f"stage {stage.name}"):
        return store.append(stage.name, body, keys.signing_key(checkout))


def _n_workers(stage: Stage, values: Mapping[str, Any], started: Sequence[Sequence[str]] | None) -> int | list[int]:
    """How many processes trained it: one, where the stage does not depend on it; in order, where nodes were lost."""
    asked = int(stages.value_at(values, "workers")) if "workers" in stage.params else 1
    used = [len(nodes) for nodes in started or ()]
    return used if set(used) - {asked} else asked


def _outputs(
    root: Path, stage: Stage, outputs: Mapping[str, str]
) -> tuple[dict[str, FileDigest], dict[str, dict[str, Any]]]:
    """Every file of every output, and DVC's facts of each output."""
    subjects: dict[str, FileDigest] = {}
    made = {}
    for out, md5 in outputs.items():
        tree = _measured(root, out, md5, f"the output of stage {stage.name} changed after it was written")
        subjects.update(tree.named(out))
        made[out] = {"md5": md5, "size": tree.size, "n_files": len(tree.files)}
    return subjects, made


def _inputs(
    root: Path, stage: Stage, inputs: Mapping[str, str], store: StatementStore
) -> tuple[list[Body], list[Statement]]:
    """Data, code, environment and the code closure as materials, and the statements behind the data."""
    graph = stages.read_stages(root)
    made = _made(graph, inputs)
    materials = []
    behind: dict[str, tuple[str, Mapping[str, FileDigest]]] = {}
    code: dict[str, FileDigest] = {}
    code_paths = []
    for dep, md5 in inputs.items():
        kind = kind_of(dep, graph)
        tree = _measured(root, dep, md5, f"an input of stage {stage.name} changed while it ran")
        materials.append(statement.material(dep, kind, sha256=tree.sha256, md5=md5, size=tree.size))
        if kind == statement.CODE:
            code.update(tree.named(dep))
            code_paths.append(dep)
        elif dep in made:
            behind[dep] = (md5, tree.named(dep))
    return [*materials, _closure(root, code, code_paths)], list(_producers(store, behind).values())


def record_run(
    checkout: Checkout,
    *,
    parameters: Mapping[str, Any],
    targets: list[str],
    execution: str,
    started: float,
    finished: float | None = None,
) -> Stored:
    """Write the statement of a pipeline run that has ended: `dvc.lock` as it is now, and what made each stage in it."""
    root = checkout.root
    store = StatementStore.of(checkout)
    subjects: dict[str, FileDigest] = {}
    for name in ("dvc.lock", "dvc.yaml", "params.yaml"):
        subjects.update(hashing.tree(root / name).named(name))
    body = statement.build(
        "run",
        subjects=subjects,
        external={"targets": targets, "parameters": dict(parameters)},
        internal={},
        materials=statement.behind(list(current(checkout, store).values())),
        execution=execution,
        pipeline=execution,
        started=started,
        finished=finished or time.time(),
        who=surroundings.who(root),
    )
    with _writing("the run"):
        return store.append("run", body, keys.signing_key(checkout))


def record_registration(
    checkout: Checkout,
    *,
    name: str,
    version: str,
    aliases: tuple[str, ...],
    model: str,
    md5: str,
    pipeline: str | None,
    started: float,
    figures: Mapping[str, float | None] | None = None,
) -> Stored:
    """Write the statement of a new registered version; `model` is its directory below `models/`, `md5` its digest,
    `figures` what its evaluation found."""
    root, store = checkout.root, StatementStore.of(checkout)
    directory = f"models/{model}"
    tree = _measured(root, directory, md5, f"it is not what was registered as {name} version {version}")
    subjects = tree.named(directory)
    beside = f"lineage/models/{name}-{version}"
    for file in ("model.sig", "bom.cdx.json"):
        path = checkout.state.parent / beside / file
        if path.is_file():
            subjects.update(hashing.tree(path).named(f"{beside}/{file}"))
    made = current(checkout, store)
    producers = [store.producer_of(directory, md5), made.get("evaluate")]
    body = statement.build(
        "register",
        subjects=subjects,
        external={
            "parameters": {
                "name": name,
                "version": version,
                "aliases": list(aliases),
                "model": directory,
                "md5": md5,
                **({"figures": dict(figures)} if figures else {}),
            }
        },
        internal={},
        materials=statement.behind([producer for producer in producers if producer]),
        execution=None,
        pipeline=pipeline,
        started=started,
        finished=time.time(),
        who=surroundings.who(root),
    )
    with _writing(f"the registration of {name} version {version}"):
        return store.append("register", body, keys.signing_key(checkout))


def has_registration(
    checkout: Checkout, name: str, version: str, md5: str, aliases: Iterable[str] | None = None
) -> bool:
    """Whether there is a statement of this registered version; with `aliases`, whether these are stated too."""
    wanted = {"name": name, "version": version, "md5": md5}
    known = [stored.statement for stored in StatementStore.of(checkout).all()]
    stated = registrations.aliases(known, name)
    return any(s.kind == "register" and wanted.items() <= s.parameters.items() for s in known) and (
        aliases is None or set(aliases) == {alias for alias, held in stated.items() if held == version}
    )


def current(checkout: Checkout, store: StatementStore) -> dict[str, Statement]:
    """The newest statement of every stage whose outputs are those that `dvc.lock` records."""
    wanted = {
        name: {out["path"]: out["md5"] for out in entry.get("outs", ()) if "md5" in out}
        for name, entry in stages.read_lock(checkout.root).items()
    }
    found: dict[str, Statement] = {}
    for stored in store.newest_first():
        name = stored.statement.stage
        if name in wanted and name not in found and stored.statement.outputs == wanted[name]:
            found[name] = stored.statement
            if len(found) == len(wanted):
                break
    return {name: found[name] for name in wanted if name in found}


def _measured(root: Path, path: str, md5: str, otherwise: str) -> hashing.Tree:
    """The tree at `path` with SHA-256 digests; a `UserError` unless it still has DVC's digest `md5`."""
    try:
        tree, found = hashing.measure(root / path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: {otherwise}: {error.filename} is missing. Run `axon run` again.", exit_code=1
        ) from None
    if found != md5:
        raise UserError(f"{path}: {otherwise} (MD5 {md5} then, {found} now). Run `axon run` again.", exit_code=1)
    return tree


def _producers(
    store: StatementStore, inputs: Mapping[str, tuple[str, Mapping[str, FileDigest]]]
) -> dict[str, Statement]:
    """The newest statement behind each input that has one; `inputs` holds DVC's digest and the files of each."""
    found: dict[str, Statement] = {}
    for stored in store.newest_first() if inputs else ():
        made = stored.statement
        for dep in [dep for dep in inputs if dep not in found]:
            md5, files = inputs[dep]
            if made.outputs.get(dep) == md5:
                if not files.items() <= made.subjects.items():
                    raise UserError(
                        f"{dep} has the MD5 that {stored.path.name} records for it, but other SHA-256 digests: it was "
                        f"replaced on purpose. Delete {dep} and run `axon run`.",
                        exit_code=1,
                    )
                found[dep] = made
            elif made.kind == "stage" and files and files.items() <= made.subjects.items():
                found[dep] = made
        if len(found) == len(inputs):
            break
    return found


def _closure(root: Path, code: Mapping[str, FileDigest], paths: list[str]) -> Body:
    """All code the stage depends on as one material, with the commit that has it, or not (`dirty`)."""
    commit = surroundings.commit(root)
    is_dirty = commit is None or surroundings.is_dirty(root, paths)
    return statement.material(
        "code", statement.CLOSURE, sha256=hashing.listing_digest(code), commit=commit, dirty=is_dirty
    )


@contextmanager
def _writing(what: str) -> Iterator[None]:
    """Turns what keeps a statement from being written into one message that says so."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the statement of {what} cannot be written: {error}. Without it nothing would answer for what was made; "
            f"mend that (space, permissions) and run again, or switch statements off: {SWITCH}=off",
            exit_code=1,
        ) from None
