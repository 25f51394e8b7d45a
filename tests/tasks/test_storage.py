"""The store of `AXON_STORAGE`: what is pushed comes back to the byte, and it is what DVC would have pushed."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.runtime import place as places
from tasks.runtime import stages, storage
from tasks.runtime.place import Files, Mirror, Place
from tasks.runtime.storage import Store


def some_tree(root: Path) -> dict[str, str]:
    """A directory and a file below `root`; their digests by path."""
    (root / "models" / "deep").mkdir(parents=True)
    (root / "models" / "weights.bin").write_bytes(bytes(range(256)) * 100)
    (root / "models" / "deep" / "config.json").write_text("{}")
    (root / "metrics.json").write_text('{"loss": 1.5}')
    return {name: stages.digest(root / name) for name in ("models", "metrics.json")}


def content(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_what_is_pushed_comes_back_and_is_what_dvc_pushes(tmp_path):
    source, target, remote = tmp_path / "source", tmp_path / "target", tmp_path / "remote"
    digests = some_tree(source)
    store = Store((tmp_path / "store").as_uri())
    store.push(source, digests)
    store.pull(target, digests)
    assert content(target) == content(source)

    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", "-q", *arguments], cwd=source, check=True)

    dvc("init", "--no-scm")
    dvc("add", "models", "metrics.json")
    dvc("remote", "add", "-d", "r", str(remote))
    dvc("push")
    assert content(tmp_path / "store") == content(remote)


def test_a_damaged_or_missing_object_is_named_and_nothing_half_written(tmp_path):
    digests = some_tree(tmp_path / "source")
    store = Store((tmp_path / "store").as_uri())
    store.push(tmp_path / "source", digests)
    cache, weights = tmp_path / "cache", stages.digest(tmp_path / "source" / "models" / "weights.bin")
    store.pull(tmp_path / "first", digests, cache)
    kept = cache / weights[:2] / weights[2:]
    kept.write_bytes(b"damaged on the node")
    store.pull(tmp_path / "second", digests, cache)  # once more from the store
    assert content(tmp_path / "second") == content(tmp_path / "source")

    there = tmp_path / "store" / "files" / "md5" / weights[:2] / weights[2:]
    there.write_bytes(b"damaged in the store")
    kept.unlink()
    with pytest.raises(UserError, match="does not have the bytes of its name"):
        store.pull(tmp_path / "third", digests, cache)
    there.unlink()
    with pytest.raises(UserError, match=r"does not hold weights\.bin"):
        store.pull(tmp_path / "third", digests, cache)
    assert content(tmp_path / "third") == {}


def test_a_listing_that_leads_out_of_its_folder_is_refused(tmp_path):
    text = json.dumps([{"md5": "0" * 32, "relpath": "../../outside"}])
    digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    path = tmp_path / "store" / "files" / "md5" / digest[:2] / f"{digest[2:]}.dir"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError, match="leads out of it"):
        Store((tmp_path / "store").as_uri()).pull(tmp_path / "target", {"models": f"{digest}.dir"})
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", ""), ("s3://bucket/folder/", "s3://bucket/folder"), ("/shared/axon", "file:///shared/axon")],
)
def test_addresses(monkeypatch, given, expected):
    monkeypatch.setenv(storage.ADDRESS, given)
    assert storage.address() == expected


@pytest.mark.parametrize("given", ["bucket", "s3:///folder", "ftp://host/x", "relative/folder", "file://host/x"])
def test_what_is_no_address_is_refused(monkeypatch, given):
    monkeypatch.setenv(storage.ADDRESS, given)
    with pytest.raises(UserError, match="is no address of a store") as refused:
        storage.address()
    assert repr(given) in str(refused.value)


def test_a_secret_in_the_address_is_refused_without_being_told(monkeypatch):
    monkeypatch.setenv(storage.ADDRESS, "s3://KEY:canary-secret@bucket/folder")
    with pytest.raises(UserError, match="names a user") as refused:
        storage.address()
    assert "canary-secret" not in str(refused.value)


def test_a_store_that_cannot_be_reached_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_TRIES_AFTER_S", (0,))
    digests = some_tree(tmp_path / "source")
    (tmp_path / "store").write_text("a file where a folder must be")
    with pytest.raises(UserError, match="could not be written to") as refused:
        Store((tmp_path / "store").as_uri()).push(tmp_path / "source", digests)
    assert refused.value.exit_code == 1


def test_a_node_gets_its_inputs_once_and_another_node_what_was_saved(tmp_path, monkeypatch):
    source = tmp_path / "checkout"
    digests = some_tree(source)
    store = (tmp_path / "store").as_uri()
    Store(store).push(source, digests)
    files = Files(checkpoints="", inputs=digests, outs=("models", "metrics.json"), key="checkpoints/x")
    nodes = [Place(root=str(tmp_path / n / "work" / "pretrain-1"), store=store, cache=str(tmp_path / n)) for n in "ab"]
    first, second = nodes
    monkeypatch.chdir(tmp_path)
    places.enter(first)
    places.fetch(first, files)
    with places.saving(first, files) as folder:
        (folder / "checkpoint-00000001").mkdir()
        (folder / "checkpoint-00000001" / "state.json").write_text("1")
        (folder / ".checkpoint-00000002.partial").mkdir()
        (folder / ".checkpoint-00000002.partial" / "state.json").write_text("half")
    assert places.leave(first, files.outs) == digests
    places.enter(second)
    with places.saving(second, files) as folder:
        assert content(folder) == {"checkpoint-00000001/state.json": b"1"}
        (folder / "checkpoint-00000001" / "state.json").unlink()
    assert Store(store).keys("checkpoints/x") == []


def test_a_mirror_takes_away_only_what_it_knows(tmp_path):
    store = Store((tmp_path / "store").as_uri())
    late = Mirror(store, tmp_path / "late", "k", removes=True)
    late.pull()
    (tmp_path / "newer").write_text("of the process that went on")
    store.put(tmp_path / "newer", "k/checkpoint-2/state.json")
    with late:  # a process that was thought lost, and ends now
        pass
    assert store.keys("k") == ["checkpoint-2/state.json"]


def test_what_a_dead_execution_left_on_a_node_is_removed_by_the_next(tmp_path, monkeypatch):
    store = (tmp_path / "store").as_uri()
    dead = tmp_path / "node" / "work" / "sft-dead"
    dead.mkdir(parents=True)
    (dead.parent / "sft-dead.lock").write_text("")
    monkeypatch.chdir(tmp_path)
    places.enter(Place(root=str(tmp_path / "node" / "work" / "sft-new"), store=store, cache=str(tmp_path / "node")))
    assert not dead.exists()
