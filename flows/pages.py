"""`axon ui` and `axon report`: what a person looks at in the browser and in the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from flows import prefect_server, server_log
from flows.ports import MLFLOW_PORT, PREFECT_PORT, free_port
from tasks.errors import UserError
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout
from tasks.tracking.mlflow_store import EXPERIMENT

_START_LIMIT_S = 120


def show_report(checkout: Checkout) -> None:
    """Print the Markdown twin, then the path of the page."""
    folder = checkout.root / "report"
    if not (folder / "report.md").is_file():
        raise UserError(f"there is no report in {folder} yet; make one with `axon run`.", exit_code=1)
    console = Console(highlight=False)
    console.print(Markdown((folder / "report.md").read_text(encoding="utf-8")))
    console.print(f"\nThe page: {folder / 'report.html'}", soft_wrap=True)


def _wait_for(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a started server answers at `url`; a `UserError` with its last lines if it does not."""
    deadline = time.monotonic() + _START_LIMIT_S
    while not prefect_server.answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError(
                f"the server for {url} did not start; the end of {log}:\n{server_log.end_of(log)}", exit_code=1
            )
        time.sleep(0.1)


def _runs_page(mlflow_url: str) -> str:
    """The page of MLflow that lists this checkout's runs; its front page before the first of them."""
    address = f"{mlflow_url}/api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}"
    try:
        with urllib.request.urlopen(address, timeout=10) as response:
            return f"{mlflow_url}/#/experiments/{json.load(response)['experiment']['experiment_id']}/runs"
    except (OSError, ValueError, KeyError):
        return mlflow_url


def serve(checkout: Checkout) -> None:
    """Start what is not running, print the addresses, and stay until Ctrl-C."""
    console = Console(highlight=False)
    # MLflow's server starts processes of its own, which outlive it when it is killed.
    with guard.run_guard(checkout, f"ui-{os.getpid()}", folder="pages"):
        _serve(checkout, console)


def _serve(checkout: Checkout, console: Console) -> None:
    started: list[subprocess.Popen[bytes]] = []
    logs = checkout.state / "logs"
    try:
        prefect_url = prefect_server.running(checkout)
        if prefect_url is None:
            port = free_port(PREFECT_PORT)
            prefect_url = f"http://127.0.0.1:{port}"
            started.append(prefect_server.start(checkout, port))
        port = free_port(MLFLOW_PORT)
        mlflow_url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        store = {
            "MLFLOW_BACKEND_STORE_URI": checkout.tracking_uri,
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": checkout.artifact_root,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        (logs / "mlflow.log").unlink(missing_ok=True)
        process = server_log.serve(
            [*command, "--workers", "1"],
            logs / "mlflow.log",
            folder=Path.cwd(),
            variables={**os.environ, **store},  # not arguments: an address may hold a password
            first=guard.bind_to_parent,
        )
        started.append(process)
        _wait_for(process, f"{mlflow_url}/health", logs / "mlflow.log")
        if len(started) == 2:
            _wait_for(started[0], f"{prefect_url}/api/health", prefect_server.log_of(checkout))
        runs = _runs_page(mlflow_url)
        console.print(f"MLflow   {runs}   runs, metrics, artifacts", soft_wrap=True)
        console.print(f"         {mlflow_url}/#/models   registered versions", soft_wrap=True)
        console.print(f"Prefect  {prefect_url}/runs   flows and their states", soft_wrap=True)
        console.print("Ctrl-C ends them.")
        while all(process.poll() is None for process in started):
            time.sleep(0.5)
        raise UserError(f"a server ended by itself; see the logs in {logs}", exit_code=1)
    except KeyboardInterrupt:
        console.print("\nended")
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(timeout=10)
