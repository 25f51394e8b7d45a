"""Addresses of engines in the environment: those that are none are refused at once, those with a password are used."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows import prefect_server
from tasks.errors import UserError
from tasks.runtime import environment
from tasks.runtime.checkout import Checkout
from tests.flows import canaries


@pytest.mark.parametrize(
    ("name", "value", "is_one"),
    [
        ("PREFECT_API_URL", "http://127.0.0.1:4200/api", True),
        ("PREFECT_API_URL", "https://user:password@prefect.invalid/api", True),
        ("PREFECT_API_URL", "http://[::1]:4200/api", True),
        ("PREFECT_API_URL", "127.0.0.1:4200", False),
        ("PREFECT_API_URL", "http://", False),
        ("PREFECT_API_URL", "http://host:99999/api", False),
        ("PREFECT_API_URL", "ftp://host/api", False),
        ("PREFECT_API_URL", "http://a b/api", False),
        ("RAY_ADDRESS", "auto", True),
        ("RAY_ADDRESS", "127.0.0.1:6379", True),
        ("RAY_ADDRESS", "ray://head:10001", True),
        ("RAY_ADDRESS", "head:port", False),
        ("RAY_ADDRESS", "http://head:8265", False),
        ("MLFLOW_TRACKING_URI", "sqlite:////srv/mlflow.db", True),
        ("MLFLOW_TRACKING_URI", "postgresql+psycopg2://user:pass/word@host/db", True),
        ("MLFLOW_TRACKING_URI", "databricks", True),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000", True),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:port", False),
        ("MLFLOW_TRACKING_URI", "http:/127.0.0.1", False),
    ],
)
def test_an_address_is_one_or_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, is_one: bool
):
    for known in ("PREFECT_API_URL", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(known, raising=False)
    before = dict(environment.os.environ)
    monkeypatch.setenv(name, value)
    try:
        if is_one:
            environment.prepare(Checkout(tmp_path))
        else:
            with pytest.raises(UserError, match=f"^{name}=.* is no address; it must be like ") as refused:
                environment.prepare(Checkout(tmp_path))
            assert refused.value.exit_code == 2
    finally:
        environment.os.environ.clear()
        environment.os.environ.update(before)


def test_a_password_in_an_address_is_not_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PREFECT_API_URL", canaries.address("ftp", "prefect", "host/api"))
    with pytest.raises(UserError) as refused:
        environment.prepare(Checkout(tmp_path))
    assert canaries.in_text(str(refused.value)) == []


class _Well(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


def test_a_server_behind_a_password_answers_to_it_alone():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Well)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with canaries.behind_a_password(server.server_address[1], "axon", canaries.canary("p")) as (port, answered):
            host = f"127.0.0.1:{port}/api/health"
            assert prefect_server.answers(canaries.address("http", "p", host))
            assert not prefect_server.answers(canaries.address("http", "another", host))
            assert not prefect_server.answers(f"http://{host}")
            assert answered == [200, 401, 401]
            assert not prefect_server.answers("no address")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
