"""A copy of the repository in which the whole pipeline runs at a tiny size with the real engines."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from tasks.runtime import guard
from tests.helpers import REPOSITORY, make_tree

OUTPUTS = ("data", "tokenizer", "tokens", "models", "preferences", "metrics", "evaluation", "report")
TINY = {
    "data.python_docs.packages": ["numpy"],
    "data.python_docs.max_questions": 200,
    "data.maths.kinds": ["addition", "comparison", "latex"],
    "data.maths.max_questions": 1200,
    "data.splits": {"preference": 0.25, "validation": 0.1, "test": 0.15},
    "preferences.temperature": 1.0,
    "tokenizer.vocab_size": 512,
    "model.d_model": 48,
    "model.n_layers": 2,
    "model.heads": 4,
    "model.kv_heads": 2,
    "model.d_feed_forward": 96,
    "model.max_positions": 128,
    "pretrain.n_steps": 40,
    "pretrain.batch_size": 4,
    "pretrain.seq_len": 64,
    "pretrain.warmup_steps": 4,
    "pretrain.evaluate_every": 20,
    "pretrain.n_validation_batches": 2,
    "sft.n_steps": 150,
    "sft.batch_size": 8,
    "sft.seq_len": 128,
    "sft.warmup_steps": 4,
    "sft.evaluate_every": 50,
    "sft.n_validation_batches": 2,
    "preferences.n_prompts": 96,
    "preferences.n_validation_prompts": 32,
    "preferences.prompt_tokens": 80,
    "preferences.max_new_tokens": 16,
    "preferences.batch_size": 32,
    "reward_model.n_epochs": 1,
    "reward_model.warmup_steps": 1,
    "ppo.n_iterations": 6,
    "ppo.prompts_per_iteration": 16,
    "ppo.minibatch_size": 8,
    "dpo.warmup_steps": 1,
    "evaluate.n_maths": 24,
    "evaluate.n_docs": 8,
    "evaluate.batch_size": 16,
    "evaluate.n_text_batches": 4,
    "evaluate.n_bootstrap": 200,
    "runtime.checkpoint_every_s": 0.1,
}


@dataclass
class Workspace:
    """A checkout of its own: `root` holds the code, `axon` and `dvc` run in it."""

    root: Path

    @classmethod
    def create(cls, root: Path) -> Workspace:
        root.mkdir(parents=True)
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            if name == "dvc.lock" or name.startswith("lineage/"):
                continue  # what a run in the repository left, which a contributor may keep under git or not
            source = REPOSITORY / name
            if source.is_file():
                target = root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
        subprocess.run(["git", "init", "-q"], cwd=root, check=True)
        workspace = cls(root)
        workspace.set_parameters(TINY)
        return workspace

    def set_parameters(self, overrides: dict[str, Any]) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(make_tree(overrides), sort_keys=False))

    def environment(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AXON_", "PREFECT_", "RAY_", "MLFLOW_"))}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        return env

    def take_results(self, other: Workspace, *, but: tuple[str, ...]) -> None:
        """Copy what another workspace has made, without its memory of runs; the stages `but` have yet to run here."""
        for name in (*OUTPUTS, ".dvc/cache/files"):
            shutil.copytree(other.root / name, self.root / name)
        lock = yaml.safe_load(other.lock)
        for stage in but:
            del lock["stages"][stage]
        (self.root / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))

    @classmethod
    def behind(cls, root: Path, other: Workspace, parameters: dict[str, Any]) -> Workspace:
        """A new workspace with `parameters`, in which all is made but `pretrain` and what follows from it."""
        workspace = cls.create(root)
        workspace.set_parameters(parameters)
        workspace.take_results(other, but=("pretrain",))
        return workspace

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """`axon ARGUMENTS` in this workspace, its output in a file, so that no reader can hold it up.

        It leads a process group of its own and takes Ctrl-C, as a command in a terminal does, also where these tests
        run in the background.
        """
        log = (self.root / "axon.log").open("a")
        command = [sys.executable, "-m", "flows.cli", *arguments]
        env = {**self.environment(), **variables}
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    def axon(self, *arguments: str, folder: str = ".", **variables: str) -> subprocess.CompletedProcess[str]:
        """`axon ARGUMENTS` below `folder`, with more environment variables."""
        command = [sys.executable, "-m", "flows.cli", *arguments]
        env = {**self.environment(), "PYTHONPATH": str(self.root), **variables}
        return subprocess.run(command, cwd=self.root / folder, env=env, capture_output=True, text=True, timeout=580)

    def dvc(self, *arguments: str, timeout_s: float = 580) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(
            command, cwd=self.root, env=self.environment(), capture_output=True, text=True, timeout=timeout_s
        )

    @property
    def lock(self) -> bytes:
        return (self.root / "dvc.lock").read_bytes()

    def executions(self, stage: str) -> list[list[dict[str, Any]]]:
        """The journals of all executions of a stage, oldest first."""
        paths = sorted((self.root / ".axon" / "journal").glob(f"*-{stage}-*.jsonl"))
        journals = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
        return [j for j in journals if j and j[0].get("name") == stage]

    def left_running(self) -> list[str]:
        """The commands of every process that works in this workspace, whoever started it."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.root) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(command_line(process))
            except psutil.Error:
                continue
        return found

    def open_in_prefect(self) -> list[tuple[str, str]]:
        """Name and state of every flow run and task run that Prefect's database does not show as ended."""
        database = sqlite3.connect(f"file:{self.root}/.axon/prefect/prefect.db?mode=ro", uri=True, timeout=30)
        states = "('COMPLETED', 'FAILED', 'CRASHED', 'CANCELLED')"
        with contextlib.closing(database):
            return [
                found
                for table in ("flow_run", "task_run")
                for found in database.execute(f"SELECT name, state_type FROM {table} WHERE state_type NOT IN {states}")
            ]

    def processes(self) -> list[psutil.Process]:
        """Every process that carries the mark of a run of this workspace."""
        marks = [path.stem for path in (self.root / ".axon" / "runs").glob("*.open")]
        return [psutil.Process(pid) for mark in marks for pid in guard.marked(mark) if psutil.pid_exists(pid)]


def wait_until(condition: Callable[[], Any], *, limit_s: float = 300, every_s: float = 0.02) -> Any:
    """Poll until `condition` is true and return its value; an AssertionError past the limit."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(every_s)
    raise AssertionError(f"waited {limit_s} s in vain")


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def listening(processes: Iterator[psutil.Process] | list[psutil.Process]) -> set[tuple[str, int, str]]:
    """(address, port, command) of every listening TCP socket of `processes`."""
    found = set()
    for process in processes:
        try:
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip, connection.laddr.port, command_line(process)[:60]))
        except psutil.Error:
            continue
    return found
