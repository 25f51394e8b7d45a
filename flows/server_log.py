"""What a server of ours says goes into a log through a thread that takes secrets out: no server knows ours."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from tasks.redact import redacted

_ON_ITS_WAY_S = 0.3
_N_LINES = 5


def serve(
    command: list[str], log: Path, *, folder: Path, variables: dict[str, str] | None = None, first: Callable[[], None]
) -> subprocess.Popen[bytes]:
    """Start a server in `folder`, its output added to `log`; `first` is what it calls in its process before."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=variables,
        preexec_fn=first,
    )
    assert process.stdout is not None
    threading.Thread(target=_copy, args=(process.stdout, log), name=f"log-{log.stem}", daemon=True).start()
    return process


def _copy(said: IO[bytes], log: Path) -> None:
    with said, log.open("ab", buffering=0) as file:
        for line in said:
            with suppress(OSError):  # a full disk must not hold up the server
                file.write(redacted(line.decode(errors="replace")).encode())


def end_of(log: Path) -> str:
    """The last lines, for a message; of a server that has just died they may still be on their way."""
    time.sleep(_ON_ITS_WAY_S)
    return "\n".join(log.read_text(errors="replace").splitlines()[-_N_LINES:]) if log.is_file() else ""
