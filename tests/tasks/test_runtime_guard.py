"""Locks go with their process, marks find every process, and children die with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout
from tests.helpers import REPOSITORY


def python(code: str, **settings) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, **settings)


def gone(pid: int, within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


HOLD = """
from pathlib import Path; from tasks.runtime import guard; import time
with guard.exclusive(Path({path!r}), who="axon run", waiting=None):
    print("held", flush=True); time.sleep(600)
"""


def test_a_second_writer_is_told_who_the_first_is_and_gets_in_when_it_is_killed(tmp_path):
    path = tmp_path / "lock"
    holder = python(HOLD.format(path=str(path)))
    assert holder.stdout.readline() == "held\n"
    told = []

    def waiting(who: str) -> None:
        told.append(who)
        holder.send_signal(signal.SIGKILL)

    with guard.exclusive(path, who="second", waiting=waiting):
        pass
    assert len(told) == 1
    assert told[0].startswith(f"axon run (process {holder.pid}, since ")
    holder.wait()


def test_a_writer_that_may_not_wait_fails_with_the_holder_s_name(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "_GONE_WITHIN_S", 0.5)
    path = tmp_path / "lock"
    holder = python(HOLD.format(path=str(path)))
    holder.stdout.readline()
    with pytest.raises(UserError, match=f"process {holder.pid}"), guard.exclusive(path, who="x", waiting=None):
        pass
    holder.kill()
    holder.wait()


def test_reap_kills_exactly_the_marked_processes():
    sleep = "print('up', flush=True); import time; time.sleep(600)"
    marked = python(sleep, env={**os.environ, guard.RUN_MARK: "run-a"})
    other = python(sleep, env={**os.environ, guard.RUN_MARK: "run-ab"})
    for process in (marked, other):
        process.stdout.readline()
    guard.reap("run-a")
    assert marked.wait(timeout=10) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


def test_reap_finds_a_process_that_has_erased_its_environment_by_where_it_works(tmp_path):
    folders = [tmp_path / "run-a" / "head", tmp_path / "run-ab"]
    children = []
    for folder in folders:
        folder.mkdir(parents=True)
        children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], cwd=folder, env={}))
    guard.reap("run-a")
    assert children[0].wait(timeout=10) == -signal.SIGKILL
    assert children[1].poll() is None
    children[1].kill()
    children[1].wait()


def test_when_a_run_is_killed_its_children_die_and_the_note_of_the_run_goes(tmp_path):
    code = f"""
import subprocess, sys, time
from pathlib import Path
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout
with guard.run_guard(Checkout(Path({str(tmp_path)!r})), "killed-run"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(child.pid, flush=True)
    time.sleep(600)
"""
    run = python(code, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    child = int(run.stdout.readline())
    time.sleep(1)  # the guardian is starting
    run.kill()
    run.wait()
    assert gone(child)
    note = tmp_path / ".axon" / "runs" / "killed-run.open"
    deadline = time.monotonic() + 10
    while note.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not note.exists()


def test_the_next_run_closes_what_a_run_without_guardian_left(tmp_path):
    checkout = Checkout(tmp_path)
    (checkout.state / "runs").mkdir(parents=True)
    (checkout.state / "runs" / "dead-run.open").write_text("1")
    child = python("print(1, flush=True); import time; time.sleep(600)", env={**os.environ, guard.RUN_MARK: "dead-run"})
    child.stdout.readline()
    assert guard.close_earlier_runs(checkout) == ["dead-run"]
    assert child.wait(timeout=10) == -signal.SIGKILL
    assert guard.close_earlier_runs(checkout) == []


def test_a_stage_dies_with_its_parent():
    inner = "from tasks.runtime.guard import die_with_run as d; d(); print(1, flush=True); import time; time.sleep(600)"
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {inner!r}], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline(); print(child.pid, flush=True); time.sleep(600)
"""
    parent = python(code, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert gone(child)
