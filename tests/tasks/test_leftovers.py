"""What a killed run leaves of DVC's is cleared up by the next, and nothing else is touched."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tasks.runtime import leftovers
from tasks.runtime.checkout import Checkout

LOCK = yaml.safe_dump(
    {
        "schema": "2.0",
        "stages": {
            name: {
                "cmd": f"python -m flows.{name}",
                "deps": [{"path": f"{name}.in", "hash": "md5", "md5": "0" * 32, "size": 3}],
                "params": {"params.yaml": {"seed": 7, name: {"n_steps": 3, "learning_rate": 0.001}}},
                "outs": [{"path": f"models/{name}", "hash": "md5", "md5": "1" * 32 + ".dir", "size": 5, "nfiles": 2}],
            }
            for name in ("pretrain", "sft")
        },
    },
    sort_keys=False,
).encode()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    return Checkout(tmp_path)


def cut_short(checkout: Checkout, before: bytes | None, written: bytes) -> None:
    """As a run leaves it that is killed while DVC writes."""
    lock = checkout.root / "dvc.lock"
    lock.unlink(missing_ok=True)
    if before is not None:
        lock.write_bytes(before)
    kept = leftovers.keeping_lock(checkout)
    kept.__enter__()
    lock.write_bytes(written)
    copy = (checkout.state / "dvc.lock.before").read_bytes()
    kept.__exit__(None, None, None)
    (checkout.state / "dvc.lock.before").write_bytes(copy)


def readable_by_dvc(text: bytes) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA

    COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text))
    return True


def test_wherever_dvc_was_cut_short_its_lock_can_be_read_afterwards(checkout: Checkout):
    before = LOCK[: LOCK.index(b"  sft:")]
    restored = 0
    for cut in range(0, len(LOCK), 19):
        cut_short(checkout, before, LOCK[:cut])
        told = leftovers.clear(checkout)
        now = (checkout.root / "dvc.lock").read_bytes()
        assert readable_by_dvc(now), cut
        assert now == (before if told else LOCK[:cut])
        restored += bool(told)
        assert leftovers.clear(checkout) == []
    assert restored > 8


def test_a_whole_lock_stays_and_the_first_half_of_a_first_one_goes(checkout: Checkout):
    cut_short(checkout, None, LOCK)
    assert leftovers.clear(checkout) == []
    assert (checkout.root / "dvc.lock").read_bytes() == LOCK
    cut_short(checkout, None, LOCK[:200])
    assert len(leftovers.clear(checkout)) == 1
    assert not (checkout.root / "dvc.lock").exists()


def test_a_lock_that_a_person_damaged_is_left_to_the_person(checkout: Checkout):
    with leftovers.keeping_lock(checkout):
        (checkout.root / "dvc.lock").write_bytes(LOCK)
    (checkout.root / "dvc.lock").write_bytes(LOCK[:200])
    assert leftovers.clear(checkout) == []
    assert (checkout.root / "dvc.lock").read_bytes() == LOCK[:200]


def test_notes_of_the_dead_go_also_where_another_process_has_their_number(checkout: Checkout):
    notes = checkout.root / ".dvc" / "tmp" / "rwlock"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine, dead = ({"pid": pid, "cmd": "dvc repro"} for pid in (os.getpid(), ended.pid))
    notes.write_text(json.dumps({"write": {"a": dead, "b": mine}, "read": {"c": [mine, dead], "d": [dead]}}))
    leftovers.clear(checkout)
    assert json.loads(notes.read_text()) == {"write": {"b": mine}, "read": {"c": [mine]}}
    content = notes.read_bytes()
    leftovers.clear(checkout)
    assert notes.read_bytes() == content
    yesterday = time.time() - 86400
    os.utime(notes, (yesterday, yesterday))  # written before this process began
    leftovers.clear(checkout)
    assert json.loads(notes.read_text()) == {"write": {}, "read": {}}


def test_half_written_notes_go(checkout: Checkout):
    notes = checkout.root / ".dvc" / "tmp" / "rwlock"
    notes.write_text('{"write": {"a": {"pid": 12')
    leftovers.clear(checkout)
    assert json.loads(notes.read_text()) == {}
