"""What made a thing, and what it went into, is what a person would find in the statements by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tasks.lineage import arrangement, drawing, questions
from tasks.lineage.graph import Graph
from tasks.lineage.targets import Resolver
from tests.tasks.lineage.chain_by_hand import Chain, md5, plain, sha256, small


@pytest.fixture
def chain():
    return small()


@pytest.fixture
def checkout(chain, tmp_path):
    return chain.write(tmp_path)


@pytest.fixture
def resolver(chain, checkout):
    return Resolver(Graph(chain.statements), checkout, checkout.root)


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
    settings: learning_rate 0.1, n_steps 3, seed 7, 1 more
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
    assert sft["parameters"] == {"seed": 7, "sft.learning_rate": 0.1, "sft.n_steps": 3, "sft.batch_size": None}


def test_an_answer_loads_no_engine():
    code = (
        "import sys; import flows.lineage; from tasks.lineage import holders, page, telling, record_changes; "
        "print({'mlflow', 'torch', 'ray', 'prefect', 'datasets', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
