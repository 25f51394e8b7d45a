"""One writer at a time, and no process that outlives its run.

Three nets, each under the other: a child dies with its parent by the kernel (PDEATHSIG) and by watching the run's
process; a guardian process kills what carries the run's mark when the run's process is gone; and the next run does
the same for marks it finds.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.errors import UserError
from tasks.runtime.checkout import Checkout

RUN_MARK = "AXON_RUN_ID"
RUN_PID = "AXON_RUN_PID"
_PR_SET_PDEATHSIG = 1
_GONE_WITHIN_S = 5.0  # a holder that ends has ended by then; waited even by who may not wait


def bind_to_parent() -> None:
    """Ask the kernel to kill this process when its parent ends. Also usable as `preexec_fn`."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_run() -> None:
    """Kill this process when its parent or the run's process (`AXON_RUN_PID`) ends."""
    bind_to_parent()
    parent = os.getppid()
    if parent == 1:
        os._exit(137)
    watched = {parent, int(os.environ.get(RUN_PID, parent))}
    for pid in sorted(watched):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            os._exit(137)
        except (AttributeError, PermissionError, OSError):
            continue
        threading.Thread(target=_exit_when_readable, args=(descriptor,), daemon=True).start()


def _exit_when_readable(descriptor: int) -> None:
    select.select([descriptor], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def exclusive(path: Path, *, who: str, waiting: Callable[[str], None] | None) -> Iterator[None]:
    """Hold the lock at `path`. If another holds it: wait, having told `waiting` who; or fail if that is None.

    The lock is the kernel's (flock) and goes with its process, however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, path, waiting)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "what": who, "since": time.time()}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path, waiting: Callable[[str], None] | None) -> None:
    told = False
    deadline = time.monotonic() + _GONE_WITHIN_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        holder = _holder(path)
        if waiting is None and time.monotonic() > deadline:
            raise UserError(f"{holder} is writing here; wait for it to end, or end it, and run again.", exit_code=1)
        if waiting is not None and not told:
            waiting(holder)
            told = True
        time.sleep(0.2)


def holder_of(path: Path) -> int | None:
    """The process that holds the lock at `path`; None if nobody does."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(OSError, ValueError, KeyError):
            return int(json.loads(path.read_text())["pid"])
    except OSError:
        pass
    return None


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text())
        since = time.strftime("%H:%M:%S", time.localtime(held["since"]))
        return f"{held['what']} (process {held['pid']}, since {since})"
    except (OSError, ValueError, KeyError):
        return "another process"


def marked(run_id: str, *, name: str = RUN_MARK) -> list[int]:
    """The processes of this user that carry the mark of `run_id`, this one apart: in their environment, or by working
    in a folder that is called so, since Ray's agents overwrite theirs.

    name: of the variable that is the mark.
    """
    mark = f"{name}={run_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                in_environment = mark in (entry / "environ").read_bytes().split(b"\0")
                if in_environment or run_id in (entry / "cwd").readlink().parts:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def reap(run_id: str, *, name: str = RUN_MARK, spare: frozenset[int] = frozenset()) -> int:
    """Kill every process that carries the mark of `run_id`; return how many there were."""
    count = 0
    for _ in range(50):
        pids = [pid for pid in marked(run_id, name=name) if pid not in spare]
        if not pids:
            break
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                count += 1
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    return count


def close_earlier_runs(checkout: Checkout) -> list[str]:
    """Kill what runs of this checkout that ended without saying so have left; return their ids.

    Call it while holding the run lock: no other run can be alive then.
    """
    folder = checkout.state / "runs"
    closed = []
    for path in sorted(folder.glob("*.open")) if folder.is_dir() else []:
        _end(path.stem, path)
        closed.append(path.stem)
    return closed


@contextmanager
def run_guard(checkout: Checkout, run_id: str, *, folder: str = "runs") -> Iterator[None]:
    """Mark this process and its children with `run_id`, under a guardian that ends them all with this process.

    folder: below `.axon/`; what is open in `runs` is ended by the next run (`close_earlier_runs`).
    """
    path = checkout.state / folder / f"{run_id}.open"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(os.getpid()))
    os.environ[RUN_MARK] = run_id
    os.environ[RUN_PID] = str(os.getpid())
    unmarked = {k: v for k, v in os.environ.items() if k not in (RUN_MARK, RUN_PID)}
    guardian = subprocess.Popen(
        [sys.executable, "-m", "tasks.runtime.guard", str(os.getpid()), run_id, str(path)],
        env=unmarked,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=checkout.root,
    )
    try:
        yield
    finally:
        _end(run_id, path)
        guardian.kill()
        guardian.wait()
        os.environ.pop(RUN_MARK, None)
        os.environ.pop(RUN_PID, None)


def _guard(pid: int, run_id: str, path: Path) -> None:
    """Wait for the run's process to end, then end all that carries its mark."""
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(pid)], [], [])
    _end(run_id, path)


def _end(run_id: str, path: Path) -> None:
    """End what carries the mark, and forget the run."""
    reap(run_id)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    path.unlink(missing_ok=True)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
