"""A checkout of three stages with the real DVC and MLflow, in which one record was planted in several guises.

`data` and `tokenizer` are the real steps; `pretrain` writes a small file that depends on every token. Statements and
the record index are written as a stage writes them; `run` does what `axon run` does, without its servers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import yaml

from tasks import registry
from tasks.data import records
from tasks.lineage import index, recording
from tasks.parameters import Parameters, load
from tasks.runtime import reproduction, stages
from tasks.runtime.checkout import Checkout
from tasks.steps import data, tokenizer
from tasks.tracking import mlflow_store
from tests.helpers import REPOSITORY, make_context, make_tree
from tests.tasks.data import corpus

DATA_OUTS = [f"data/{name}" for name in ("demonstrations.parquet", "manifest.json", "rejects.parquet", "text.parquet")]
GRAPH = {
    "data": {"deps": ["constraints.txt", "sources"], "params": ["seed", "data"], "outs": DATA_OUTS},
    "tokenizer": {
        "deps": ["data/demonstrations.parquet", "data/text.parquet", "sources/tokenizer"],
        "params": ["tokenizer"],
        "outs": ["tokenizer", "tokens"],
        "metrics": ["metrics/tokenizer.json"],
    },
    "pretrain": {"deps": ["tokenizer", "tokens"], "params": ["seed", "pretrain"], "outs": ["models/pretrain"]},
}
OVERRIDES = corpus.OVERRIDES | {"tokenizer.vocab_size": 300, "pretrain.seq_len": 16, "pretrain.n_steps": 400}
PLANTED_ID = records.record_id("files:sources/own.jsonl", corpus.PLANTED)


def make(root: Path) -> Checkout:
    """The checkout with everything planted, before any run."""
    root = root.resolve()
    root.mkdir(parents=True)
    tree = {
        name: {"cmd": f"{sys.executable} -m tests.tasks.lineage.forget_workspace {name}", **entry}
        for name, entry in GRAPH.items()
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": tree}, sort_keys=False))
    (root / "params.yaml").write_text(yaml.safe_dump(make_tree(OVERRIDES), sort_keys=False))
    (root / "constraints.txt").write_text("numpy==0\n")
    (root / ".dvcignore").write_text("__pycache__/\n")
    (root / ".gitignore").write_text("".join(f"/{folder}/\n" for folder in (".axon", "data", "tokenizer", "tokens")))
    corpus.planted(root)
    (root / "sources" / "tokenizer").mkdir()
    (root / "sources" / "tokenizer" / "README.md").write_text("none\n")
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n    autostage = false\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return Checkout(root)


def parameters(checkout: Checkout) -> Parameters:
    return load(checkout.root)


def run(checkout: Checkout) -> list[str]:
    """Reproduce what is stale, with statements, index and journals; returns the stages that ran."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    logging.getLogger("dvc").setLevel(logging.ERROR)
    graph = stages.read_stages(checkout.root)
    ran = []
    with contextlib.chdir(checkout.root):  # DVC looks for the stage where it is called
        for name in graph:
            if reproduction.reproduce(checkout.root, name):
                ran.append(name)
                _record(checkout, graph[name])
    return ran


def _record(checkout: Checkout, stage: stages.Stage) -> None:
    root, execution = checkout.root, uuid.uuid4().hex
    values = load(root).model_dump(mode="json")
    inputs = {dep: stages.digest(root / dep) for dep in stage.deps}
    outputs = {out: stages.digest(root / out) for out in stage.outs}
    recording.record_stage(checkout, stage, inputs, values, outputs, execution, None, time.time() - 1)
    index.build(root, checkout.state, stage.name, execution, values, outputs, inputs)
    checkout.journals.mkdir(parents=True, exist_ok=True)
    events = [
        {"event": "start", "time": 1.0, "name": stage.name, "id": execution},
        {"event": "metrics", "time": 2.0, "step": 0, "values": {"work_s": 60.0}},
        {"event": "end", "time": 3.0, "status": "FINISHED"},
    ]
    path = checkout.journals / f"{time.time_ns()}-{stage.name}-{execution}.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    (checkout.checkpoints / f"{stage.name}-{execution[:16]}").mkdir(parents=True)
    (checkout.checkpoints / f"{stage.name}-{execution[:16]}" / "000000.json").write_text(json.dumps(corpus.PLANTED))


def register(checkout: Checkout) -> str:
    """Log and register the model as a run and `registry` do; returns the version, which gets both aliases."""
    import mlflow

    mlflow.set_tracking_uri(checkout.tracking_uri)  # the registry asks it for the logged model
    directory = checkout.root / "models" / "pretrain"
    md5 = stages.digest(directory)
    store = mlflow_store.client(checkout)
    experiment = mlflow_store.experiment_id(store, checkout)
    logged = store.create_logged_model(experiment, name="pretrain", tags={"axon.digest": md5}, model_type="llm")
    store.log_model_artifacts(logged.model_id, str(directory))
    store.finalize_logged_model(logged.model_id, "READY")
    if not store.search_registered_models():
        store.create_registered_model(registry.NAME)
    version = store.create_model_version(
        registry.NAME,
        source=logged.artifact_location,
        model_id=logged.model_id,
        tags={"axon.digest": md5, "axon.stage": "pretrain"},
    )
    for alias in (registry.CHALLENGER, registry.CHAMPION):
        store.set_registered_model_alias(registry.NAME, alias, version.version)
    return str(version.version)


def holding(folder: Path, words: tuple[str, ...] = corpus.TELLTALES) -> list[str]:
    """The files below `folder` that hold one of the words: in their bytes, or in what Parquet has compressed."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if content[:4] == b"PAR1":
            content += repr(records.read(path)).encode()
        if any(word.encode() in content for word in words):
            found.append(path.relative_to(folder).as_posix())
    return found


def snapshot(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith("mlflow.db")]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _step(name: str) -> None:
    """What a stage's command runs, in the checkout."""
    root = Path.cwd()
    if name == "pretrain":
        tokens = b"".join(path.read_bytes() for path in sorted((root / "tokens").glob("*.npy")))
        (root / "models" / "pretrain").mkdir(parents=True)
        (root / "models" / "pretrain" / "model.safetensors").write_text(hashlib.sha256(tokens).hexdigest())
        (root / "models" / "pretrain" / "tokenizer.json").write_bytes((root / "tokenizer/tokenizer.json").read_bytes())
        return
    step: Any = {"data": data, "tokenizer": tokenizer}[name]
    step.run(make_context(root, load(root), checkpoints=root / ".axon" / "checkpoints" / "steps"))


if __name__ == "__main__":
    _step(sys.argv[1])
