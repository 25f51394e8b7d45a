"""The engines of a run, started or found: the Prefect server, Ray, and the MLflow store behind a sender."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import UserError
from tasks.parameters import Parameters
from tasks.runtime import cluster, guard
from tasks.runtime.checkout import Checkout, remember_address
from tasks.tracking.mlflow_store import Sender

PREFECT_PORT = 4200
MLFLOW_PORT = 5000
_START_LIMIT_S = 120
_SERVER_NICENESS = 10


def free_port(preferred: int) -> int:
    """`preferred` if nothing listens there on loopback, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UserError("no free port on 127.0.0.1; close some programs and run again.", exit_code=1)


def answers(url: str) -> bool:
    """Whether a server answers 200 at `url`."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _serve_in_background() -> None:
    """In a server's process before it starts: die with the parent, and leave the cores to training.

    A training step on two threads waits for the slower one, so a server that takes a core for a moment stalls both.
    """
    guard.bind_to_parent()
    os.nice(_SERVER_NICENESS)


def start_prefect(checkout: Checkout) -> tuple[subprocess.Popen[bytes], str]:
    """Start a Prefect server on loopback; returns before it answers. Its log is `.axon/logs/prefect.log`."""
    port = free_port(PREFECT_PORT)
    log_path = checkout.state / "logs" / "prefect.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--no-services"],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=_serve_in_background,
        )
    remember_address(checkout, "prefect", {"url": f"http://127.0.0.1:{port}", "pid": process.pid})
    return process, f"http://127.0.0.1:{port}"


def wait_for(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a started server answers at `url`; a `UserError` with its last lines if it does not."""
    deadline = time.monotonic() + _START_LIMIT_S
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise UserError(f"the server for {url} did not start; the end of {log}:\n{tail}", exit_code=1)
        time.sleep(0.1)


@contextmanager
def prefect_server(checkout: Checkout) -> Iterator[None]:
    """`PREFECT_API_URL` as it is, or a server of this run."""
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    process, url = start_prefect(checkout)
    os.environ["PREFECT_API_URL"] = f"{url}/api"
    try:
        yield
    finally:
        del os.environ["PREFECT_API_URL"]
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_prefect(checkout: Checkout) -> None:
    """Wait for the server of `prefect_server`: it starts while Ray does."""
    url = f"{os.environ['PREFECT_API_URL']}/health"
    address = checkout.state / "services" / "prefect.json"
    deadline = time.monotonic() + _START_LIMIT_S
    while not answers(url):
        if time.monotonic() > deadline or not _is_alive(address):
            log = checkout.state / "logs" / "prefect.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.is_file() else ""
            raise UserError(f"Prefect does not answer at {url}; the end of {log}:\n{tail}", exit_code=1)
        time.sleep(0.1)


def _is_alive(address: Path) -> bool:
    if not address.is_file():
        return True
    try:
        stat = Path(f"/proc/{json.loads(address.read_text())['pid']}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@contextmanager
def ray_head(params: Parameters) -> Iterator[None]:
    """An embedded Ray, or the cluster of `RAY_ADDRESS`; stages find it by the environment."""
    os.environ[cluster.ADDRESS] = cluster.start(params)
    try:
        yield
    finally:
        del os.environ[cluster.ADDRESS]
        cluster.shut_down()


@contextmanager
def mlflow_sender(checkout: Checkout, *, every_s: float = 10.0) -> Iterator[Sender]:
    """Deliver journals to MLflow in a thread while the run goes on, and what is left when it ends."""
    sender = Sender(checkout)
    stop = threading.Event()

    def deliver() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _SERVER_NICENESS)
        while not stop.wait(every_s):
            try:
                sender.deliver()
            except Exception as error:  # noqa: BLE001
                # The journals keep what was not told; training must not stop for MLflow. The last delivery raises.
                logging.getLogger(__name__).warning("MLflow was not reached, trying again: %s", error)

    thread = threading.Thread(target=deliver, name="mlflow-sender", daemon=True)
    thread.start()
    try:
        yield sender
    finally:
        stop.set()
        thread.join()
        sender.deliver()
