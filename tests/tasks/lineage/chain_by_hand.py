"""A chain of statements written out by hand: every output is one file whose content the test names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, RenderableType

from tasks.lineage import envelope, keys, statement
from tasks.lineage.hashing import FileDigest
from tasks.lineage.statement import Statement
from tasks.runtime.checkout import Checkout

ENVIRONMENT = {
    "python": "3.11.7",
    "libraries": {"torch": "2.13.0", "numpy": "2.4.6"},
    "machine": "x86_64",
    "processor": "A processor",
    "flags": ["avx2", "fma"],
    "accelerator": None,
    "system": "Linux 6.1",
}
AT = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC
SOURCES, CODE, PINS = "raw", "def step(): ...", "torch==2.13.0"


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Chain:
    """Statements in order; `texts` holds the content of every file that one of them speaks for."""

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self.texts: dict[str, str] = {}

    def stage(
        self,
        name: str,
        execution: str,
        *,
        reads: Mapping[str, str],
        makes: Mapping[str, str],
        behind: Sequence[Statement] = (),
        parameters: Mapping[str, Any] | None = None,
        code: str = CODE,
        environment: Mapping[str, Any] | None = None,
        pipeline: str | None = None,
        command: str | None = None,
        commit: str | None = "c" * 40,
    ) -> Statement:
        """An execution with an id that begins with `execution`; `reads` and `makes`: path → content."""
        kinds = {path: "data" for path in reads}
        inputs = {**reads, f"tasks/steps/{name}.py": code, "constraints.txt": PINS}
        kinds |= {f"tasks/steps/{name}.py": "code", "constraints.txt": "environment"}
        materials = [
            statement.material(path, kinds[path], sha256=sha256(text), md5=md5(text)) for path, text in inputs.items()
        ]
        materials.append(statement.material("code", "closure", sha256=sha256(code), commit=commit, dirty=False))
        self.texts |= inputs | dict(makes)
        return self._add(
            statement.build_stage(
                stage=name,
                command=command or f"python -m flows.{name}",
                parameters=parameters or {},
                subjects={path: FileDigest(sha256(text), len(text)) for path, text in makes.items()},
                outputs={path: {"md5": md5(text), "size": len(text), "n_files": 1} for path, text in makes.items()},
                determines={"seed": None, "workers": 1},
                environment=environment or ENVIRONMENT,
                materials=[*materials, *statement.behind(behind)],
                execution=(execution * 32)[:32],
                pipeline=pipeline,
                started=AT + 100 * len(self.statements),
                finished=AT + 100 * len(self.statements) + 72,
                who={"user": "ada", "host": "engine"},
            )
        )

    def run(self, pipeline: str, behind: Sequence[Statement]) -> Statement:
        return self._other("run", {"dvc.lock": "lock"}, {"targets": [], "parameters": {}}, behind, pipeline)

    def register(self, version: str, model: str, text: str, behind: Sequence[Statement]) -> Statement:
        said = {"name": "axon-chat", "version": version, "aliases": ["champion"], "model": model, "md5": md5(text)}
        return self._other("register", {model: text}, {"parameters": said}, behind, None)

    def decide(self, action: str, version: str, champion: str, **said: Any) -> Statement:
        """A decision on `version`; figures of the gate and the like in `said`."""
        facts = {"name": "axon-chat", "action": action, "version": version, "champion": champion, "aliases": {}}
        beside = {f"lineage/models/axon-chat-{version}/bom.json": "{}"}
        return self._other("decide", beside, {"parameters": {**facts, "reason": f"{action} by hand", **said}}, [], None)

    def forget(self, version: str, text: str) -> Statement:
        """A request to forget records that `version` with the model `text` contains."""
        said = {"versions": [{"version": version, "md5": md5(text)}]}
        return self._other("forget", {"sources/removals.json": "{}"}, {"parameters": said}, [], None)

    def _other(
        self, kind: str, subjects: dict[str, str], said: dict[str, Any], behind: Sequence[Statement], run: str | None
    ) -> Statement:
        return self._add(
            statement.build(
                kind,
                subjects={path: FileDigest(sha256(text), len(text)) for path, text in subjects.items()},
                external=said,
                internal={},
                materials=statement.behind(behind),
                execution=run,
                pipeline=run,
                started=AT + 100 * len(self.statements),
                finished=AT + 100 * len(self.statements) + 1,
                who={"user": "ada", "host": "engine"},
            )
        )

    def _add(self, body: dict[str, Any]) -> Statement:
        previous = self.statements[-1].digest if self.statements else None
        chained = statement.chained(body, len(self.statements) + 1, previous)
        parsed = statement.parse(statement.canonical(chained))
        self.statements.append(parsed)
        return parsed

    def write(self, root: Path) -> Checkout:
        """A checkout with these statements, the newest content of every file, and `dvc.lock` for the newest stages."""
        checkout = Checkout(root.resolve())
        key = keys.signing_key(checkout)
        folder = checkout.root / "lineage" / "statements"
        folder.mkdir(parents=True, exist_ok=True)
        for one in self.statements:
            path = folder / f"{one.sequence:06d}-{one.stage or one.kind}.json"
            path.write_bytes(envelope.to_bytes(envelope.sign(one.payload, key)))
        for name, text in self.texts.items():
            path = checkout.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        newest = {str(one.stage): one for one in self.statements if one.stage}
        write_yaml(
            checkout.root / "dvc.yaml",
            {
                name: {"cmd": f"python -m flows.{name}", "deps": list(one.inputs), "outs": list(one.outputs)}
                for name, one in newest.items()
            },
        )
        write_lock(checkout.root, newest)
        return checkout


def write_lock(root: Path, stages: Mapping[str, Statement]) -> None:
    write_yaml(
        root / "dvc.lock",
        {
            name: {"outs": [{"path": path, "md5": digest} for path, digest in one.outputs.items()]}
            for name, one in stages.items()
        },
    )


def write_yaml(path: Path, stages: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump({"stages": dict(stages)}, sort_keys=False))


def small() -> Chain:
    """Raw data → `data` → `sft` → `evaluate`, a run of them, and the model registered as version 1."""
    chain = Chain()
    pipeline = "9e" * 16
    data = chain.stage(
        "data",
        "d1",
        reads={"sources": SOURCES},
        makes={"data/text.parquet": "texts", "data/manifest.json": "{}"},
        parameters={"seed": 7, "data": {"filters": {"min_chars": 32}}},
        pipeline=pipeline,
    )
    sft = chain.stage(
        "sft",
        "5f",
        reads={"data/text.parquet": "texts"},
        makes={"models/sft": "weights", "metrics/sft.json": "[1]"},
        behind=[data],
        parameters={"seed": 7, "sft": {"learning_rate": 0.1, "n_steps": 3, "batch_size": None}},
        pipeline=pipeline,
    )
    evaluate = chain.stage(
        "evaluate",
        "e7",
        reads={"models/sft": "weights", "data/text.parquet": "texts"},
        makes={"metrics/evaluate.json": "[2]"},
        behind=[data, sft],
        parameters={"seed": 7},
        pipeline=pipeline,
    )
    chain.run(pipeline, [data, sft, evaluate])
    chain.register("1", "models/sft", "weights", [sft, evaluate])
    return chain


def plain(renderable: RenderableType) -> str:
    """What is printed, without colours."""
    console = Console(width=300, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
