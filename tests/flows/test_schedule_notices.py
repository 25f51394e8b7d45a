"""Notices by the real Prefect server: promotion, refusal and failure arrive once each; the address stays secret."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from flows import notices
from tests.flows.conftest import FinishedRun
from tests.flows.test_promotion import champion, decisions, register_sft
from tests.flows.workspace import TINY, Workspace, wait_until

SECRET = "tallyho-7Q3x-orchard"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.create(tmp_path_factory.mktemp("notices") / "checkout")


@pytest.mark.parametrize("address", ["", f"https://example.org/{SECRET}", f"{SECRET}://somewhere"])
def test_an_address_that_nothing_can_be_sent_to_is_refused_and_not_printed(workspace: Workspace, address: str):
    asked = workspace.axon("schedule", "--every", "6h", "--notify", AXON_NOTIFY_URL=address)
    assert asked.returncode == 2
    assert "AXON_NOTIFY_URL" in asked.stderr
    assert "json://host:port/path" in asked.stderr
    assert SECRET not in asked.stdout + asked.stderr
    assert workspace.axon("schedule").returncode == 2, "nothing is half set"


def test_notices_need_a_schedule_are_listed_kept_and_removed_with_it(workspace: Workspace):
    address = f"json://127.0.0.1:9/{SECRET}"
    assert workspace.axon("schedule", "--notify", AXON_NOTIFY_URL=address).returncode == 2
    assert workspace.axon("schedule", "--every", "6h").returncode == 0
    told = [workspace.axon("schedule", "--notify", AXON_NOTIFY_URL=address)]
    told.append(workspace.axon("schedule", "--every", "8h"))
    told.append(workspace.axon("schedule", "--list"))
    assert [one.returncode for one in told] == [0, 0, 0]
    assert "notices of failures, promotions and refusals by JSON" in told[-1].stdout
    assert SECRET not in "".join(one.stdout + one.stderr for one in told)
    kept = workspace.root / ".axon" / "schedule" / "notify-url"
    assert kept.read_text() == address
    assert kept.stat().st_mode & 0o777 == 0o600
    assert files_with(workspace.root, SECRET) == [kept]
    assert workspace.axon("schedule", "--no-notify").returncode == 0
    assert not kept.exists()
    assert "no notices" in workspace.axon("schedule").stdout
    assert workspace.axon("schedule", "--notify", AXON_NOTIFY_URL=address).returncode == 0
    assert workspace.axon("schedule", "--remove").returncode == 0
    assert files_with(workspace.root, SECRET) == []


def files_with(root: Path, text: str) -> list[Path]:
    """The files below `root` that hold `text`, but for the code of this test."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != Path(__file__).name]
    return [path for path in files if text.encode() in path.read_bytes()]


def test_the_server_takes_what_the_client_sends_of_an_automation_when_it_updates_one():
    from prefect.server.events.schemas.automations import AutomationUpdate

    for kind, event in notices.EVENTS.items():
        sent = notices._automation(kind, uuid4()).model_dump(mode="json", exclude_unset=True)  # as the client does
        taken = AutomationUpdate.model_validate(sent)
        assert taken.trigger.expect == {event}
        assert taken.actions[0].type == "send-notification"


@contextmanager
def receiver() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """A server on loopback; gives its port and what was posted to it."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append({"path": self.path, **json.loads(body)})
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, received
    finally:
        server.shutdown()


def count(workspace: Workspace, table: str) -> int:
    database = sqlite3.connect(f"file:{workspace.root}/.axon/prefect/prefect.db?mode=ro", uri=True, timeout=30)
    (found,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
    database.close()
    return int(found)


@contextmanager
def worker(workspace: Workspace) -> Iterator[None]:
    process = workspace.start("worker")
    try:
        wait_until(lambda: "\nretraining every" in (workspace.root / "axon.log").read_text(), every_s=0.3)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


@pytest.mark.engines
@pytest.mark.slow
def test_each_promotion_refusal_and_failure_arrives_once(finished: FinishedRun):
    workspace = finished.workspace
    first = champion(workspace)
    other = next(v for v in ("1", "2") if v != first)
    if not (workspace.root / "lineage" / "models" / f"axon-chat-{other}").is_dir():
        other = register_sft(workspace)
    with receiver() as (port, received):
        address = f"json://127.0.0.1:{port}/{SECRET}"
        assert workspace.axon("schedule", "--every", "6h", "--notify", AXON_NOTIFY_URL=address).returncode == 0
        with worker(workspace):
            workspace.set_parameters(TINY | {"gate.margin": 1.0})
            refused = workspace.axon("promote", other)
            assert refused.returncode == 1, refused.stdout + refused.stderr
            wait_until(lambda: len(received) == 1, limit_s=60, every_s=0.3)
            forced = workspace.axon("promote", other, "--force", "--reason", "seen by https://ada:hush@example.org")
            assert forced.returncode == 0, forced.stderr
            wait_until(lambda: len(received) == 2, limit_s=60, every_s=0.3)
        (workspace.root / "params.yaml").write_text("seed: none of these\n")
        with worker(workspace):  # a second one sets nothing up twice, and tells nothing again
            assert workspace.axon("schedule", "--run-now").returncode == 0
            wait_until(lambda: len(received) == 3, limit_s=120, every_s=0.3)
            assert (count(workspace, "automation"), count(workspace, "block_document")) == (3, 1)
            workspace.set_parameters(TINY)
            assert workspace.axon("rollback", "--reason", "as it was", "--to", first).returncode == 0
            assert workspace.axon("schedule", "--remove").returncode == 0
            wait_until(lambda: count(workspace, "automation") == 0, limit_s=30, every_s=0.5)
            wait_until(lambda: count(workspace, "block_document") == 0, limit_s=30, every_s=0.5)
    assert {one["path"] for one in received} == {f"/{SECRET}"}
    refusal, promotion, failure = received
    *_, kept, promoted, _back = decisions(workspace)
    assert refusal["title"] == f"axon-chat version {other} is not promoted; {first} stays"
    assert refusal["message"].startswith(kept["reason"])
    assert "does not lie above the margin of 1" in refusal["message"]
    assert promotion["title"] == f"axon-chat version {other} is the champion now, not {first}"
    assert promotion["message"].startswith("seen by https://…@example.org")
    assert promoted["statement"][:16] in promotion["message"]
    assert failure["title"] == "retraining axon-chat failed"
    assert "params.yaml" in failure["message"]
    assert "occasion: asked for" in failure["message"]
    assert files_with(workspace.root, SECRET) == [], "it was in no log, no database in the clear, no statement"
    assert os.environ.get("AXON_NOTIFY_URL") is None
