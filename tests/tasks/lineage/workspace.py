"""A checkout of two stages, small enough to count by hand: `make` writes a model from sources, `use` reads it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tasks.lineage import recording, statement
from tasks.lineage.hashing import FileDigest
from tasks.lineage.store import Stored
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout

VALUES: dict[str, Any] = {"seed": 7, "threads": 2, "precision": "float32", "device": "cpu", "use": {"rate": 0.1}}
FILES = {
    "sources/README.md": "none\n",
    "constraints.txt": "cryptography==0\npytest==0\nno-such-library==1\n",
    "tasks/steps/make.py": "A = 1\n",
    "tasks/training/loop.py": "B = 2\n",
    "tasks/training/__pycache__/loop.pyc": "cache",
    "params.yaml": yaml.safe_dump(VALUES),
    "models/small/model.safetensors": "weights",
    "models/small/config.json": "{}",
    "metrics/make.json": "{}\n",
    "metrics/use.json": "[]\n",
    ".gitignore": "__pycache__/\n/.axon/\n/models/\n/metrics/\n",
}
GRAPH = {
    "make": {
        "cmd": "python -m flows.make",
        "deps": ["constraints.txt", "sources", "tasks/steps/make.py", "tasks/training"],
        "params": ["seed"],
        "outs": ["models/small"],
        "metrics": ["metrics/make.json"],
    },
    "use": {
        "cmd": "python -m flows.use",
        "deps": ["models/small", "tasks/training"],
        "params": ["seed", "threads", "precision", "device", "use"],
        "metrics": ["metrics/use.json"],
    },
}


def make_checkout(root: Path) -> Checkout:
    """The files above, committed to git."""
    root = root.resolve()
    for name, text in {**FILES, "dvc.yaml": yaml.safe_dump({"stages": GRAPH}, sort_keys=False)}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    git(root, "init", "-q")
    git(root, "config", "user.email", "someone@example.org")
    git(root, "config", "user.name", "Someone")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "all")
    return Checkout(root)


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def record(checkout: Checkout, name: str, **changed: Any) -> Stored:
    """`record_stage` as a stage calls it when it has ended; `changed` replaces arguments."""
    stage = stages.read_stages(checkout.root)[name]
    root = checkout.root
    arguments: dict[str, Any] = {
        "inputs": changed.get("inputs") or {dep: stages.digest(root / dep) for dep in stage.deps},
        "values": VALUES,
        "outputs": changed.get("outputs") or {out: stages.digest(root / out) for out in stage.outs},
        "execution": "ab" * 16,
        "pipeline": None,
        "started": time.time() - 1,
    }
    return recording.record_stage(checkout, stage, **{**arguments, **changed})


def write_lock(checkout: Checkout) -> None:
    """`dvc.lock` as DVC would write it now."""
    entries = {
        stage.name: {
            "cmd": stage.cmd,
            "outs": [{"path": o, "hash": "md5", "md5": stages.digest(checkout.root / o)} for o in stage.outs],
        }
        for stage in stages.read_stages(checkout.root).values()
    }
    (checkout.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}))


def plain_body(kind: str = "run", files: Mapping[str, FileDigest] | None = None) -> dict[str, Any]:
    """A statement that says as little as is allowed."""
    return statement.build(
        kind,
        subjects=files or {"dvc.lock": FileDigest("0" * 64, 3)},
        external={},
        internal={},
        materials=[],
        execution=None,
        pipeline=None,
        started=1.5,
        finished=2.25,
        who={"user": "someone"},
    )
