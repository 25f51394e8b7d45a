"""Forgetting a planted record: it is found in everything that holds it, and in nothing after rebuild and purge."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows import forget as command
from tasks import registry
from tasks.data import removal_list, removals
from tasks.data.records import record_id
from tasks.errors import UserError
from tasks.lineage import envelope, forget, keys
from tasks.lineage.forget import Plan, Request
from tasks.lineage.forgetting import dvc_cache, notes, purge, versions
from tasks.lineage.store import StatementStore
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout
from tasks.tracking import mlflow_store
from tests.helpers import serial_fan_out
from tests.tasks.data import corpus
from tests.tasks.lineage import forget_workspace as workspace
from tests.tasks.lineage.forget_workspace import PLANTED_ID, holding, parameters

TODAY = datetime.date(2026, 1, 31)
REQUEST = Request(records=(PLANTED_ID.hex(),), reason="asked by the author")


def plan(checkout: Checkout, request: Request = REQUEST) -> Plan:
    return forget.plan(checkout, parameters(checkout), request, today=TODAY, fan_out=serial_fan_out)


@dataclass
class Story:
    """One checkout through the whole of it: run and register, plan, list, run again, purge."""

    checkout: Checkout
    version: str
    held_before: list[str]
    untouched: bool
    plan: Plan
    before_rebuild: str
    ran_again: list[str]
    held_by_outputs: list[str]
    survey: purge.Survey
    certificate: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def story(planted: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Story:
    root = shutil.copytree(planted.root, tmp_path_factory.mktemp("forget").resolve() / "checkout")
    checkout = Checkout(root)
    version = workspace.register(checkout)
    held_before = holding(root)
    before = workspace.snapshot(root)
    made = plan(checkout)
    untouched = workspace.snapshot(root) == before
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        command.forget(checkout, REQUEST, yes=True)
    with pytest.raises(UserError) as refused:
        purge.survey(checkout, parameters(checkout))
    ran_again = workspace.run(checkout)
    held_by_outputs = [path for out in ("data", "tokenizer", "tokens", "models") for path in holding(root / out)]
    found = purge.survey(checkout, parameters(checkout))
    with contextlib.redirect_stdout(said):
        command.purge(checkout, yes=True)
    content = StatementStore.of(checkout).all()[-1].statement.parameters
    return Story(
        checkout=checkout,
        version=version,
        held_before=held_before,
        untouched=untouched,
        plan=made,
        before_rebuild=str(refused.value),
        ran_again=ran_again,
        held_by_outputs=held_by_outputs,
        survey=found,
        certificate=content,
        said=said.getvalue(),
    )


def test_planning_changes_nothing_and_finds_every_guise(story: Story) -> None:
    assert story.untouched
    found = story.plan.removal
    shown = {n: story.plan.candidates.all[n] for n in found.all}
    assert [shown[n].place for n in found.asked] == [("sources/own.jsonl", 81)]
    along = {(shown[n].kind, shown[n].place) for n in found.along}
    assert along == {
        ("text", ("sources/more.jsonl", 1)),
        ("text", ("sources/more.jsonl", 2)),
        ("demonstration", ("sources/more.jsonl", 3)),
        ("damaged", ("sources/more.jsonl", 84)),
    }
    assert found.made == set()


def test_the_blast_radius_names_rows_artifacts_versions_stages_and_time(story: Story) -> None:
    made = story.plan
    assert made.workspace == {
        "data/demonstrations.parquet": 1,
        "data/rejects.parquet": 3,
        "data/text.parquet": 1,
        "tokens/demonstrations.train.index.parquet": 1,
        "tokens/text.train.index.parquet": 1,
    }
    roles = {holding.path: dict(holding.roles) for holding in made.holdings}
    assert set(roles) == {
        *workspace.DATA_OUTS, "tokenizer", "tokens", "metrics/tokenizer.json", "models/pretrain",
    }  # fmt: skip
    assert roles["data/text.parquet"] == {"kept": 2}
    assert roles["models/pretrain"]["trained"] == 1
    assert roles["models/pretrain"]["tokenizer"] == 2
    assert all(holding.is_current for holding in made.holdings)
    (version,) = made.versions
    assert (version.version, version.certainty) == (story.version, versions.YES)
    assert version.aliases == ("challenger", "champion")
    assert made.seconds == {"data": 60.0, "tokenizer": 60.0, "pretrain": 60.0}
    assert made.tokenizer == "trained again"


def test_the_list_holds_digests_alone_and_names_the_cluster(story: Story) -> None:
    text = (story.checkout.root / removal_list.PATH).read_text()
    assert [word for word in corpus.TELLTALES if word in text] == []
    listed = {entry.record: entry for entry in removal_list.read(story.checkout.root)}
    assert len(listed) == 5
    head = removals.id_digest(PLANTED_ID)
    near = removals.id_digest(record_id("files:sources/more.jsonl", corpus.NEAR))
    assert listed[head].cluster == listed[near].cluster == head
    assert {(entry.when, entry.reason) for entry in listed.values()} == {
        (datetime.date.today().isoformat(), "asked by the author")
    }


def test_the_lines_are_taken_out_of_the_files_and_no_other_byte(story: Story, tmp_path: Path) -> None:
    corpus.plain(tmp_path)
    for name in ("own", "more"):
        left, never = (folder / "sources" / f"{name}.jsonl" for folder in (story.checkout.root, tmp_path))
        assert left.read_bytes().rstrip(b"\n") == never.read_bytes().rstrip(b"\n")
    assert holding(story.checkout.root / "sources") == []


def test_the_version_is_tagged_and_loses_its_aliases(story: Story) -> None:
    store = mlflow_store.client(story.checkout)
    assert store.get_model_version(registry.NAME, story.version).tags[versions.TAG] == "true"
    assert dict(store.get_registered_model(registry.NAME).aliases) == {}


def test_the_purge_waits_for_the_rebuild(story: Story) -> None:
    assert "nothing was purged: data must run first" in story.before_rebuild
    assert "axon run" in story.before_rebuild
    assert story.ran_again == ["data", "tokenizer", "pretrain"]
    assert story.held_by_outputs == []
    manifest = json.loads((story.checkout.root / "data" / "manifest.json").read_text())
    assert manifest["removed"] == {"listed": 5, "texts": 0, "demonstrations": 0}, "the sources hold them no more"


def test_after_the_purge_the_text_is_nowhere(story: Story) -> None:
    """It was in outputs, DVC's cache, checkpoints and sources before; the vocabulary did not hold the words."""
    assert any(path.startswith(".dvc/cache/") for path in story.held_before)
    assert any(path.startswith(".axon/checkpoints/") for path in story.held_before)
    assert "sources/own.jsonl" in story.held_before
    assert holding(story.checkout.root) == []


def test_the_purge_removes_what_held_the_records_and_nothing_current(story: Story) -> None:
    root, found = story.checkout.root, story.survey
    cache = dvc_cache.survey(root)
    assert cache.unused == {}
    for artifact in story.certificate["removed"]["artifacts"]:
        assert not dvc_cache.holds(cache.folder, artifact["md5"])
    assert {folder.what for folder in found.folders} == {"resume checkpoints", "tables of the record index"}
    assert [(model.name, model.md5) for model in found.models] == [("pretrain", story.plan.versions[0].md5)]
    assert not found.models[0].folder.exists()  # type: ignore[union-attr]
    for entry in stages.read_lock(root).values():
        for out in entry["outs"]:
            assert stages.digest(root / out["path"]) == out["md5"]
            assert dvc_cache.holds(cache.folder, out["md5"])
    assert len(list((story.checkout.state / "records").glob("*/records.parquet"))) == 1
    assert notes.read(story.checkout) == []


def test_the_certificates_are_signed_and_say_what_was_removed_and_what_remains(story: Story) -> None:
    store = StatementStore.of(story.checkout)
    certificates = [stored for stored in store.all() if stored.statement.kind == "forget"]
    assert [stored.statement.external["action"] for stored in certificates] == ["list", "purge"]
    public = keys.public_keys(story.checkout.root)
    for stored in certificates:
        payload = envelope.verify(stored.envelope, public)
        assert not any(word.encode() in payload for word in corpus.TELLTALES)
        assert "sources/removals.json" in stored.statement.subjects
    said = certificates[1].statement.parameters
    assert len(said["records"]) == 5
    assert {artifact["path"] for artifact in said["removed"]["artifacts"]} >= {"data/text.parquet", "models/pretrain"}
    assert said["removed"]["cache_objects"]["n"] > 0
    assert said["removed"]["logged_models"] == [{"name": "pretrain", "md5": story.plan.versions[0].md5}]
    assert said["requests"][0]["reason"] == "asked by the author"
    assert not said["tokenizer_kept"]
    assert any("backups" in place for place in said["remains"])


def test_the_command_says_what_it_did_and_quotes_nothing(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    for expected in (
        "Asked for: 1 record",
        "With them, as copies or near-duplicates: 4 records",
        f"{PLANTED_ID.hex()}  text, kept for train  sources/own.jsonl:81",
        "models/pretrain  ",
        "axon-chat 1 (challenger, champion) holds them; it is tagged and loses challenger and champion.",
        "Stages to run again: data, tokenizer, pretrain (about 3 min by the last runs).",
        "Written: sources/removals.json (5 new entries, digests alone). Commit it.",
        "DVC's cache:",
        "resume checkpoints:",
        "What remains:",
        "  - backups",
        "Certificate: ",
    ):
        assert expected in story.said
    assert not any(word in story.said for word in corpus.TELLTALES)
    command.purge(story.checkout, yes=True)
    assert capsys.readouterr().out == "Nothing to purge.\n"


def test_asking_again_finds_it_listed_and_nothing_to_do(story: Story) -> None:
    second = workspace.register(story.checkout)
    again = plan(story.checkout)
    assert again.removal.all == set()
    assert [(v.version, v.is_marked, v.certainty) for v in again.versions] == [(story.version, True, "true")]
    assert again.changes_nothing
    store = mlflow_store.client(story.checkout)
    assert set(dict(store.get_registered_model(registry.NAME).aliases).values()) == {int(second)}, "the new one is free"
    with pytest.raises(UserError, match="no such record"):
        plan(story.checkout, Request(records=("00" * 16,)))
