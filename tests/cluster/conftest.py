"""A cluster on one machine: two raylets, an S3 server, Postgres behind MLflow and Prefect. Needs root."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from tests.cluster.network import Machine, Network
from tests.flows.workspace import Workspace, wait_until

GCS_PORT, S3_PORT, POSTGRES_PORT, PREFECT_PORT, MLFLOW_PORT = 6399, 5599, 5439, 4299, 5099
BUCKET = "axon"


def _postgres_bin() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.fail("these tests need Postgres from the distribution's packages (apt-get install postgresql)")
    return found[-1].parent


@dataclass
class Cluster:
    """Its machines, and the variables with which a checkout on the first one uses all of it."""

    folder: Path
    network: Network
    variables: dict[str, str]
    _raylet: subprocess.Popen[bytes] | None = None
    logs: list[IO[bytes]] = field(default_factory=list)

    def environment(self, workspace: Workspace) -> dict[str, str]:
        return {**workspace.environment(), **self.variables}

    def axon(self, workspace: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return self.network.first.run(command, env=self.environment(workspace), cwd=workspace.root)

    def start_axon(self, workspace: Workspace, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        log = (workspace.root / "axon.log").open("ab")
        return self.network.first.start(command, log=log, env=self.environment(workspace), cwd=workspace.root)

    def log(self, name: str) -> IO[bytes]:
        self.logs.append((self.folder / f"{name}.log").open("ab"))
        return self.logs[-1]

    def start_raylet(self, machine: Machine, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={machine.address}", "--num-cpus=1", "--object-store-memory=200000000"]
        env = {**self.variables, "PATH": os.environ["PATH"], "GLOO_SOCKET_IFNAME": machine.interface}
        del env["RAY_ADDRESS"]
        return machine.start([*command, *arguments], log=self.log(f"ray-{machine.name}"), env=env)

    def start_second_raylet(self) -> None:
        first, second = self.network.first, self.network.second
        if self._raylet is not None and self._raylet.poll() is None:
            return
        self._raylet = self.start_raylet(second, f"--address={first.address}:{GCS_PORT}")

    def wait_for_nodes(self, n: int) -> None:
        """Wait until Ray has `n` nodes that are alive."""
        wait_until(lambda: self._has_nodes(n), limit_s=120, every_s=2)

    def come_back(self) -> None:
        """Mend the link and wait for both nodes; a raylet that was given up leaves, and is started anew."""
        self.network.mend()

        def is_whole() -> bool:
            self.start_second_raylet()
            return self._has_nodes(2)

        wait_until(is_whole, limit_s=180, every_s=2)

    def _has_nodes(self, n: int) -> bool:
        code = f"import ray; ray.init(logging_level='ERROR'); assert len([x for x in ray.nodes() if x['Alive']]) == {n}"
        command, env = [sys.executable, "-c", code], {**self.variables, "PATH": os.environ["PATH"]}
        return self.network.first.run(command, env=env, cwd=self.folder).returncode == 0


def _answers(machine: Machine, url: str, cwd: Path) -> bool:
    code = f"import urllib.request as u; u.urlopen({url!r}, timeout=2)"
    return machine.run([sys.executable, "-c", code], env={"PATH": os.environ["PATH"]}, cwd=cwd).returncode == 0


def _start_postgres(cluster: Cluster) -> None:
    folder = cluster.folder / "postgres"
    folder.mkdir()
    shutil.chown(folder, "postgres")
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    first, env = cluster.network.first, {"PATH": os.environ["PATH"]}
    made = first.run(
        [*as_postgres, str(_postgres_bin() / "initdb"), "-D", str(folder / "data"), "-A", "trust", "-U", "axon"],
        env=env,
        cwd=folder,
    )
    assert made.returncode == 0, made.stderr
    server = [str(_postgres_bin() / "postgres"), "-D", str(folder / "data"), "-p", str(POSTGRES_PORT)]
    first.start([*as_postgres, *server, "-h", "127.0.0.1", "-k", str(folder)], log=cluster.log("postgres"), env=env)
    for name in ("mlflow", "prefect"):
        create = ["createdb", "-h", "127.0.0.1", "-p", str(POSTGRES_PORT), "-U", "axon", name]
        wait_until(lambda c=create: first.run(c, env=env, cwd=folder).returncode == 0, limit_s=60, every_s=0.5)


def query(cluster: Cluster, database: str, text: str) -> str:
    """What Postgres answers, a line a row."""
    command = ["psql", "-h", "127.0.0.1", "-p", str(POSTGRES_PORT), "-U", "axon", "-At", "-c", text, database]
    result = cluster.network.first.run(command, env={"PATH": os.environ["PATH"]}, cwd=cluster.folder)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    folder = Path(tempfile.mkdtemp(prefix="axon-cluster-"))
    folder.chmod(0o755)
    cache = Path("/var/tmp") / f"axon-cluster-{secrets.token_hex(4)}"
    cache.mkdir()
    code = [Path(__file__).resolve().parents[2] / name for name in ("flows", "tasks", "axon_models")]
    # The second machine sees neither workspaces, nor this code, nor what the first one has in its cache and unpacked.
    ray = Path("/tmp/ray")
    ray.mkdir(exist_ok=True)
    network = Network([tmp_path_factory.getbasetemp(), ray, cache, *code])
    first = network.first
    secret = secrets.token_hex(16)
    s3, database = f"http://{first.address}:{S3_PORT}", f"127.0.0.1:{POSTGRES_PORT}"
    variables = {
        "RAY_ADDRESS": f"{first.address}:{GCS_PORT}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "AXON_STORAGE": f"s3://{BUCKET}/dvc",
        "AXON_CACHE": str(cache),
        "AWS_ACCESS_KEY_ID": "axon",
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3,
        "MLFLOW_S3_ENDPOINT_URL": s3,
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{MLFLOW_PORT}",
        "PREFECT_API_URL": f"http://127.0.0.1:{PREFECT_PORT}/api",
        "GLOO_SOCKET_IFNAME": first.interface,
    }
    cluster = Cluster(folder, network, variables)
    env = {**variables, "PATH": os.environ["PATH"], "HOME": str(folder)}
    try:
        _start_postgres(cluster)
        moto = [sys.executable, "-m", "moto.server", "-H", first.address, "-p", str(S3_PORT)]
        first.start(moto, log=cluster.log("s3"), env=env)
        mlflow = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(MLFLOW_PORT)]
        mlflow += ["--backend-store-uri", f"postgresql://axon@{database}/mlflow", "--workers", "1"]
        mlflow += ["--artifacts-destination", f"s3://{BUCKET}/mlflow"]
        first.start(mlflow, log=cluster.log("mlflow"), env=env)
        prefect = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
        postgres = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://axon@{database}/prefect"}
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        env_of_prefect = {key: value for key, value in env.items() if key != "PREFECT_API_URL"} | postgres | quiet
        first.start([*prefect, "--port", str(PREFECT_PORT)], log=cluster.log("prefect"), env=env_of_prefect)
        cluster.start_raylet(first, "--head", f"--port={GCS_PORT}", "--include-dashboard=false")
        for url in (s3, f"http://127.0.0.1:{MLFLOW_PORT}/health", f"http://127.0.0.1:{PREFECT_PORT}/api/health"):
            wait_until(lambda u=url: _answers(first, u, folder), limit_s=180, every_s=1)
        bucket = f"import boto3; boto3.client('s3').create_bucket(Bucket={BUCKET!r})"
        made = first.run([sys.executable, "-c", bucket], env=env, cwd=folder)
        assert made.returncode == 0, made.stderr
        cluster.wait_for_nodes(1)
        cluster.start_second_raylet()
        cluster.wait_for_nodes(2)
        yield cluster
    finally:
        network.close()
        for log in cluster.logs:
            log.close()
        if not os.environ.get("AXON_KEEP_CLUSTER_LOGS"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)
        time.sleep(0.1)
