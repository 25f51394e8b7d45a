"""The schedule: what is set is checked, kept and shown; the worker serves it, and what is asked for is run once."""

import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.flows.conftest import FinishedRun
from tests.flows.fuzzing import Commands
from tests.flows.test_promotion import decisions
from tests.flows.workspace import Workspace, wait_until


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.create(tmp_path_factory.mktemp("schedule") / "checkout")


@pytest.fixture(scope="module")
def commands(workspace: Workspace) -> Iterator[Commands]:
    """Commands in one process, which imports once."""
    server = Commands(workspace)
    yield server
    server.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--every", "6"], "--every '6' must be a span of 5s to 3650d, like 30s, 45m, 6h or 1d"),
        (["--every", "1s"], "must be a span of 5s"),
        (["--every", "3651d"], "must be a span of 5s to 3650d"),
        (["--every", "9" * 400 + "d"], "must be a span of 5s to 3650d"),
        (["--every", "6h", "--timezone", "Europe/Berlin"], "--timezone Europe/Berlin goes with --cron"),
        (["--limit", "2h"], "--limit and --timezone go with --cron, --every or --on-data"),
        (["--cron", "0 0 3 * * *"], "must have five fields"),
        (["--cron", ""], "must have five fields"),
        (["--every", ""], "--every '' must be a span"),
        (["--cron", "0 3 * *"], "--cron '0 3 * *' (UTC):"),
        (["--cron", "0 3 * * *", "--timezone", "Mars/Olympus"], "(Mars/Olympus):"),
        (["--cron", "0 3 * * *", "--every", "6h"], "do not go together"),
        (["--pause"], "there is no schedule"),
        (["--every", "6h", "--pause"], "go alone"),
        (["--work-pool", "gpu"], "--work-pool goes with --cron or --every"),
        (["--on-data", "--work-pool", "gpu"], "--on-data needs `axon worker`"),
        (["--every", "6h", "--work-pool", "gpu"], "a work pool belongs to a Prefect server: set PREFECT_API_URL"),
    ],
)
def test_mistakes_are_named(commands: Commands, arguments: list[str], said: str):
    commands("schedule", *arguments).refuses(said)


def test_it_is_set_shown_paused_and_removed(workspace: Workspace):
    assert workspace.axon("schedule", "--every", "6h", "--on-data").returncode == 0
    assert "every 6h, when a source has changed" in workspace.axon("schedule").stdout
    assert "(paused)" in workspace.axon("schedule", "--pause").stdout
    assert "(paused)" not in workspace.axon("schedule", "--resume").stdout
    assert workspace.axon("schedule", "--cron", "30 2 * * 1", "--timezone", "Europe/Berlin").returncode == 0
    assert "cron 30 2 * * 1 (Europe/Berlin)" in workspace.axon("schedule").stdout
    assert workspace.axon("schedule", "--remove").returncode == 0
    assert workspace.axon("schedule").returncode == 2


def outcomes(workspace: Workspace) -> list[str]:
    from flows import schedule
    from tasks.runtime.checkout import Checkout

    return [line["outcome"] for line in schedule.noted(Checkout(workspace.root))]


def ran(workspace: Workspace) -> list[str]:
    return [outcome for outcome in outcomes(workspace) if outcome.startswith("not retrained")]


def scheduled_from_now(workspace: Workspace) -> int:
    """How many runs Prefect has for later."""
    database = sqlite3.connect(f"file:{workspace.root}/.axon/prefect/prefect.db?mode=ro", uri=True, timeout=30)
    (found,) = database.execute(
        "SELECT count(*) FROM flow_run WHERE state_type = 'SCHEDULED' AND expected_start_time > datetime('now')"
    ).fetchone()
    database.close()
    return int(found)


def stop(worker: subprocess.Popen[str]) -> None:
    worker.send_signal(signal.SIGTERM)
    worker.wait(timeout=60)


@pytest.mark.engines
@pytest.mark.slow
def test_the_worker_runs_what_is_asked_for_once_and_goes_on_after_a_kill(finished: FinishedRun):
    workspace = finished.workspace
    before = len(decisions(workspace))
    assert workspace.axon("schedule", "--run-now").returncode == 0  # before any worker is up
    worker = workspace.start("worker")
    try:
        wait_until(lambda: len(outcomes(workspace)) == 1, limit_s=180, every_s=0.5)
        assert outcomes(workspace)[0].startswith("not retrained: not enough is new")
        assert workspace.axon("schedule", "--every", "8s").returncode == 0
        wait_until(lambda: len(ran(workspace)) >= 3, limit_s=180, every_s=0.5)
        # Prefect's process of a run is not bound to the worker before its flow begins.
        wait_until(lambda: any("prefect.engine" in c for c in workspace.left_running()), limit_s=60, every_s=0.02)
        worker.kill()
        worker.wait()
        wait_until(lambda: not workspace.left_running(), limit_s=30, every_s=0.5)
        time.sleep(20)  # more than two occasions pass without a worker
        n_done = len(ran(workspace))
        worker = workspace.start("worker")
        wait_until(lambda: len(ran(workspace)) >= n_done + 2, limit_s=180, every_s=0.5)
        assert any("missed while no worker ran" in outcome for outcome in outcomes(workspace))
        assert workspace.axon("schedule", "--on-data").returncode == 0
        wait_until(lambda: scheduled_from_now(workspace) == 0, limit_s=30, every_s=0.5)
        assert workspace.axon("schedule", "--remove").returncode == 0
        wait_until(lambda: not any("retrain" in command for command in workspace.left_running()), every_s=0.5)
    finally:
        stop(worker)
    assert workspace.left_running() == []
    cut = [o for o in outcomes(workspace) if o.startswith(("cut short", "interrupted"))]
    done = ran(workspace)
    rest = [o for o in outcomes(workspace) if o not in cut and o not in done]
    assert all(o.startswith(("missed while no worker ran", "skipped: the one before")) for o in rest), rest
    # One that was cut short may have decided before it could say so.
    assert len(done) <= len(decisions(workspace)) - before <= len(done) + len(cut)
    assert workspace.axon("audit").returncode == 0
