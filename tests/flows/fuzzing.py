"""Many commands in one process of a workspace, each with what was changed for it; see `command_server`."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from select import select
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.flows.workspace import Workspace

_LIMIT_S = 120
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What came of a command. `raised`: the traceback of what left `main`; `changed`: files that are not as before."""

    code: int
    stdout: str
    stderr: str
    raised: str
    changed: tuple[str, ...]

    def is_clean(self, *codes: int) -> None:
        """Assert what holds of every command: one of these exit codes, no traceback, no error of ours, no half file."""
        everything = f"exit code {self.code}\n{self.stdout}{self.stderr}{self.raised}\nchanged: {self.changed}"
        assert self.code in codes, everything
        assert not self.raised, everything
        assert "Traceback" not in self.stdout + self.stderr, everything
        assert "error in Axon itself" not in self.stderr, everything
        assert not [name for name in self.changed if name.endswith((".tmp", ".partial"))], everything

    def refuses(self, *named: str, codes: Sequence[int] = (2,)) -> None:
        """Assert a refusal before anything was done: a message that holds each of `named`, and no file touched."""
        self.is_clean(*codes)
        told = " ".join(self.stderr.split())
        assert told, "it says nothing"
        for name in named:
            assert name in told, told
        assert self.changed == (), f"{told}\nchanged: {self.changed}"


class Commands:
    """The process; leave it with `close`."""

    def __init__(self, workspace: Workspace) -> None:
        self.root = workspace.root
        environment = workspace.environment() | {"PYTHONPATH": str(workspace.root), "COLUMNS": "200"}
        answers, to_us = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.flows.command_server", str(to_us)],
            cwd=workspace.root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(to_us,),
            text=True,
        )
        os.close(to_us)
        self._answers = os.fdopen(answers)

    def __call__(
        self,
        *argv: str,
        files: Mapping[str, bytes | None] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Told:
        """Run `axon ARGV` with these contents of files (None: no such file) and these variables."""
        contents = {k: None if v is None else base64.b64encode(v).decode() for k, v in (files or {}).items()}
        case = {"argv": argv, "files": contents, "variables": dict(variables or {})}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        if not select([self._answers], [], [], _LIMIT_S)[0]:
            self._process.kill()
            raise AssertionError(f"no end within {_LIMIT_S} s: axon {argv} with {sorted(contents)}")
        answer = json.loads(self._answers.readline() or "null")
        assert answer is not None, f"the process ended: axon {argv} with {sorted(contents)}"
        return Told(**{**answer, "changed": tuple(answer["changed"])})

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._answers.close()


def for_many(n: int, values: st.SearchStrategy[Value], check: Callable[[Value], Any], *, name: str = "") -> None:
    """Check `n` values, the same ones every time; others for another `name`."""
    tried = settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    tried(seed(zlib.crc32(name.encode()))(given(values)(lambda value: check(value))))()


PLAUSIBLE = [
    "",
    "-1",
    "0",
    "1",
    "7",
    "0.5",
    "1e9",
    "3e-05",
    "nan",
    "-inf",
    "true",
    "null",
    "[]",
    "{}",
    "''",
    "a b",
    "9" * 30,
]
WORDS = st.one_of(
    st.sampled_from(PLAUSIBLE),
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=16),
)


def few_and_many(few: int, many: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("n", [few, pytest.param(many, marks=pytest.mark.slow)])


def as_argument(content: bytes) -> str:
    return content.decode(errors="ignore").replace("\x00", "")
