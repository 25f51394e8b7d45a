"""Notes below `.axon/` that are damaged: named with what to do, or made anew; never another error, never a guess."""

import json
from pathlib import Path

import pytest
from hypothesis import given

from flows import prefect_server, schedule
from tasks import registry
from tasks.errors import UserError
from tasks.retraining import baseline
from tasks.runtime.checkout import Checkout
from tests.tasks.test_fuzz import fuzzed, mutated

SCHEDULE = {"cron": None, "every_s": 3600.0, "on_data": True, "limit_s": 86400.0, "paused": False, "timezone": "UTC"}


def put(checkout: Checkout, name: str, content: bytes) -> Path:
    path = checkout.state / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refused(path: Path, error: UserError) -> None:
    assert str(path) in str(error)
    assert "is damaged" in str(error)
    assert error.exit_code == 1


@fuzzed
@given(content=mutated(json.dumps(SCHEDULE).encode()))
def test_a_schedule(tmp_path: Path, content: bytes):
    checkout = Checkout(tmp_path)
    path = put(checkout, "schedule/schedule.json", content)
    try:
        found = schedule.read(checkout)
    except UserError as error:
        refused(path, error)
        schedule.remove(checkout)
        assert schedule.read(checkout) is None
    else:
        assert found is not None
        assert found.limit_s >= schedule.SHORTEST_S
        schedule.show(checkout)


@fuzzed
@given(content=mutated(b'{"why": "asked for", "time": 1700000000.5}'))
def test_a_request(tmp_path: Path, content: bytes):
    checkout = Checkout(tmp_path)
    path = put(checkout, "schedule/requests/a.json", content)
    try:
        ((_, asked),) = schedule.requests(checkout)
    except UserError as error:
        refused(path, error)
    else:
        assert isinstance(asked["time"], float)


@fuzzed
@given(content=mutated(b'{"occasion": "schedule", "began": 1.0, "ended": 20.0, "outcome": "kept: [/x] too long"}'))
def test_what_came_of_an_occasion(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes):
    checkout = Checkout(tmp_path)
    put(checkout, "schedule/schedule.json", json.dumps(SCHEDULE).encode())
    path = put(checkout, "schedule/done/a.json", content)
    try:
        schedule.show(checkout)
    except UserError as error:
        refused(path, error)
    else:
        assert " UTC  " in capsys.readouterr().out


@fuzzed
@given(content=mutated(b'{"why": "20 new records"}'))
def test_a_retraining_that_has_begun(tmp_path: Path, content: bytes):
    path = put(Checkout(tmp_path), "retrain/begun.json", content)
    try:
        begun = baseline.begun(Checkout(tmp_path))
        assert begun is not None
        assert isinstance(begun.why, str)
    except UserError as error:
        refused(path, error)


@fuzzed
@given(content=mutated(b'{"pid": 1, "url": "http://127.0.0.1:9"}'))
def test_the_address_of_a_server(tmp_path: Path, content: bytes):
    put(Checkout(tmp_path), "services/prefect.json", content)
    assert prefect_server.running(Checkout(tmp_path)) is None, "no process of ours works in this folder"


def test_a_note_of_a_registration(tmp_path: Path):
    """A damaged one counts as none: the registry is asked by the digest, and knows."""
    checkout = Checkout(tmp_path)
    outs = [{"path": "metrics/evaluate.json", "md5": "e"}, {"path": "models/dpo", "md5": "m"}]
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"evaluate": {"outs": outs}}}))
    note = {"evaluation_md5": "e", "model": "dpo", "md5": "m", "tracking_uri": checkout.tracking_uri}
    put(checkout, "registered.json", json.dumps(note).encode())
    assert registry.is_registered(checkout)
    for damaged in (b"", b"[]", b"{}", b"\xff", json.dumps({**note, "model": None}).encode(), b"[" * 100_000):
        put(checkout, "registered.json", damaged)
        assert not registry.is_registered(checkout)
