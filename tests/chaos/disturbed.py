"""`axon run STAGE …` under way in a workspace: the processes seen in it, and what it has written."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from tests.flows.workspace import Workspace

_LOOK_EVERY_S = 1.0


class Disturbed:
    def __init__(self, workspace: Workspace, targets: Sequence[str], variables: dict[str, str]) -> None:
        self._workspace = workspace
        self._log = workspace.root / "axon.log"
        self._offset = self._log.stat().st_size if self._log.is_file() else 0
        self._looked_at = 0.0
        self.seen: dict[int, psutil.Process] = {}
        self._process = workspace.start("run", *targets, **variables)

    @property
    def code(self) -> int | None:
        """The exit code; None while the run is under way."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def text(self) -> str:
        """What the run has written so far."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            return file.read().decode(errors="replace")

    def has_begun(self, stage: str, text: str) -> bool:
        return re.search(rf"^{stage}$", text, re.MULTILINE) is not None

    def is_done(self, stage: str, text: str) -> bool:
        return re.search(rf"^  ✓ {stage} ", text, re.MULTILINE) is not None

    def look(self) -> list[psutil.Process]:
        """The processes of the run at this moment; they are remembered."""
        found: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):  # one that has just ended; the next look finds the others
            found = [psutil.Process(self._process.pid), *self._workspace.processes()]
        self.seen.update((p.pid, p) for p in found)
        self._looked_at = time.monotonic()
        return found

    def look_now_and_then(self) -> None:
        if time.monotonic() > self._looked_at + _LOOK_EVERY_S:
            self.look()

    def end(self) -> None:
        """End the run if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def candidates(kind: str, stage: str, run: Disturbed) -> list[psutil.Process]:
    """The processes of a kind that are there, oldest first."""
    found = []
    for process in run.look():
        try:
            words, name = process.cmdline(), process.name()
        except psutil.Error:
            continue
        is_one = {
            "axon": process.pid == run.pid,
            "stage": f"flows.{stage}" in words,
            "worker": bool(words) and words[0].startswith(("ray::StepWorker", "ray::PoolWorker")),
            "raylet": name == "raylet",
            "gcs": name == "gcs_server",
            "prefect": "prefect server start" in " ".join(words),
        }
        if is_one[kind]:
            found.append(process)
    return sorted(found, key=lambda p: (p.create_time(), p.pid))


def described(process: psutil.Process) -> str:
    """The command without the folders of one machine, and the number: `python -m flows.sft (123)`."""
    name = process.name()
    words = [name] if name in ("raylet", "gcs_server") else process.cmdline()
    short = " ".join(word.rpartition("/")[2] for word in words).strip()
    return f"{short[:70]} ({process.pid})"
