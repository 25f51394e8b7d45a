"""What a person types is understood, or answered with what is near it and what is allowed."""

from __future__ import annotations

import sqlite3

import pytest

from tasks.errors import UserError
from tasks.lineage import aliases
from tasks.lineage.graph import Artifact, Graph
from tasks.lineage.targets import Resolver
from tasks.tracking import mlflow_store
from tests.tasks.lineage.chain_by_hand import Chain, md5, sha256, small, write_lock


@pytest.fixture
def chain():
    return small()


@pytest.fixture
def checkout(chain, tmp_path):
    return chain.write(tmp_path)


@pytest.fixture
def resolver(chain, checkout):
    return Resolver(Graph(chain.statements), checkout, checkout.root)


@pytest.mark.parametrize(
    ("text", "kind", "names"),
    [
        ("sft", "execution", ["sft"]),
        ("stage:sft", "execution", ["sft"]),
        ("sft~0", "execution", ["sft"]),
        ("5f5f5f5f", "execution", ["sft"]),
        ("5f" * 16, "execution", ["sft"]),
        ("run", "run", ["run"]),
        ("9e9e9e9e", "run", ["run"]),
        ("run:9e9e9e9e9e", "run", ["run"]),
        ("axon-chat@1", "version", ["register"]),
        ("version:axon-chat@1", "version", ["register"]),
        ("models/sft", "artifact", ["sft"]),
        ("models/sft/", "artifact", ["sft"]),
        ("./models/../models/sft", "artifact", ["sft"]),
        ("models", "artifact", ["sft"]),
        ("path:data/text.parquet", "artifact", ["data"]),
        (md5("weights")[:8], "artifact", ["sft"]),
        ("dvc.lock", "run", ["run"]),
    ],
)
def test_each_kind_of_target(resolver, text, kind, names):
    target = resolver.resolve(text)
    assert target.kind == kind
    assert [statement.stage or statement.kind for statement in target.statements] == names


def test_a_path_is_taken_from_where_one_is(chain, checkout):
    here = checkout.root / "data"
    resolver = Resolver(Graph(chain.statements), checkout, here)
    assert resolver.resolve("text.parquet").artifacts == (Artifact("data/text.parquet", md5("texts")),)
    assert resolver.resolve("../models/sft").artifacts == (Artifact("models/sft", md5("weights")),)
    assert resolver.resolve("models/sft").artifacts == (Artifact("models/sft", md5("weights")),)
    assert resolver.resolve(str(checkout.root / "models" / "sft")).kind == "artifact"


def test_a_word_that_is_a_stage_and_a_path(tmp_path):
    chain = Chain()
    chain.stage("tokenizer", "a1", reads={}, makes={"tokenizer": "merges", "tokens": "numbers"})
    checkout = chain.write(tmp_path)
    resolver = Resolver(Graph(chain.statements), checkout, tmp_path)
    assert len(resolver.resolve("tokenizer").artifacts) == 2
    for text in ("tokenizer/", "./tokenizer", "path:tokenizer"):
        assert resolver.resolve(text).artifacts == (Artifact("tokenizer", md5("merges")),)


@pytest.fixture
def twice(tmp_path):
    """A checkout in which `sft` ran twice, and `dvc.lock` is that of the first time."""
    chain = Chain()
    first = chain.stage("sft", "a1", reads={}, makes={"models/sft": "old"})
    chain.stage("sft", "b2", reads={}, makes={"models/sft": "new"}, parameters={"seed": 8})
    checkout = chain.write(tmp_path)
    write_lock(tmp_path, {"sft": first})
    return Resolver(Graph(chain.statements), checkout, tmp_path)


def test_a_stage_is_the_execution_that_dvc_lock_records(twice):
    current = twice.resolve("sft")
    assert current.statements[0].execution == "a1" * 16
    assert "sft~0 names it" in current.notes[0]
    assert twice.resolve("sft~0").statements[0].execution == "b2" * 16
    assert twice.resolve("sft~1").statements[0].execution == "a1" * 16
    with pytest.raises(UserError, match=r"stage sft has 2 executions, so that ~2 goes too far back.*~0 to ~1"):
        twice.resolve("sft~2")


def test_an_output_is_the_one_that_lies_there(twice):
    path = twice.checkout.root / "models" / "sft"
    target = twice.resolve("models/sft")
    assert target.artifacts == (Artifact("models/sft", md5("new")),)
    assert "dvc.lock records another version" in target.notes[0]
    path.write_text("old")
    target = twice.resolve("models/sft")
    assert target.artifacts == (Artifact("models/sft", md5("old")),)
    assert target.notes == ()
    path.write_text("altered")
    target = twice.resolve("models/sft")
    assert target.artifacts == (Artifact("models/sft", md5("old")),)
    assert "was altered" in target.notes[0]
    path.unlink()
    assert "is not in the workspace" in twice.resolve("models/sft").notes[0]


def test_a_copy_is_known_by_its_content(resolver):
    copy = resolver.checkout.root / "notes" / "mine.bin"
    copy.parent.mkdir()
    copy.write_text("weights")
    target = resolver.resolve("notes/mine.bin")
    assert target.artifacts == (Artifact("models/sft", md5("weights")),)
    assert sha256("weights") in target.notes[0]
    copy.write_text("something else")
    (resolver.checkout.root / "data" / "text.parquet").unlink()
    with pytest.raises(UserError, match="nothing is known by 'notes/mine"):
        resolver.resolve("notes/mine.bin")


def test_code_is_an_input(resolver):
    target = resolver.resolve("tasks/steps/sft.py")
    assert (target.kind, target.artifacts) == ("input", (Artifact("tasks/steps/sft.py", md5("def step(): ...")),))
    assert target.notes == ()
    (resolver.checkout.root / "tasks" / "steps" / "sft.py").write_text("edited")
    assert "has changed since" in resolver.resolve("tasks/steps/sft.py").notes[0]
    assert "read as a part of sources" in resolver.resolve("sources/README.md").notes[0]


def _register_aliases(checkout, **aliases):
    with sqlite3.connect(checkout.state / "mlflow.db") as database:
        database.execute("CREATE TABLE registered_model_aliases (name TEXT, alias TEXT, version INTEGER)")
        rows = [("axon-chat", alias, version) for alias, version in aliases.items()]
        database.executemany("INSERT INTO registered_model_aliases VALUES (?, ?, ?)", rows)


def test_an_alias_is_what_the_registry_says(resolver, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"aliases of axon-chat: none.*axon-chat@1"):
        resolver.resolve("axon-chat@champion")
    assert not (resolver.checkout.state / "mlflow.db").exists()  # asking makes nothing
    _register_aliases(resolver.checkout, champion=1, challenger=2)
    assert resolver.resolve("axon-chat@champion").name == "axon-chat@1"
    with pytest.raises(UserError, match=r"no statement registers axon-chat@2.*axon-chat@1"):
        resolver.resolve("axon-chat@challenger")
    with pytest.raises(UserError, match=r"axon-chat@challenger, axon-chat@champion"):
        resolver.resolve("axon-chat@best")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modles/sft", "did you mean models/sft"),
        ("evalute", "did you mean evaluate"),
        ("axon-chta@1", "did you mean axon-chat@1"),
        ("manifest.jsn", "did you mean data/manifest.json"),
        ("models/sft/vocab.json", "models/sft has no vocab.json"),
        ("", "the target is empty"),
        ("  ", "the target is empty"),
        ("axon-chat@7", "Versions with a statement: axon-chat@1"),
        ("stage:models/sft", "nothing is known"),
        ("path:sft", "nothing is known"),
        ("words that nowhere stand", "nothing is known"),
        ("x" * 5000, "nothing is known"),
        ("a\nb\0c", "nothing is known"),
    ],
)
def test_a_wrong_target_is_answered_with_what_is_near_and_allowed(resolver, text, said):
    (resolver.checkout.root / "data" / "text.parquet").unlink()  # no Parquet, and so not to be searched
    with pytest.raises(UserError) as raised:
        resolver.resolve(text)
    assert said in str(raised.value)
    assert raised.value.exit_code == 2
    if "nothing is known" in said:
        assert "A target is a path" in str(raised.value)


def test_a_version_with_records_to_forget_says_so(chain, checkout):
    chain.forget("1", "weights")
    chain.forget("2", "other weights")
    resolver = Resolver(Graph(chain.statements), checkout, checkout.root)
    assert resolver.resolve("axon-chat@1").notes == (
        "it contains records that were to be forgotten on 2026-09-21 14:21 UTC",
    )


def test_a_folder_of_several_outputs_is_asked_back(resolver):
    with pytest.raises(UserError, match=r"metrics holds several outputs.*metrics/evaluate.json, metrics/sft.json"):
        resolver.resolve("metrics")


def test_without_statements_it_says_so(tmp_path):
    checkout = Chain().write(tmp_path)
    with pytest.raises(UserError, match="There is no statement in lineage/statements"):
        Resolver(Graph([]), checkout, tmp_path).resolve("models/sft")


def test_a_beginning_of_several_ids_is_asked_back(tmp_path):
    chain = Chain()
    chain.stage("one", "abcdabc1", reads={}, makes={"a": "1"})
    chain.stage("two", "abcdabc2", reads={}, makes={"b": "2"})
    run = chain.stage("three", "77", reads={}, makes={"c": "3"}, pipeline="12" * 16)
    resolver = Resolver(Graph(chain.statements), chain.write(tmp_path), tmp_path)
    assert resolver.resolve("abcdabc2").statements[0].stage == "two"
    unended = resolver.resolve("12" * 4)
    assert (unended.kind, unended.statements) == ("run", (run,))
    assert "did not end well" in unended.notes[0]
    with pytest.raises(UserError, match="begins the ids of several things: one abcdabc1, two abcdabc2"):
        Resolver(Graph(chain.statements), resolver.checkout, tmp_path)._by_id("abcdabc")


@pytest.mark.engines
def test_the_table_of_aliases_says_what_mlflow_says(checkout, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow = mlflow_store.client(checkout)
    mlflow.create_registered_model("axon-chat")
    for _ in range(2):
        mlflow.create_model_version("axon-chat", source=(checkout.root / "models").as_uri())
    mlflow.set_registered_model_alias("axon-chat", "champion", "1")
    mlflow.set_registered_model_alias("axon-chat", "challenger", "2")
    with monkeypatch.context() as patch:
        patch.setattr(aliases, "_SQLITE", "no file: ")
        asked = aliases.aliases_of(checkout, "axon-chat")
    assert aliases.aliases_of(checkout, "axon-chat") == asked == {"challenger": "2", "champion": "1"}
    assert aliases.aliases_of(checkout, "other") == {}
