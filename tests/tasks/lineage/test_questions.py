"""What a person types is understood, and answered with what made it and what it went into."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest
from rich.console import Console

from tasks.data import records
from tasks.errors import UserError
from tasks.files import file_md5
from tasks.lineage import arrangement, drawing, holders, questions, telling
from tasks.lineage.graph import Artifact, Graph
from tasks.lineage.records import tables, usage
from tasks.lineage.records.answers import Use
from tasks.lineage.records.ids import of_bytes
from tasks.lineage.records.usage import Uses
from tasks.lineage.targets import Resolver
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


def plain(renderable) -> str:
    console = Console(width=300, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


# What is meant by a target


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


# What made it, and what it went into


def names(answer, side):
    return [node.name.split(" ")[0] for node in answer.nodes.values() if node.side == side]


def edges(answer):
    short = {node.id: node.name.split(" ")[0] for node in answer.nodes.values()}
    return {(short[s], short[t]): [a.path for a in edge.artifacts] for (s, t), edge in answer.edges.items()}


def test_an_output_up_and_down(resolver):
    answer = questions.ask(resolver.graph, resolver.resolve("models/sft"))
    assert names(answer, "target") == ["models/sft"]
    assert sorted(names(answer, "up")) == ["data", "sft", "sources"]
    assert sorted(names(answer, "down")) == ["axon-chat@1", "evaluate"]
    assert edges(answer) == {
        ("sources", "data"): ["sources"],
        ("data", "sft"): ["data/text.parquet"],
        ("sft", "models/sft"): ["models/sft"],
        ("models/sft", "evaluate"): ["models/sft"],
        ("models/sft", "axon-chat@1"): ["models/sft"],
    }


def test_one_side_alone(resolver):
    target = resolver.resolve("sft")
    up = questions.ask(resolver.graph, target, down=False)
    assert (sorted(names(up, "up")), names(up, "down")) == (["data", "sources"], [])
    down = questions.ask(resolver.graph, target, up=False)
    assert (names(down, "up"), sorted(names(down, "down"))) == ([], ["axon-chat@1", "evaluate"])


def test_a_run_stands_on_its_executions_and_goes_into_versions(resolver):
    answer = questions.ask(resolver.graph, resolver.resolve("run"))
    assert sorted(names(answer, "up")) == ["data", "evaluate", "sft", "sources"]
    assert names(answer, "down") == ["axon-chat@1"]
    only_down = questions.ask(resolver.graph, resolver.resolve("run"), up=False)
    assert names(only_down, "down") == ["axon-chat@1"]


def test_a_version_is_made_from_its_model_and_not_from_what_it_was_chosen_by(resolver):
    answer = questions.ask(resolver.graph, resolver.resolve("axon-chat@1"))
    assert sorted(names(answer, "up")) == ["data", "sft", "sources"]
    assert "chosen by the figures of evaluate" in answer.notes[0]


def test_code_goes_into_what_read_it(resolver):
    answer = questions.ask(resolver.graph, resolver.resolve("tasks/steps/sft.py"))
    assert names(answer, "up") == []
    assert sorted(names(answer, "down")) == ["axon-chat@1", "evaluate", "sft"]


def test_what_is_missing_is_noted(chain, checkout):
    left = Graph(chain.statements[1:])
    target = Resolver(left, checkout, checkout.root).resolve("sft")
    answer = questions.ask(left, target)
    assert any(chain.statements[0].digest in note for note in answer.notes)


def test_every_node_stands_once_in_a_tree_below_the_last_before_it(resolver):
    answer = questions.ask(resolver.graph, resolver.resolve("evaluate"))
    below, named = arrangement.spanning(answer, "up")
    short = {node.id: node.name.split(" ")[0] for node in answer.nodes.values()}
    tree = {short[k]: [short[o] for o in v] for k, v in below.items() if v}
    assert tree == {"evaluate": ["sft"], "sft": ["data"], "data": ["sources"]}
    assert {short[k]: [short[o] for o in v] for k, v in named.items() if v} == {"evaluate": ["data"]}
    assert [[short[node] for node in row] for row in arrangement.layers(answer)] == [
        ["sources"],
        ["data"],
        ["sft"],
        ["evaluate"],
    ]
    kept = {(short[s], short[t]) for s, t in arrangement.reduced(answer)}
    assert kept == {("sources", "data"), ("data", "sft"), ("sft", "evaluate")}  # data → evaluate follows


TREE = """\
models/sft {weights}

Made from
└── models/sft {weights} 7 B  made by sft 5f5f5f5f
    2026-09-21 14:15 UTC, took 1 min 12 s
    records: trained on 2
    settings: learning_rate 0.1, n_steps 3, seed 7
    └── data/text.parquet {texts} 5 B  made by data d1d1d1d1
        2026-09-21 14:13 UTC, took 1 min 12 s
        settings: filters.min_chars 32, seed 7
        └── sources {raw}  no stage makes it

Went into
├── evaluate e7e7e7e7  makes metrics/evaluate.json {figures} 3 B
│   through models/sft
│   2026-09-21 14:16 UTC, took 1 min 12 s
│   settings: seed 7
└── axon-chat@1  registered 2026-09-21 14:20 UTC

Code and environment
code of commit cccccccc
Python 3.11.7, torch 2.13.0, numpy 2.4.6, 2 libraries in all; A processor, Linux 6.1"""


def test_the_tree_as_a_person_reads_it(resolver):
    answer = questions.ask(resolver.graph, resolver.resolve("models/sft"))
    shown = {"weights": "weights", "texts": "texts", "raw": "raw", "figures": "[2]"}
    expected = TREE.format(**{name: md5(text)[:8] for name, text in shown.items()})
    assert plain(drawing.tree(answer, {"5f" * 16: "trained on 2"})) == expected


def test_mermaid_names_every_node_and_reduced_edge(resolver):
    drawn = drawing.mermaid(questions.ask(resolver.graph, resolver.resolve("evaluate"), down=False))
    lines = drawn.splitlines()
    assert lines[0] == "flowchart TD"
    boxes = {
        line.split('"')[1].split(" ")[0]: line.split("[")[0].split("(")[0].strip() for line in lines if ":::" in line
    }
    assert boxes.keys() == {"evaluate", "sft", "data", "sources"}
    assert {line for line in lines if "-->" in line} == {
        f'  {boxes["sources"]} -->|"sources"| {boxes["data"]}',
        f'  {boxes["data"]} -->|"data/text.parquet"| {boxes["sft"]}',
        f'  {boxes["sft"]} -->|"models/sft"| {boxes["evaluate"]}',
    }


def test_mermaid_takes_no_sign_from_a_name(tmp_path):
    chain = Chain()
    chain.stage("sft", "a1", reads={}, makes={'models/"]; click n0 "#<b>': "w"})
    target = Resolver(Graph(chain.statements), chain.write(tmp_path), tmp_path).resolve("models")
    drawn = drawing.mermaid(questions.ask(Graph(chain.statements), target))
    assert "click n0" in drawn
    assert all(sign not in drawn for sign in ('"]; click', "<b>"))


def test_json_has_every_digest(resolver, chain):
    found = drawing.as_json(questions.ask(resolver.graph, resolver.resolve("run")))
    digests = {node["statement"]["digest"] for node in found["nodes"] if "statement" in node}
    assert digests == {statement.digest for statement in chain.statements}
    sft = next(node["statement"] for node in found["nodes"] if node["name"].startswith("sft"))
    assert sft["files"]["models/sft"] == {"sha256": sha256("weights"), "size": 7}
    assert sft["parameters"] == {"seed": 7, "sft.learning_rate": 0.1, "sft.n_steps": 3}


# Records


@pytest.fixture
def indexed(chain, tmp_path):
    """The small chain with an index of four texts, of which `sft` trained on two and `evaluate` judged another."""
    checkout = chain.write(tmp_path)
    texts = ["an otter swims", "a heron fishes", "a mole digs", "a mole digs deeper"]
    ids = [records.record_id("own", text) for text in texts]
    columns = {name: ["" for _ in texts] for name in records.TEXT_COLUMNS}
    columns |= {"text": texts, "record_id": ids, "source": ["own"] * 4, "license": ["MIT", "MIT", "CC0-1.0", "MIT"]}
    columns |= {"split": ["train", "train", "test", "test"], "file": ["a.txt"] * 4}
    records.write(tmp_path / "data" / "text.parquet", columns)
    empty = {name: [""] for name in records.DEMONSTRATION_COLUMNS} | {"record_id": [b"0" * 16]}
    records.write(tmp_path / "data" / "demonstrations.parquet", empty)
    digests = {path: file_md5(tmp_path / path) for path in tables.DATA}
    folder = tables.folder_of(checkout.state, digests)
    known = tables.ensure(folder, tmp_path, digests)
    for stage, execution, role, rows in (
        ("data", "d1", usage.KEPT, [0, 1, 2, 3]),
        ("sft", "5f", usage.TRAINED, [0, 0, 0, 1]),
        ("evaluate", "e7", usage.EVALUATED, [2]),
    ):
        used = of_bytes([ids[row] for row in rows])
        uses = [Uses(role=role, ids=used, counts=[1] * len(rows))]
        tables.write_uses(folder, known, tables.Execution(stage, execution * 16), uses)
    return Resolver(Graph(chain.statements), checkout, tmp_path), [digest.hex() for digest in ids]


def test_what_contains_a_record(indexed):
    resolver, (otter, _, mole, _) = indexed
    found = holders.holding(resolver.graph, resolver.checkout, otter)
    trained, kept = Use("sft", "5f" * 16, usage.TRAINED, 3), Use("data", "d1" * 16, usage.KEPT, 1)
    assert found.uses == [kept, trained]
    assert {(h.name, h.is_version, h.is_shaped): h.uses for h in found.holders} == {
        ("axon-chat@1", True, True): (trained,),
        ("models/sft", False, True): (trained,),
        ("metrics/sft.json", False, True): (trained,),
        ("metrics/evaluate.json", False, True): (trained,),
        ("data/text.parquet", False, False): (kept,),
    }
    by_name = {holder.name: holder for holder in found.holders}
    assert by_name["models/sft"].direct == (trained,)
    assert by_name["metrics/evaluate.json"].direct == ()
    assert found.unindexed == []
    judged = holders.holding(resolver.graph, resolver.checkout, mole)
    assert {(h.name, h.is_shaped) for h in judged.holders} == {
        ("data/text.parquet", False),
        ("metrics/evaluate.json", False),
    }
    said = plain(telling.holding(found))
    assert "text of own, licence MIT, split train" in said
    assert "by descent from sft" in said


def test_a_record_is_drawn_from_the_executions_that_used_it(indexed):
    resolver, (otter, *_) = indexed
    uses = holders.roles(resolver.graph, resolver.checkout, otter)
    answer = questions.ask(resolver.graph, resolver.resolve(otter), uses=uses)
    assert sorted(names(answer, "down")) == ["axon-chat@1", "data", "evaluate", "sft"]
    assert {edge.role for edge in answer.edges.values()} == {"", "kept × 1", "trained × 3"}


def test_an_execution_that_the_index_lacks_is_named(indexed):
    resolver, (otter, *_) = indexed
    (lost,) = (resolver.checkout.state / "records").glob("*/uses-evaluate-*.parquet")
    lost.unlink()
    found = holders.holding(resolver.graph, resolver.checkout, otter)
    assert found.unindexed == ["evaluate " + "e7" * 16]
    assert "so not known: evaluate" in plain(telling.holding(found))


def test_a_record_that_nobody_knows(indexed):
    resolver, _ = indexed
    with pytest.raises(UserError, match="no record ffff"):
        holders.holding(resolver.graph, resolver.checkout, "f" * 32)
    with pytest.raises(UserError, match="is not a record id"):
        holders.holding(resolver.graph, resolver.checkout, "xyz")


def test_a_piece_of_text_is_a_record_or_several(indexed):
    resolver, (otter, heron, *moles) = indexed
    target = resolver.resolve("otter swims")
    assert (target.kind, target.record) == ("record", otter)
    assert resolver.resolve("text:heron").record == heron
    several = resolver.resolve("mole digs")
    assert several.kind == "text"
    assert sorted(found.record_id for found in several.found) == sorted(moles)
    assert "2 records with 'mole digs'" in plain(telling.matches(several.name, several.found))


def test_the_records_of_a_version(indexed):
    resolver, (otter, heron, *_) = indexed
    target = resolver.resolve("axon-chat@1")
    starts = list(target.statements)
    found = holders.contents(resolver.graph, resolver.checkout, "axon-chat@1", starts)
    assert found.n_records == 2
    assert [(share.facts.license, share.facts.split, share.n_records) for share in found.distinct] == [
        ("MIT", "train", 2)
    ]
    assert list(holders.record_ids(resolver.graph, resolver.checkout, starts)) == sorted([otter, heron])
    said = plain(telling.contents("axon-chat@1", found))
    assert "2 records shaped axon-chat@1" in said
    assert holders.counts(resolver.checkout.state, resolver.graph.executions)["5f" * 16] == "trained on 2"


def test_without_an_index_nothing_is_claimed_of_a_model(resolver):
    starts = list(resolver.resolve("axon-chat@1").statements)
    with pytest.raises(UserError, match="knows none of the 2 executions behind axon-chat@1"):
        holders.contents(resolver.graph, resolver.checkout, "axon-chat@1", starts)


def test_an_answer_loads_no_engine():
    code = (
        "import sys; import flows.lineage; from tasks.lineage import holders, page, telling, record_changes; "
        "print({'mlflow', 'torch', 'ray', 'prefect', 'datasets', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
