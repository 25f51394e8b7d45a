"""The chain: each statement names the one before it, whoever appends, and a gap is never papered over."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.lineage import envelope, keys
from tasks.lineage.store import Head, StatementStore
from tasks.runtime.checkout import Checkout
from tests.tasks.lineage.workspace import make_checkout, plain_body, record


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def append(checkout: Checkout, n: int = 1, name: str = "run") -> StatementStore:
    store = StatementStore.of(checkout)
    for _ in range(n):
        store.append(name, plain_body(), keys.signing_key(checkout))
    return store


def payload(path: Path) -> bytes:
    return base64.b64decode(json.loads(path.read_text())["payload"])


def chain(path: Path) -> dict:
    return json.loads(payload(path))["predicate"]["buildDefinition"]["internalParameters"]["chain"]


def test_two_appends_make_a_chain(checkout):
    before = os.umask(0o077)
    try:
        append(checkout, 2)
    finally:
        os.umask(before)
    first, second = sorted((checkout.root / "lineage" / "statements").iterdir())
    assert [first.name, second.name] == ["000001-run.json", "000002-run.json"]
    assert [path.stat().st_mode & 0o777 for path in (first, second)] == [0o644, 0o644]
    assert chain(first) == {"sequence": 1, "previous": None}
    assert chain(second) == {"sequence": 2, "previous": hashlib.sha256(payload(first)).hexdigest()}
    head = json.loads((checkout.root / ".axon" / "lineage-head.json").read_text())
    key = keys.signing_key(checkout)
    assert head == {"sequence": 2, "digest": hashlib.sha256(payload(second)).hexdigest(), "key": key.fingerprint}
    assert StatementStore.of(checkout).head() == Head(**head)


def test_what_is_read_back_is_what_was_signed(checkout):
    store = append(checkout, 3)
    public = keys.public_keys(checkout.root)
    stored = store.all()
    assert [s.statement.sequence for s in stored] == [1, 2, 3]
    assert [envelope.verify(s.envelope, public) for s in stored] == [s.statement.payload for s in stored]
    assert [s.statement.sequence for s in store.newest_first()] == [3, 2, 1]
    assert stored[2].reference == {"path": "lineage/statements/000003-run.json", "digest": stored[2].statement.digest}


def test_appends_from_processes_at_once_never_share_a_place(checkout, tmp_path):
    keys.signing_key(checkout)
    code = (
        "import sys; from pathlib import Path; from tasks.runtime.checkout import Checkout; "
        "from tests.tasks.lineage.test_store import append; sys.stdin.read(1); append(Checkout(Path(sys.argv[1])), 12)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for _ in range(2)]
    for process in started:
        process.stdin.write("x")
        process.stdin.flush()
    assert [process.wait(120) for process in started] == [0, 0]
    paths = sorted((tmp_path / "lineage" / "statements").iterdir())
    assert [path.name for path in paths] == [f"{n:06d}-run.json" for n in range(1, 25)]
    digests = [hashlib.sha256(payload(path)).hexdigest() for path in paths]
    assert [chain(path)["previous"] for path in paths] == [None, *digests[:-1]]


def test_a_lost_newest_statement_stays_a_gap(checkout):
    store = append(checkout, 3)
    head = store.head()
    (store.folder / "000003-run.json").unlink()
    assert store.head() == head
    append(checkout)
    assert [path.name for path in store.paths()] == ["000001-run.json", "000002-run.json", "000004-run.json"]
    assert chain(store.paths()[-1]) == {"sequence": 4, "previous": head.digest}


@pytest.mark.parametrize("is_same_payload", [True, False], ids=["signed anew by another key", "another statement"])
def test_a_replaced_newest_statement_is_not_continued(checkout, tmp_path_factory, is_same_payload):
    store = append(checkout, 2)
    head = store.head()
    elsewhere = append(Checkout(tmp_path_factory.mktemp("other")), 2 if is_same_payload else 0)
    if not is_same_payload:
        other = plain_body("audit")
        elsewhere.append("run", other, keys.signing_key(checkout))
        elsewhere.append("run", other, keys.signing_key(checkout))
    path = store.folder / "000002-run.json"
    path.write_bytes((elsewhere.folder / path.name).read_bytes())
    assert (hashlib.sha256(payload(path)).hexdigest() == head.digest) is is_same_payload
    assert store.head() == head
    append(checkout)
    assert chain(store.paths()[-1])["previous"] == head.digest


def test_a_fresh_clone_goes_on_from_the_newest_statement(checkout):
    store = append(checkout, 2)
    digest = store.head().digest
    (checkout.state / "lineage-head.json").unlink()
    assert store.head().digest == digest
    append(checkout)
    assert chain(store.paths()[-1]) == {"sequence": 3, "previous": digest}


def test_after_a_crash_before_the_head_was_written_nothing_is_lost(checkout):
    store = append(checkout)
    note = checkout.state / "lineage-head.json"
    before = note.read_bytes()
    append(checkout)
    note.write_bytes(before)
    newest = hashlib.sha256(payload(store.paths()[-1])).hexdigest()
    assert store.head().digest == newest
    append(checkout)
    assert chain(store.paths()[-1]) == {"sequence": 3, "previous": newest}


def test_an_empty_store_has_no_head(checkout):
    store = StatementStore.of(checkout)
    assert (store.all(), store.head(), store.latest_by_stage(), store.producer_of("a", "b")) == ([], None, {}, None)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_an_unreadable_statement_is_named(checkout, content):
    store = append(checkout, 2)
    (store.folder / "000001-run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"000001-run\.json is not a readable statement.*git checkout") as caught:
        store.all()
    assert caught.value.exit_code == 1


def test_a_damaged_head_is_named(checkout):
    store = append(checkout)
    (checkout.state / "lineage-head.json").write_text('{"sequence": 1}')
    with pytest.raises(UserError, match=r"lineage-head\.json is damaged"):
        store.head()


def test_the_newest_statement_of_a_stage_and_of_an_output(tmp_path):
    checkout = make_checkout(tmp_path)
    store = StatementStore.of(checkout)
    first = record(checkout, "make").statement
    (tmp_path / "models" / "small" / "config.json").write_text("[]")
    second = record(checkout, "make").statement
    third = record(checkout, "make").statement
    assert second.outputs != first.outputs
    assert second.outputs == third.outputs
    assert store.latest_by_stage() == {"make": third}
    assert store.producer_of("models/small", first.outputs["models/small"]) == first
    assert store.producer_of("models/small", third.outputs["models/small"]) == third
    assert store.producer_of("models/other", third.outputs["models/small"]) is None


def test_an_experiment_s_copy_appends_to_the_main_checkout(tmp_path):
    copy = Checkout(tmp_path / ".dvc" / "tmp" / "exps" / "abc")
    append(copy)
    assert [path.name for path in (tmp_path / "lineage" / "statements").iterdir()] == ["000001-run.json"]
    assert not copy.root.exists()


def test_a_name_that_is_no_name_is_refused(checkout):
    with pytest.raises(ValueError, match="file name"):
        append(checkout, name="../x")
    assert StatementStore.of(checkout).paths() == []
