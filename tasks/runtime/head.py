"""The Ray of a run, in a process of its own: watched, started again when it dies, ended with the run.

A process that is connected to Ray is ended by Ray when the control service (GCS) has been away for a minute, and cannot
begin anew. So the run itself is not connected. This process starts Ray and ends as soon as the GCS or the raylet
does; the kernel ends with it what it started. A stage leaves when it is gone, and is tried again with the next one.
"""

from __future__ import annotations

import os
import secrets
import select
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable

import psutil

from tasks.errors import UserError
from tasks.runtime import cluster, guard
from tasks.runtime.checkout import Checkout

PID = "AXON_RAY_HEAD_PID"
_MARK = "AXON_RAY_HEAD"  # carried by what belongs to one head, and not by stages
_PARTS = ("gcs_server", "raylet")
_START_LIMIT_S = 120
_MAX_RESTARTS = 5


class Head:
    """Ray, started at once and again when it dies after it was up; `AXON_RAY_ADDRESS` says where it is now."""

    def __init__(self, checkout: Checkout, n_cpus: int) -> None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # for the head and for those who connect
        self._folder = checkout.state / "runs" / os.environ[guard.RUN_MARK]
        self._log = checkout.state / "logs" / "ray.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._n_cpus = n_cpus
        self._lock = threading.Lock()
        self._is_stopping = False
        self._has_given_up = False
        self._process: subprocess.Popen[str] | None = None
        self._is_up = threading.Event()
        # The kernel ends a child bound to its parent with the *thread* that made it: one thread makes them all.
        self._thread = threading.Thread(target=self._keep, name="ray-head", daemon=True)
        self._thread.start()

    def wait_until_ready(self) -> None:
        """Wait until Ray is there, or there again: a `UserError` with the end of its log if it does not start."""
        deadline = time.monotonic() + _START_LIMIT_S
        while not self._is_up.wait(0.1):
            if self._has_given_up or time.monotonic() > deadline:
                tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])
                raise UserError(f"Ray does not start; the end of {self._log}:\n{tail}", exit_code=1)

    def stop(self) -> None:
        """End Ray and all that belongs to it."""
        with self._lock:
            self._is_stopping = True
            if self._process is not None:
                self._process.kill()
        self._thread.join()
        for name in (cluster.ADDRESS, PID):
            os.environ.pop(name, None)

    def _keep(self) -> None:
        for _ in range(1 + _MAX_RESTARTS):
            mark = uuid.uuid4().hex
            with self._lock:
                if self._is_stopping:
                    return
                process = self._process = self._start(mark)
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if address:
                os.environ.update({cluster.ADDRESS: address, PID: str(process.pid)})
                self._is_up.set()
            process.wait()
            self._is_up.clear()
            guard.reap(mark, name=_MARK)  # no worker of it writes beside one of the next
            if self._is_stopping:
                return
            lost = process.stdout.read().strip()
            if not address:
                break
            print(f"Ray ended ({lost or 'its own process'} was lost); starting it again", flush=True)
        self._has_given_up = True

    def _start(self, mark: str) -> subprocess.Popen[str]:
        # Ray's agents erase their environment, but not where they work: so it carries the marks too.
        folder = self._folder / mark
        folder.mkdir(parents=True)
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tasks.runtime.head", str(self._n_cpus)],
                env={**os.environ, _MARK: mark},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                process_group=0,  # a terminal's Ctrl-C is for the stage, which needs Ray for its checkpoint
            )


def when_gone(then: Callable[[], None]) -> None:
    """Call `then`, in a thread, when the head that this process was told of ends; without one, never."""
    told = os.environ.get(PID)
    if told is None:
        return
    try:
        descriptor = os.pidfd_open(int(told))
    except ProcessLookupError:
        return then()
    except (AttributeError, OSError):
        return  # no such descriptors here: Ray's own limits apply

    def wait() -> None:
        select.select([descriptor], [], [])
        then()

    threading.Thread(target=wait, name="ray-head-watch", daemon=True).start()


def main() -> None:
    """Start Ray, print its address, and end with the first part of it that ends, after printing which."""
    guard.die_with_run()
    print(cluster.start_embedded(int(sys.argv[1])), flush=True)
    parts = {os.pidfd_open(p.pid): p.name() for p in psutil.Process().children() if p.name() in _PARTS}
    ended, _, _ = select.select(list(parts), [], [])
    print(parts[ended[0]], flush=True)
    os._exit(1)


if __name__ == "__main__":
    main()
