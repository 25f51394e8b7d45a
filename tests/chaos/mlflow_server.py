"""An MLflow server on loopback that can be killed and started again at its port, with what it knows."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from flows.prefect_server import answers
from tasks.tracking import databases
from tests.flows.workspace import wait_until


class MlflowServer:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        databases.provide("mlflow", folder / "mlflow.db")
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self._port = int(one.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, if it does not run; returns when it answers."""
        self.launch()
        wait_until(lambda: answers(f"{self.url}/health"), limit_s=120, every_s=0.3)

    def launch(self) -> None:
        """Start it, if it does not run; returns at once."""
        if self._process is None:
            command = [
                sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port),
                "--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db",
                "--artifacts-destination", str(self._folder / "artifacts"),
            ]  # fmt: skip
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "AXON_"))}
            environment |= {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
            with (self._folder / "server.log").open("ab") as log:
                self._process = subprocess.Popen(
                    command, stdout=log, stderr=log, cwd=self._folder, env=environment, start_new_session=True
                )

    def kill(self) -> None:
        """`kill -9` of the server and of the processes that it works with."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
