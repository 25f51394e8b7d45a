"""Twenty scheduled runs and more with faults at seeded moments: none lost, none doubled, every decision explained.

`make test-scheduled SEED=n` runs it alone; it prints an account of every due time.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flows import scheduled_account
from tests.flows.scheduled_account import Account, Run
from tests.flows.workspace import TINY, Workspace, command_line, wait_until

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.timeout(2700)]
SEED = int(os.environ.get("AXON_TEST_SEED", "1"))
EVERY_S = 15
AT_LEAST = 20
SMALLER = {
    "pretrain.n_steps": 20,
    "pretrain.evaluate_every": 10,
    "sft.n_steps": 40,
    "sft.evaluate_every": 20,
    "preferences.n_prompts": 96,
    "preferences.n_validation_prompts": 64,  # enough that some have a best answer, also of a model that knows little
    "ppo.n_iterations": 2,
    "gate.n_maths": 24,
    "gate.n_docs": 8,
    "gate.n_texts": 8,
    "gate.n_seeds": 2,
    "gate.limits": {"bits_per_byte": 9.0, "exact_match": 1.0, "kl_to_sft": 999.0, "length": 999.0},
    "data.files": [{"path": "sources/own.jsonl", "license": "MIT"}],
    "retrain.min_new_records": 100,
}
PROMOTES = {"gate.metric": "bits_per_byte", "gate.margin": 0.0}  # each training has more steps than the one before
REFUSES = {"gate.metric": "score", "gate.margin": 1.0}  # a score is at most 1


@dataclass
class Check:
    """A workspace whose worker serves a schedule, and what was done to it."""

    workspace: Workspace
    random: random.Random
    faults: list[tuple[float, str]] = field(default_factory=list)
    down: list[tuple[float, float]] = field(default_factory=list)
    n_records: int = 20
    n_late: int = 0
    n_trainings: int = 0  # the first is no retraining
    worker: subprocess.Popen[str] | None = None
    stopped_at: float | None = None

    # What the world does

    def start_worker(self) -> None:
        n_before = self.log().count("\nretraining every")
        self.worker = self.workspace.start("worker")
        wait_until(lambda: self.log().count("\nretraining every") > n_before, limit_s=120, every_s=0.2)
        if self.stopped_at is not None:
            self.down.append((self.stopped_at, time.time()))

    def stop_worker(self, number: signal.Signals) -> None:
        assert self.worker is not None
        self.stopped_at = time.time()
        self.worker.send_signal(number)
        self.worker.wait(timeout=60)
        try:
            wait_until(lambda: not self.workspace.left_running(), limit_s=40, every_s=0.3)
        except AssertionError:
            raise AssertionError(f"40 s after the worker there is {self.workspace.left_running()}") from None

    def bring_data(self, gate: dict[str, Any]) -> None:
        """New records before the next run, and a gate that promotes or refuses what is trained on them."""
        self.n_records += 200
        self.workspace.set_parameters(TINY | SMALLER | {"pretrain.n_steps": 20 + 40 * self.n_trainings} | gate)
        self.n_trainings += 1
        self.write_records()

    def write_records(self) -> None:
        """Those that are trained on, and those that came too late."""
        numbers = [*range(self.n_records), *range(10_000, 10_000 + self.n_late)]
        lines = (f"Entry {i} of the ledger: the harbour master counted {i * 7} crates." for i in numbers)
        text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
        (self.workspace.root / "sources" / "own.jsonl").write_text(text)

    def limit(self, span: str) -> None:
        assert self.workspace.axon("schedule", "--every", f"{EVERY_S}s", "--limit", span).returncode == 0

    # What can be seen

    def log(self) -> str:
        path = self.workspace.root / "axon.log"
        return "\n" + path.read_text() if path.is_file() else ""

    def processes(self, text: str) -> list[psutil.Process]:
        """Those of this workspace whose command contains `text`, oldest first."""
        found = []
        for process in psutil.process_iter():
            try:
                is_here = Path(process.cwd()).is_relative_to(self.workspace.root)
                if is_here and text in command_line(process) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda p: p.create_time())

    def n_completed(self) -> int:
        return sum(run.state == "COMPLETED" for run in scheduled_account.runs(self.workspace.root))

    def is_training(self) -> bool:
        return (self.workspace.root / ".axon" / "retrain" / "begun.json").is_file()

    def is_calm(self) -> bool:
        waiting = list((self.workspace.root / ".axon" / "schedule" / "requests").glob("*.json"))
        return not (waiting or self.is_training() or self.processes("flows.cli retrain"))

    def wait_for_completed(self, n: int = 1) -> None:
        """Wait until `n` more runs have come to their end, and nothing is left to go on with."""
        before = self.n_completed()
        wait_until(lambda: self.n_completed() >= before + n and self.is_calm(), limit_s=600, every_s=0.5)

    # Faults

    def hit(self, text: str, number: signal.Signals = signal.SIGKILL, *, within_s: float = 0.0) -> int:
        """Send a signal to the youngest process whose command contains `text`, at a seeded moment after it is there."""
        wait_until(lambda: self.processes(text), limit_s=200, every_s=0.1)
        time.sleep(self.random.uniform(0, within_s))
        found = wait_until(lambda: self.processes(text), limit_s=60, every_s=0.1)
        found[-1].send_signal(number)
        self.faults.append((time.time(), f"{number.name} to {text}"))
        return int(found[-1].pid)


def ray_worker_killed_in_training(check: Check) -> None:
    """And a few more records come meanwhile, too few to train on."""
    check.bring_data(PROMOTES)
    wait_until(check.is_training, limit_s=120, every_s=0.1)
    check.n_late += 5
    check.write_records()
    time.sleep(check.random.uniform(0, 20))
    check.hit("ray::StepWorker")
    check.wait_for_completed()


def driver_killed_in_training(check: Check) -> None:
    check.bring_data(REFUSES)
    wait_until(check.is_training, limit_s=120, every_s=0.1)
    check.hit("flows.cli retrain", within_s=25)
    check.wait_for_completed()


def worker_killed_in_training(check: Check) -> None:
    check.bring_data(PROMOTES)
    wait_until(check.is_training, limit_s=120, every_s=0.1)
    time.sleep(check.random.uniform(0, 25))
    check.faults.append((time.time(), "SIGKILL to the worker"))
    check.stop_worker(signal.SIGKILL)
    check.start_worker()
    check.wait_for_completed()


def worker_killed_and_away(check: Check) -> None:
    """In a run with nothing new, down over several due times."""
    wait_until(lambda: check.processes("prefect.engine"), limit_s=60, every_s=0.05)
    time.sleep(check.random.uniform(0, 6))
    check.faults.append((time.time(), "SIGKILL to the worker"))
    check.stop_worker(signal.SIGKILL)
    time.sleep(EVERY_S * 3)
    check.start_worker()
    check.wait_for_completed()


def worker_stopped_and_away(check: Check) -> None:
    check.faults.append((time.time(), "SIGTERM to the worker"))
    check.stop_worker(signal.SIGTERM)
    time.sleep(EVERY_S * 2 + check.random.uniform(0, EVERY_S))
    check.start_worker()
    check.wait_for_completed()


def server_killed_in_run(check: Check) -> None:
    wait_until(lambda: check.processes("flows.cli retrain"), limit_s=60, every_s=0.1)
    check.hit("prefect server start", within_s=4)
    check.wait_for_completed()


def server_killed_between_runs(check: Check) -> None:
    wait_until(lambda: not check.processes("prefect.engine"), limit_s=60, every_s=0.1)
    check.hit("prefect server start", within_s=8)
    check.wait_for_completed()


def flow_killed(check: Check) -> None:
    wait_until(lambda: not check.processes("prefect.engine"), limit_s=60, every_s=0.1)
    check.hit("prefect.engine", within_s=6)
    check.wait_for_completed()


def driver_stuck(check: Check) -> None:
    check.limit("20s")
    check.hit("flows.cli retrain", signal.SIGSTOP, within_s=1)
    check.wait_for_completed()
    check.limit("10m")


def flow_stuck(check: Check) -> None:
    check.limit("10s")
    wait_until(lambda: check.processes("flows.cli retrain"), limit_s=60, every_s=0.1)
    check.hit("prefect.engine", signal.SIGSTOP)
    check.wait_for_completed()
    check.limit("10m")


FAULTS: list[Callable[[Check], None]] = [
    ray_worker_killed_in_training,
    driver_killed_in_training,
    worker_killed_in_training,
    worker_killed_and_away,
    worker_stopped_and_away,
    server_killed_in_run,
    server_killed_between_runs,
    flow_killed,
    driver_stuck,
    flow_stuck,
]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """After all faults, with the worker gone."""
    check = Check(Workspace.create(tmp_path_factory.mktemp("scheduled") / "checkout"), random.Random(SEED))
    workspace = check.workspace
    check.bring_data(PROMOTES)
    first = workspace.axon("run")
    assert first.returncode == 0, first.stdout + first.stderr
    only = os.environ.get("AXON_TEST_FAULTS", "").split(",")
    faults = [fault for fault in FAULTS if only == [""] or fault.__name__ in only]
    check.random.shuffle(faults)
    check.limit("10m")
    try:
        check.start_worker()
        check.wait_for_completed(2)
        for fault in faults:
            print(f"{time.strftime('%H:%M:%S')} {fault.__name__}", flush=True)
            fault(check)
        wait_until(lambda: len(account_of(check).due) >= AT_LEAST or only != [""], limit_s=300, every_s=1)
        check.wait_for_completed()
        assert workspace.axon("schedule", "--remove").returncode == 0
        wait_until(check.is_calm, limit_s=60, every_s=0.5)
        time.sleep(5)
        check.stop_worker(signal.SIGTERM)
    finally:
        if check.worker is not None and check.worker.poll() is None:
            check.worker.kill()
    return check


def account_of(check: Check) -> Account:
    root = check.workspace.root
    notes = {p.stem: json.loads(p.read_text()) for p in (root / ".axon" / "schedule" / "done").glob("*.json")}
    return Account(
        runs=scheduled_account.runs(root), decided=scheduled_account.decisions(root), down=check.down, notes=notes
    )


def test_every_due_time_is_accounted_for_once(check: Check):
    account = account_of(check)
    show(check, account)
    times = [run.due for run in account.due]
    assert len(times) == len(set(times)), "a due time has two runs"
    gaps = {round(after - before, 3) for before, after in itertools.pairwise(times)}
    assert gaps == {float(EVERY_S)}, "no due time between the first and the last is missing"
    assert len(times) >= AT_LEAST or "AXON_TEST_FAULTS" in os.environ
    assert [(run.id, run.state, run.message) for run in account.of("lost")] == []
    assert set(account.notes) == {run.id for run in account.runs}, "`axon schedule` tells of each"
    assert all(note["outcome"] for note in account.notes.values())


def test_no_two_ran_at_once_and_what_was_missed_was_run_once(check: Check):
    account = account_of(check)
    ran = sorted((run for run in account.runs if run.was_run), key=lambda run: run.began)
    assert [pair for pair in itertools.pairwise(ran) if _overlap(*pair)] == []
    for start, end in check.down:
        missed = [run for run in account.due if start + 1 <= run.due <= end - 1]
        made_up = [run for run in missed if run.was_run and run.began >= end - scheduled_account.SLACK_S]
        going_on = [
            again
            for run in account.runs
            # By its due time: the next worker ends it, and Prefect has that end as the beginning of one that was killed
            # before it could say that it ran.
            if run.state == "CRASHED" and run.due <= start + 5 and run.ended >= start
            for again in account.going_on_with(run)
        ]
        assert len(made_up) + len(going_on) == (1 if missed or going_on else 0), (start, end, missed)


def _overlap(before: Run, after: Run) -> bool:
    """Who is killed is said to have ended when a worker notices it, seconds after the next one may have begun."""
    return before.ended > after.began + (scheduled_account.SLACK_S if before.state == "CRASHED" else 0.0)


def test_each_run_that_ended_well_has_one_decision_and_each_decision_its_reasons(check: Check):
    account = account_of(check)
    ran = [run for run in account.runs if run.state == "COMPLETED"]
    for run in ran:
        assert len(account.decisions_of(run)) == 1, (run, account.told(run))
        assert account.told(run).startswith(f"{account.decisions_of(run)[0]['action']}:")
    known = {run.occasion for run in account.runs}
    assert all(set(decided["occasions"]) <= known for decided in account.decided)
    counted = Counter(occasion for decided in account.decided for occasion in decided["occasions"])
    assert set(counted.values()) == {1}, "no occasion came to two decisions"
    trained = [decided for decided in account.decided if decided["action"] != "not retrained"]
    assert len(trained) == check.n_trainings - 1
    assert len({decided["version"] for decided in trained}) == check.n_trainings - 1
    for decided in account.decided:
        if decided["action"] == "not retrained":
            assert re.match(r"not enough is new: new \d{1,2}, gone 0,", decided["reason"])
        else:
            assert "new records (at least 100)" in decided["because"]
            assert f"{decided['gate']['metric']} improves by" in decided["reason"]
            refused = "does not lie above the margin of 1" in decided["reason"]
            assert (decided["action"] == "kept") == refused
    shown = json.loads(check.workspace.axon("history", "--format", "json").stdout)
    assert [(d["action"], d["version"], d["reason"]) for d in shown] == [
        (d["action"], d["version"], d["reason"]) for d in account.decided
    ]


def test_nothing_is_left_and_the_audit_is_clean(check: Check):
    assert check.workspace.left_running() == []
    assert "Traceback" not in check.log()
    found = json.loads(check.workspace.axon("audit", "--format", "json").stdout)["findings"]
    # Records that came too late for the last training are not what the models were made of.
    assert [one for one in found if not one["expected"].startswith("sources as stage")] == []


def show(check: Check, account: Account) -> None:
    """Print the account."""
    kinds = Counter(account.kind(run) for run in account.due)
    trained = Counter(decided["action"] for decided in account.decided)
    print(f"\nseed {SEED}: {len(account.due)} due times: {dict(kinds)}; decisions: {dict(trained)}")
    first = account.due[0].due
    told = [(at - first, f"**{what}**") for at, what in check.faults]
    for run in account.runs:
        why = account.told(run) or run.message
        kind = account.kind(run) if run.is_by_schedule else f"asked for, {run.state.lower()}"
        told.append((run.due - first, f"{kind} | {why[:90]}"))
    for at, what in sorted(told):
        print(f"| {at:6.0f} | {what} |")
