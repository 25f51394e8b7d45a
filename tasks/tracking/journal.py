"""What happened in a run, as lines of JSON on disk: MLflow is told from here, when it can be reached.

A journal never waits for a server. Its writer holds a lock on the file, so that a reader can tell a run that is
under way from one that was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tasks.errors import Stopped
from tasks.redact import redacted

PIPELINE_ID = "AXON_PIPELINE_ID"


class Journal:
    """One execution's journal. Events: `start`, `metrics`, `end`."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.id = uuid.uuid4().hex
        self.path = folder / f"{time.time_ns()}-{name}-{self.id}.jsonl"
        self._file = self.path.open("a", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._ended = False

    def write(self, event: str, **content: Any) -> None:
        self._file.write(json.dumps({"event": event, "time": time.time(), **content}) + "\n")
        self._file.flush()

    def start(self, name: str, **content: Any) -> None:
        """`name` of the run; `content`: kind, parent, parameters, inputs."""
        self.write("start", name=name, id=self.id, pid=os.getpid(), **content)

    def metrics(self, step: int, values: Mapping[str, float], at: float | None = None) -> None:
        if values:
            self.write("metrics", step=step, values=dict(values), at=at or time.time())

    def end(self, status: str, **content: Any) -> None:
        """`status`: FINISHED, FAILED or KILLED. The first call counts."""
        if not self._ended:
            self._ended = True
            if content.get("message"):
                content["message"] = redacted(content["message"])
            self.write("end", status=status, **content)

    def close(self) -> None:
        """Let go of the file: who reads it then takes the writer for gone."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Stopped | KeyboardInterrupt):
            self.end("KILLED", message=str(error) or "interrupted")
        elif error is not None:
            self.end("FAILED", message=str(error))
        else:
            self.end("FINISHED")
        self.close()


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole events of a journal after byte `offset`, and the offset behind them; a half line is left."""
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    end = content.rfind(b"\n") + 1
    return [json.loads(line) for line in content[:end].splitlines()], offset + end


def is_being_written(path: Path) -> bool:
    """Whether the journal's writer is alive."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
