"""A full disk, MLflow or Prefect away: one clear message or none, nothing lost, and the same bytes in the end."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from flows.prefect_server import answers
from tests.flows.conftest import FinishedRun
from tests.flows.test_interrupts import LONG, steps_done
from tests.flows.workspace import Workspace, wait_until

pytestmark = [pytest.mark.engines, pytest.mark.slow]


def prepared(root: Path, finished: FinishedRun, **changes: object) -> Workspace:
    return Workspace.behind(root, finished.workspace, LONG | changes)


@pytest.fixture(scope="module")
def whole(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The lock of an undisturbed run."""
    workspace = prepared(tmp_path_factory.mktemp("whole") / "checkout", finished)
    result = workspace.axon("run", "pretrain")
    assert result.returncode == 0, result.stdout + result.stderr
    return workspace.lock


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield place
    finally:
        for _ in range(20):
            if subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.5)


def fill(path: Path) -> None:
    """Write until nothing fits any more."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


def test_a_full_disk_ends_in_one_message_and_the_next_run_goes_on(finished: FinishedRun, whole: bytes, tmp_path: Path):
    with small_disk(tmp_path / "disk", 400) as disk:
        workspace = prepared(disk / "checkout", finished, **{"runtime.checkpoint_every_s": 0.2})
        terminal = tmp_path / "axon.log"  # not on that disk, so that nothing of it is lost
        (workspace.root / "axon.log").symlink_to(terminal)
        run = workspace.start("run", "pretrain")
        wait_until(lambda: steps_done(workspace) >= 20)
        filler = disk / "filler"
        fill(filler)
        assert run.wait(timeout=120) == 1
        filler.unlink()
        log = terminal.read_text()
        assert "pretrain: there is no space left on the disk" in log, log[-3000:]
        assert "Traceback" not in log
        assert "Error logging" not in log
        assert log.count("\npretrain\n") == 1, "it is not tried again where that cannot help"
        again = workspace.axon("run", "pretrain")
        assert again.returncode == 0, again.stdout + again.stderr
        assert workspace.lock == whole
        assert workspace.processes() == []


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serving(command: list[str], url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    environment |= {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)
    try:
        wait_until(lambda: answers(url), limit_s=120, every_s=0.5)
        yield server
    finally:
        server.terminate()
        server.wait(timeout=20)


def mlflow_server(folder: Path, port: int) -> list[str]:
    store, artifacts = f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts")
    return [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", store, "--artifacts-destination", artifacts,
    ]  # fmt: skip


def test_what_mlflow_missed_it_is_told_later_in_order_and_once(finished: FinishedRun, whole: bytes, tmp_path: Path):
    workspace = prepared(tmp_path / "checkout", finished)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = mlflow_server(tmp_path, port)
    with serving(command, f"{address}/health", tmp_path):
        run = workspace.start("run", "pretrain", MLFLOW_TRACKING_URI=address)
        wait_until(lambda: steps_done(workspace) >= 20)
    assert run.wait(timeout=200) == 0, (workspace.root / "axon.log").read_text()[-3000:]
    assert workspace.lock == whole
    assert "told by the next run" in (workspace.root / "axon.log").read_text()
    with serving(command, f"{address}/health", tmp_path):
        shutil.rmtree(workspace.root / "models" / "pretrain")  # so that there is something to run
        result = workspace.axon("run", "pretrain", MLFLOW_TRACKING_URI=address)
        assert result.returncode == 0, result.stdout + result.stderr
        client = MlflowClient(tracking_uri=address)
        experiment = client.get_experiment_by_name("axon")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
        stage = [r for r in runs if r.info.run_name == "pretrain"]
        assert [r.info.status for r in stage] == ["FINISHED"]
        steps = [m.step for m in client.get_metric_history(stage[0].info.run_id, "loss")]
        assert sorted(steps) == list(range(1, LONG["pretrain.n_steps"] + 1)), "every step once"
        assert {r.info.status for r in runs} == {"FINISHED"}


def test_training_goes_on_without_prefect(finished: FinishedRun, whole: bytes, tmp_path: Path):
    workspace = prepared(tmp_path / "checkout", finished)
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with serving(command, f"{address}/health", tmp_path) as server:
        run = workspace.start("run", "pretrain", PREFECT_API_URL=address, PREFECT_CLIENT_MAX_RETRIES="1")
        wait_until(lambda: steps_done(workspace) >= 20)
        server.kill()
        assert run.wait(timeout=400) == 0, (workspace.root / "axon.log").read_text()[-3000:]
    assert workspace.lock == whole
    assert "going on without it" in (workspace.root / "axon.log").read_text()
    assert workspace.processes() == []
