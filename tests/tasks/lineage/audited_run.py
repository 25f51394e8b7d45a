"""The small run as `axon run` leaves it, twice: `dvc.lock`, DVC's cache, MLflow, two registered versions, git."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from dvc.utils import dict_sha256
from dvc.utils.serialize import dumps_yaml, parse_yaml

from tasks import registry
from tasks.lineage import bom, keys, model_signing, recording, statement
from tasks.lineage.store import Stored
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout
from tasks.tracking.journal import Journal
from tasks.tracking.mlflow_store import Sender
from tests.tasks.lineage import small_run
from tests.tasks.lineage.workspace import git

IGNORED = "__pycache__/\n/.axon/\n/.dvc/cache/\n/data/\n/models/\n/metrics/\n"


def make(root: Path) -> Checkout:
    """Two runs; the second trains PPO anew with another coefficient, so that the first run's are earlier versions."""
    checkout = small_run.make(root)
    root = checkout.root
    (root / ".gitignore").write_text(IGNORED)
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    values = copy.deepcopy(small_run.VALUES)
    write_parameters(root, values)
    git(root, "init", "-q")
    git(root, "config", "user.email", "someone@example.org")
    git(root, "config", "user.name", "Someone")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "code")
    run(checkout, values, list(small_run.GRAPH))
    values["ppo"]["kl_coef"] = 1e-05  # a number in YAML 1.2 alone
    write_parameters(root, values)
    small_run.write_model(root, "ppo", "other weights of ppo")
    run(checkout, values, ["ppo", "evaluate"])
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "run")
    return checkout


def write_parameters(root: Path, values: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(values), sort_keys=False) + "# the parameters\n"
    (root / "params.yaml").write_text(text)


def run(checkout: Checkout, values: Mapping[str, Any], names: list[str]) -> None:
    """What the pipeline does around its stages, without engines."""
    graph = stages.read_stages(checkout.root)
    with Journal(checkout.journals, "pipeline") as record:
        record.start("pipeline", kind="pipeline", params=dict(values))
        began = time.time()
        for name in names:
            execute(checkout, graph[name], values, record.id)
        stated = recording.record_run(checkout, parameters=values, targets=[], execution=record.id, started=began)
        record.end("FINISHED", outputs={}, statement=stated.reference)
    Sender(checkout).deliver()
    register(checkout, record.id)


def execute(checkout: Checkout, stage: stages.Stage, values: Mapping[str, Any], pipeline: str | None) -> Stored:
    """One stage, whose outputs lie there already."""
    root = checkout.root
    params = {key: stages.value_at(values, key) for key in stage.params}
    inputs = stages.hash_inputs(root, stages.read_stages(root), stage.name)
    with Journal(checkout.journals, stage.name) as record:
        started = time.time()
        record.start(stage.name, kind="stage", parent=pipeline, params=params, inputs=inputs)
        outputs = {out: stages.digest(root / out) for out in stage.outs}
        record.metrics(0, {"work_s": 0.5})
        stated = recording.record_stage(
            checkout, stage, inputs, values, outputs, record.id, pipeline, started, finished=time.time()
        )
        record.end("FINISHED", outputs=outputs, statement=stated.reference)
    for out in stage.outs:
        cache(root, root / out)
    lock(root, stage, params)
    return stated


def cache(root: Path, path: Path) -> str:
    """Put a file or a directory into DVC's cache; its name there."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        entries = [{"md5": cache(root, file), "relpath": file.relative_to(path).as_posix()} for file in files]
        content = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True).encode()
        name = hashlib.md5(content).hexdigest() + ".dir"
    else:
        content = path.read_bytes()
        name = hashlib.md5(content).hexdigest()
    place = root / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        place.chmod(0o444)
    return name


def lock(root: Path, stage: stages.Stage, params: Mapping[str, Any]) -> None:
    """Write the stage's entry of `dvc.lock` and of the run cache, as DVC does."""
    path = root / "dvc.lock"
    tree: dict[str, Any] = {"schema": "2.0", "stages": {}}
    if path.is_file():
        tree = parse_yaml(path.read_text(), str(path))
    entry = {
        "cmd": stage.cmd,
        "deps": [_facts(root, dep) for dep in stage.deps],
        "params": {"params.yaml": dict(params)},
        "outs": [_facts(root, out) for out in stage.outs],
    }
    tree["stages"][stage.name] = entry
    path.write_text(dumps_yaml(tree))
    excluded = ["size", "nfiles"]
    value = dict_sha256(entry, exclude=excluded)
    key = dict_sha256({**entry, "outs": [out["path"] for out in entry["outs"]]}, exclude=excluded)
    place = root / ".dvc" / "cache" / "runs" / key[:2] / key / value
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(dumps_yaml(entry))


def _facts(root: Path, path: str) -> dict[str, Any]:
    files = [f for f in (root / path).rglob("*") if f.is_file()] if (root / path).is_dir() else [root / path]
    facts = {
        "path": path,
        "hash": "md5",
        "md5": stages.digest(root / path),
        "size": sum(f.stat().st_size for f in files),
    }
    return {**facts, "nfiles": len(files)} if (root / path).is_dir() else facts


def register(checkout: Checkout, pipeline: str) -> None:
    """The version with its bill of materials, signature and statement."""
    version = registry.register(checkout)
    path = bom.write(checkout, version.version, f"models/{version.model}")
    key = keys.private_path(checkout)
    model_signing.sign(checkout.root / "models" / version.model, key, path.with_name("model.sig"))
    recording.record_registration(
        checkout,
        name=registry.NAME,
        version=version.version,
        aliases=version.aliases,
        model=version.model,
        md5=version.md5,
        pipeline=pipeline,
        started=time.time(),
    )


def move(checkout: Checkout, root: Path) -> Checkout:
    """A copy of the checkout at `root`, whose MLflow store says so."""
    shutil.copytree(checkout.root, root)
    old, new = checkout.root.as_uri(), root.resolve().as_uri()
    places = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "source",
    }
    connection = sqlite3.connect(root / ".axon" / "mlflow.db")
    for table, column in [*places.items(), ("model_versions", "storage_location")]:
        connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (old, new))
    connection.commit()
    connection.close()
    return Checkout(root.resolve())


def add_statement(checkout: Checkout, kind: str, parameters: Any) -> Stored:
    """Append a statement of a kind that has no recorder here."""
    from tasks.lineage import hashing
    from tasks.lineage.store import StatementStore

    body = statement.build(
        kind,
        subjects=hashing.tree(checkout.root / "dvc.lock").named("dvc.lock"),
        external={"parameters": parameters},
        internal={},
        materials=[],
        execution=None,
        pipeline=None,
        started=1.0,
        finished=2.0,
        who={"user": "someone"},
    )
    return StatementStore.of(checkout).append(kind, body, keys.signing_key(checkout))
