"""A run of four stages over a handful of records, with every statement written, and the whole counted by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks.data import records
from tasks.data.records import Demonstration, TextRecord
from tasks.lineage import recording
from tasks.lineage.statement import Statement
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout

EMAIL = "jane.roe@cs.university.edu"
VALUES: dict[str, Any] = {"seed": 7, "threads": 1, "precision": "float32", "device": "cpu", "ppo": {"kl_coef": 0.05}}
GRAPH: dict[str, dict[str, Any]] = {
    "data": {
        "deps": ["constraints.txt", "sources", "tasks/steps/data.py"],
        "outs": ["data/demonstrations.parquet", "data/rejects.parquet", "data/text.parquet"],
    },
    "sft": {"deps": ["data/text.parquet", "tasks/steps/sft.py"], "outs": ["models/sft"]},
    "ppo": {
        "deps": ["data/demonstrations.parquet", "models/sft", "tasks/steps/ppo.py"],
        "params": ["seed", "threads", "precision", "device", "ppo"],
        "outs": ["models/ppo"],
    },
    "evaluate": {
        "deps": ["data/demonstrations.parquet", "models/ppo", "models/sft"],
        "metrics": ["metrics/evaluate.json"],
    },
}
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "vocab_size": 262}
FIGURES = {
    "exact_match": 0.5, "exact_match_low": 0.25, "exact_match_high": 0.75,
    "win_rate_vs_sft": 0.625, "win_rate_low": 0.5, "win_rate_high": 0.7, "bits_per_byte": 2.5, "chrf": None,
    "n_maths": 4, "by_task": {"addition": {"n": 4, "exact_match": 0.5, "well_formed": 1.0}},
}  # fmt: skip


def text(content: str, split: str = "train", **changed: str) -> TextRecord:
    known = {"source": "python_docs", "license": "BSD-3-Clause", "package": "numpy", "version": "2.4.6"}
    return TextRecord(group="", split=split, text=content, **{**known, **changed})


def question(prompt: str, answer: str, split: str = "train", **changed: str) -> Demonstration:
    known = {"source": "maths", "license": "CC0-1.0", "task": "addition", "target": answer}
    return Demonstration(group="", split=split, prompt=prompt, answer=answer, **{**known, **changed})


TEXTS = (
    text("Return the sorted unique elements of an array."),
    text(f"Created by Jane Roe {EMAIL} a while ago."),
    text("Draw a line between two points of a figure.", package="matplotlib", version="3.11.2", license="PSF-2.0"),
    text("Solve a linear matrix equation.", split="test"),
)
QUESTIONS = (
    question("Add 2 and 3.", "5"),
    question("Add 7 and 1.", "8", split="preference"),
    question("Add 4 and 4.", "8", split="test"),
)


def write_data(root: Path, texts: Sequence[TextRecord] = TEXTS, questions: Sequence[Demonstration] = QUESTIONS) -> None:
    (root / "data").mkdir(exist_ok=True)
    records.write(root / "data" / "text.parquet", records.to_columns(texts, records.TEXT_COLUMNS))
    columns = records.to_columns(questions, records.DEMONSTRATION_COLUMNS)
    records.write(root / "data" / "demonstrations.parquet", columns)
    (root / "data" / "rejects.parquet").write_bytes(b"not read by anyone here")


def write_model(root: Path, name: str, weights: str) -> None:
    folder = root / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_text(weights)


def make(root: Path) -> Checkout:
    """The files of the run, without statements."""
    root = root.resolve()
    write_data(root)
    write_model(root, "sft", "weights of sft")
    write_model(root, "ppo", "weights of ppo")
    tree = {
        name: {"cmd": f"python -m flows.{name}", "params": ["seed"], **entry}
        for name, entry in GRAPH.items()
    }  # fmt: skip
    for path, content in {
        "dvc.yaml": yaml.safe_dump({"stages": tree}, sort_keys=False),
        "constraints.txt": "numpy==0\npytest==0\n",
        "sources/README.md": "none\n",
        **{f"tasks/steps/{name}.py": f"# {name}\n" for name in ("data", "sft", "ppo")},
        "metrics/evaluate.json": json.dumps({"ppo": FIGURES, "dpo": {**FIGURES, "win_rate_vs_sft": 0.1}}),
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return Checkout(root)


def record(checkout: Checkout, *names: str, at: float = 1_700_000_000.0) -> dict[str, Statement]:
    """Write the statements of the stages named (default: all), one minute after another."""
    graph, made = stages.read_stages(checkout.root), {}
    for i, name in enumerate(names or GRAPH):
        stage = graph[name]
        made[name] = recording.record_stage(
            checkout,
            stage,
            {dep: stages.digest(checkout.root / dep) for dep in stage.deps},
            VALUES,
            {out: stages.digest(checkout.root / out) for out in stage.outs},
            execution=f"{name:_<32}",
            pipeline=None,
            started=at + 60 * i,
            finished=at + 60 * i + 30,
        ).statement
    return made
