"""`axon ui` and `axon report`: what a person looks at in the browser and in the terminal."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from rich.console import Console
from rich.markdown import Markdown

from flows import services
from tasks.errors import UserError
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout


def show_report(checkout: Checkout) -> None:
    """Print the Markdown twin, then the path of the page."""
    folder = checkout.root / "report"
    if not (folder / "report.md").is_file():
        raise UserError(f"there is no report in {folder} yet; make one with `axon run`.", exit_code=1)
    console = Console(highlight=False)
    console.print(Markdown((folder / "report.md").read_text(encoding="utf-8")))
    console.print(f"\nThe page: {folder / 'report.html'}", soft_wrap=True)


def _running_prefect(checkout: Checkout) -> str | None:
    """The address of the Prefect server of a run under way."""
    path = checkout.state / "services" / "prefect.json"
    if not path.is_file():
        return None
    url = str(json.loads(path.read_text())["url"])
    return url if services.answers(f"{url}/api/health") else None


def serve(checkout: Checkout) -> None:
    """Start what is not running, print the addresses, and stay until Ctrl-C."""
    console = Console(highlight=False)
    started: list[subprocess.Popen[bytes]] = []
    logs = checkout.state / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    try:
        prefect_url = _running_prefect(checkout)
        if prefect_url is None:
            process, prefect_url = services.start_prefect(checkout)
            started.append(process)
        port = services.free_port(services.MLFLOW_PORT)
        mlflow_url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        store = [
            "--backend-store-uri",
            checkout.tracking_uri,
            "--default-artifact-root",
            checkout.artifact_root,
        ]
        with (logs / "mlflow.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *store, "--workers", "1"],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=guard.bind_to_parent,
            )
        started.append(process)
        services.wait_for(process, f"{mlflow_url}/health", logs / "mlflow.log")
        if len(started) == 2:
            services.wait_for(started[0], f"{prefect_url}/api/health", logs / "prefect.log")
        console.print(f"MLflow   {mlflow_url}   runs, metrics, the registry")
        console.print(f"Prefect  {prefect_url}   flows and their states")
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
