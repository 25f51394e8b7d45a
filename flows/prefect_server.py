"""The Prefect server of a run: started, watched, started again if it dies, and waited for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil

from flows import server_log
from flows.ports import PREFECT_PORT, free_port
from tasks.errors import UserError
from tasks.redact import redacted
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout, remember_address
from tasks.state_files import DAMAGE
from tasks.tracking import databases

_START_LIMIT_S = 120
_AWAY_LIMIT_S = 30  # a killed server of ours is there again by then
_MAX_RESTARTS = 5
_SETTLED_S = 600
SERVER_NICENESS = 10


def answers(url: str) -> bool:
    """Whether a server answers 200 at `url`, to the user and password in it if there are any."""
    try:
        with urllib.request.urlopen(_request(url), timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, HTTPException, ValueError):  # the second from whatever else listens there, the last: no address
        return False


def _request(url: str) -> urllib.request.Request:
    """urllib takes `user:password@host` for the name of a host."""
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl())
    if at:
        request.add_header("Authorization", f"Basic {b64encode(unquote(userinfo).encode()).decode()}")
    return request


def _serve_in_background() -> None:
    """In a server's process before it starts: die with the parent, leave the cores to training, and Ctrl-C to others.

    A training step on two threads waits for the slower one, so a server that takes a core for a moment stalls both.
    """
    guard.bind_to_parent()
    os.setpgrp()
    os.nice(SERVER_NICENESS)


def log_of(checkout: Checkout) -> Path:
    return checkout.state / "logs" / "prefect.log"


def start(checkout: Checkout, port: int, *, with_services: bool = False) -> subprocess.Popen[bytes]:
    """Start a server at `port` of loopback, with its scheduler or without; returns before it answers."""
    if not any(name.endswith("_DATABASE_CONNECTION_URL") for name in os.environ):
        databases.provide("prefect", Path(os.environ["PREFECT_HOME"]) / "prefect.db")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = server_log.serve(
        command if with_services else [*command, "--no-services"],
        log_of(checkout),
        folder=checkout.root,
        first=_serve_in_background,
    )
    remember_address(checkout, "prefect", {"url": f"http://127.0.0.1:{port}", "pid": process.pid})
    return process


def running(checkout: Checkout) -> str | None:
    """The address of the server of a run of this checkout under way; another checkout's may answer at the same port."""
    path = checkout.state / "services" / "prefect.json"
    if not path.is_file():
        return None
    try:
        noted = json.loads(path.read_text())
        is_ours = str(checkout.root) == psutil.Process(noted["pid"]).cwd()
        return str(noted["url"]) if is_ours and answers(f"{noted['url']}/api/health") else None
    except (psutil.Error, *DAMAGE):
        return None


class _Watched:
    """A server, started again at its port when it dies after it has once answered."""

    port = PREFECT_PORT

    def __init__(self, checkout: Checkout, *, with_services: bool) -> None:
        self._checkout = checkout
        self._with_services = with_services
        # One process, one port: Prefect's client keeps the address that it began with.
        self._port = _Watched.port = free_port(_Watched.port)
        self.url = f"http://127.0.0.1:{self._port}"
        self._lock = threading.Lock()
        self._is_stopping = False
        self.has_given_up = False
        log_of(checkout).unlink(missing_ok=True)
        self._started = threading.Event()
        # The kernel ends a child bound to its parent with the *thread* that made it: one thread makes them all.
        threading.Thread(target=self._keep, name="prefect-server", daemon=True).start()
        self._started.wait()

    def _keep(self) -> None:
        n_deaths = 0
        while n_deaths <= _MAX_RESTARTS:
            with self._lock:
                if self._is_stopping:
                    return
                self._process = start(self._checkout, self._port, with_services=self._with_services)
                self._started.set()
            was_up, began = False, time.monotonic()
            while self._process.poll() is None:
                was_up = was_up or answers(f"{self.url}/api/health")
                time.sleep(1.0 if was_up else 0.1)
            if not was_up and self._process.returncode >= 0:
                break  # it does not start; one that was killed before it was up may
            # A worker is up for weeks: what counts is how often the server dies at a time.
            n_deaths = 1 if time.monotonic() - began > _SETTLED_S else n_deaths + 1
        self.has_given_up = True

    def stop(self) -> None:
        with self._lock:
            self._is_stopping = True
            self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _of_worker(checkout: Checkout) -> str | None:
    """The server of a worker of this checkout, if one is up: two servers would write to one database."""
    if guard.holder_of(checkout.locks / "worker") is None:
        return None
    url = running(checkout)
    return f"{url}/api" if url else None


@contextmanager
def prefect_server(checkout: Checkout, *, with_services: bool = False) -> Iterator[Callable[[], None]]:
    """`PREFECT_API_URL` as it is, that of this checkout's worker, or a server of this run; gives a function that waits
    until it is ready."""
    found = os.environ.get("PREFECT_API_URL") or (None if with_services else _of_worker(checkout))
    if found:
        _use(found)
        yield lambda: _wait_for_another_s(found)
        return
    server = _Watched(checkout, with_services=with_services)
    _use(f"{server.url}/api")
    try:
        yield lambda: _wait_for_ours(server, log_of(checkout))
    finally:
        _use(None)
        server.stop()


def _use(api: str | None) -> None:
    """Have Prefect's clients talk to `api`, also where Prefect is imported already: that fixes its settings."""
    if api is None:
        os.environ.pop("PREFECT_API_URL", None)
    else:
        os.environ["PREFECT_API_URL"] = api
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


def is_away(error: BaseException) -> bool:
    """Whether an error of Prefect's client means that its server does not answer."""
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    seen: BaseException | None = error
    while seen is not None:  # it may be wrapped: "Failed to reach API"
        if isinstance(seen, httpx.TransportError):
            return True
        if isinstance(seen, PrefectHTTPStatusError) and seen.response.status_code >= 500:
            return True
        seen = seen.__cause__
    return False


def is_ready_soon() -> bool:
    """Whether the server at `PREFECT_API_URL` answers within some seconds."""
    return _answers_within(os.environ["PREFECT_API_URL"], _AWAY_LIMIT_S, every_s=0.5)


def _answers_within(api: str, limit_s: float, *, every_s: float, is_hopeless: Callable[[], bool] = bool) -> bool:
    deadline = time.monotonic() + limit_s
    while not answers(f"{api}/health"):
        if is_hopeless() or time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def _wait_for_ours(server: _Watched, log: Path) -> None:
    """Wait until the server answers: a `UserError` with the end of its log if it does not.

    Prefect's client tries again for a minute where it was connected before, but gives up at once where it was not.
    """
    if not _answers_within(f"{server.url}/api", _START_LIMIT_S, every_s=0.1, is_hopeless=lambda: server.has_given_up):
        raise UserError(
            f"Prefect does not answer at {server.url}; the end of {log}:\n{server_log.end_of(log)}", exit_code=1
        )


def _wait_for_another_s(api: str) -> None:
    """Wait for a server that somebody else has started."""
    if not _answers_within(api, _AWAY_LIMIT_S, every_s=0.5):
        raise UserError(
            f"Prefect does not answer at PREFECT_API_URL={redacted(api)}. Start that server, or unset PREFECT_API_URL: "
            "a run then starts one of its own.",
            exit_code=1,
        )
