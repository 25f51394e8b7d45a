"""Axon on a cluster: nodes without the checkout, a store, Postgres; what comes of it is what one machine makes."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import BUCKET, Cluster, query
from tests.flows.workspace import TINY, Workspace, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
# One processor a machine, so that two workers are on two machines.
SPREAD = TINY | {"workers": 2, "threads": 1, "runtime.checkpoint_every_s": 5.0}
LONG = SPREAD | {"pretrain.n_steps": 1500, "pretrain.evaluate_every": 500, "runtime.checkpoint_every_s": 3.0}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same parameters on one machine, by the embedded Ray."""
    workspace = Workspace.create(tmp_path_factory.mktemp("alone") / "checkout")
    workspace.set_parameters(SPREAD)
    result = workspace.axon("run")
    assert result.returncode == 0, result.stdout + result.stderr
    return workspace


@pytest.fixture(scope="module")
def spread(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace.create(tmp_path_factory.mktemp("spread") / "checkout")
    workspace.set_parameters(SPREAD)
    result = cluster.axon(workspace, "run")
    assert result.returncode == 0, result.stdout + result.stderr
    return workspace


def recorded_workers(workspace: Workspace, stage: str) -> int | list[int]:
    """How many trained it, as the newest statement says."""
    path = sorted((workspace.root / "lineage" / "statements").glob(f"*-{stage}.*"))[-1]
    payload = json.loads(base64.b64decode(json.loads(path.read_text())["payload"]))
    return payload["predicate"]["buildDefinition"]["internalParameters"]["determines"]["workers"]


def nodes_of(workspace: Workspace, stage: str) -> list[list[str]]:
    """The addresses of the workers of the last execution, by every start."""
    ended = [event for event in workspace.executions(stage)[-1] if event["event"] == "workers"]
    return ended[-1]["nodes"]


def test_nodes_without_the_checkout_make_the_same_bytes(alone: Workspace, spread: Workspace):
    assert spread.lock == alone.lock
    (nodes,) = nodes_of(spread, "pretrain")
    assert set(nodes) == {"10.79.0.1", "10.79.0.2"}
    assert recorded_workers(spread, "pretrain") == 2


def test_records_are_in_postgres_and_artifacts_in_s3(cluster: Cluster, spread: Workspace):
    stages = list(yaml.safe_load((spread.root / "dvc.yaml").read_text())["stages"])
    finished = query(cluster, "mlflow", "select name from runs where status = 'FINISHED'").split()
    assert set(stages) <= set(finished)
    flows = query(cluster, "prefect", "select distinct f.name from flow_run r join flow f on f.id = r.flow_id").split()
    assert {"pipeline", *stages} <= set(flows)
    assert query(cluster, "mlflow", "select count(*) from model_versions") == "1"
    code = f"import boto3; print(boto3.client('s3').list_objects_v2(Bucket={BUCKET!r}, Prefix='mlflow'))"
    listed = cluster.network.first.run([sys.executable, "-c", code], env=cluster.environment(spread), cwd=spread.root)
    assert "model.safetensors" in listed.stdout, listed.stdout + listed.stderr


def test_the_store_is_a_dvc_remote_that_holds_the_data(cluster: Cluster, spread: Workspace, tmp_path: Path):
    python = [sys.executable, "-m", "dvc"]
    env = cluster.environment(spread)

    def dvc(*arguments: str) -> str:
        result = cluster.network.first.run([*python, *arguments], env=env, cwd=spread.root)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    dvc("remote", "add", "-d", "store", f"s3://{BUCKET}/dvc")
    dvc("remote", "modify", "store", "endpointurl", env["AWS_ENDPOINT_URL"])
    assert "Everything is up to date" in dvc("push", "models/pretrain"), "the stage has left it there"
    dvc("push")
    before = spread.lock
    for name in ("models", "tokens", ".dvc/cache/files"):
        (spread.root / name).rename(tmp_path / name.replace("/", "-"))
    dvc("pull")
    assert spread.lock == before
    assert (spread.root / "models/ppo/model.safetensors").read_bytes() == (
        tmp_path / "models" / "ppo" / "model.safetensors"
    ).read_bytes()


def test_a_work_pool_serves_a_schedule(cluster: Cluster, spread: Workspace):
    """A worker of Prefect's own runs it; a run asked for while another one goes on is not started."""
    first, env = cluster.network.first, cluster.environment(spread)
    prefect = [sys.executable, "-m", "prefect"]
    unknown = cluster.axon(spread, "schedule", "--every", "1h", "--work-pool", "axon")
    assert unknown.returncode == 2
    assert "has no such pool" in unknown.stderr
    made = first.run([*prefect, "work-pool", "create", "axon", "--type", "process"], env=env, cwd=spread.root)
    assert made.returncode == 0, made.stderr
    assert cluster.axon(spread, "schedule", "--every", "1h", "--work-pool", "axon").returncode == 0
    refused = cluster.axon(spread, "worker")
    assert refused.returncode == 2
    assert "prefect worker start --pool axon" in refused.stderr
    for _ in range(2):  # before there is a worker, so that it finds both at once
        assert cluster.axon(spread, "schedule", "--run-now").returncode == 0
    log = cluster.log("work-pool")
    worker = first.start([*prefect, "worker", "start", "--pool", "axon"], log=log, env=env, cwd=spread.root)
    try:
        states = "select state_type from flow_run where deployment_id is not null and state_type <> 'SCHEDULED'"
        ended = ["CANCELLED", "COMPLETED"]
        wait_until(lambda: sorted(query(cluster, "prefect", states).split()) == ended, limit_s=240, every_s=2)
    finally:
        stop(worker)
    (note,) = (spread.root / ".axon" / "schedule" / "done").glob("*.json")
    assert json.loads(note.read_text())["outcome"].startswith("not retrained")
    assert cluster.axon(spread, "schedule", "--remove").returncode == 0
    assert query(cluster, "prefect", "select count(*) from deployment") == "0"


def stop(worker: subprocess.Popen[bytes], patience_s: float = 30.0) -> None:
    """End Prefect's own worker, which does not always leave after SIGTERM."""
    worker.terminate()
    try:
        worker.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait(timeout=patience_s)


@pytest.fixture(scope="module")
def whole(cluster: Cluster, spread: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A long training that nothing disturbs."""
    workspace = Workspace.behind(tmp_path_factory.mktemp("whole") / "checkout", spread, LONG)
    result = cluster.axon(workspace, "run", "pretrain")
    assert result.returncode == 0, result.stdout + result.stderr
    return workspace


def test_a_link_cut_for_half_a_minute_changes_no_byte(
    cluster: Cluster, spread: Workspace, whole: Workspace, tmp_path: Path
):
    workspace = Workspace.behind(tmp_path / "checkout", spread, LONG)
    run = cluster.start_axon(workspace, "run", "pretrain")
    wait_until(lambda: steps_of(workspace) > 100)
    cluster.network.cut()
    time.sleep(30)
    cluster.network.mend()
    deadline = time.monotonic() + 500
    while run.poll() is None and time.monotonic() < deadline:
        cluster.start_second_raylet()  # as a supervisor does: a raylet that was given up leaves
        time.sleep(2)
    assert run.poll() == 0, (workspace.root / "axon.log").read_text()[-4000:]
    assert workspace.lock == whole.lock
    cluster.wait_for_nodes(2)


def test_a_link_cut_for_good_leaves_one_worker_that_ends_training_and_a_record_of_it(
    cluster: Cluster, spread: Workspace, whole: Workspace, tmp_path: Path
):
    workspace = Workspace.behind(tmp_path / "checkout", spread, LONG | {"runtime.min_workers": 1})
    run = cluster.start_axon(workspace, "run", "pretrain")
    wait_until(lambda: steps_of(workspace) > 100)
    cluster.network.cut()
    try:
        assert run.wait(timeout=500) == 0, (workspace.root / "axon.log").read_text()[-4000:]
        assert [len(nodes) for nodes in nodes_of(workspace, "pretrain")] == [2, 1]
        assert recorded_workers(workspace, "pretrain") == [2, 1]
    finally:
        cluster.come_back()


def steps_of(workspace: Workspace) -> int:
    executions = workspace.executions("pretrain")
    return max((e["step"] for e in executions[-1] if e["event"] == "metrics"), default=0) if executions else 0
