"""A difference names what a person changed, and the stages behind it, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from typing import Any

import pytest

from tasks.data import records
from tasks.errors import UserError
from tasks.lineage import difference, record_changes
from tasks.lineage.difference import Change, Difference
from tasks.lineage.graph import Graph
from tasks.lineage.records import tables
from tasks.lineage.statement import canonical, parse
from tasks.lineage.targets import Resolver
from tests.tasks.lineage.chain_by_hand import ENVIRONMENT, Chain, md5, sha256

SEED = {"seed": 7}


def two_runs(**changes: dict[str, Any]) -> Chain:
    """Two runs of data → pretrain → sft → evaluate, of which the second is another in `changes`, by stage: `makes`
    the texts of its outputs in their order, `reads` raw data. What is behind a stage that makes something else must
    be in `changes` too."""
    chain = Chain()
    for run in ("a", "b"):
        mine = changes if run == "b" else {}
        made: dict[str, dict[str, str]] = {}
        done = []
        plan = {
            "data": ({"sources": "raw"}, ["data/text.parquet"]),
            "pretrain": (["data"], ["models/pretrain"]),
            "sft": (["pretrain"], ["models/sft", "metrics/sft.json"]),
            "evaluate": (["data", "sft"], ["metrics/evaluate.json"]),
        }
        for number, (stage, (reads, paths)) in enumerate(plan.items(), start=1):
            change = dict(mine.get(stage, {}))
            texts = change.pop("makes", [f"{path} as ever" for path in paths])
            made[stage] = dict(zip(paths, texts, strict=True))
            raw = change.pop("reads", reads if isinstance(reads, dict) else {})
            inputs = {**raw, **{p: t for s in reads if isinstance(reads, list) for p, t in made[s].items()}}
            behind = [done[list(plan).index(s)] for s in reads] if isinstance(reads, list) else []
            parameters = SEED | {stage: {"rate": 0.1, "deep": {"n": 1}}}
            options = {"parameters": parameters} | change
            done.append(chain.stage(stage, f"{run}{number}", reads=inputs, makes=made[stage], behind=behind, **options))
        chain.run(run * 32, done)
    return chain


def compared(chain: Chain) -> Difference:
    graph = Graph(chain.statements)
    before, after = graph.kind("run")
    return difference.compare(graph.stages_of(before), graph.stages_of(after))


def parts(found: Difference) -> set[str]:
    """The names of the parts that are not empty."""
    return {f.name for f in dataclasses.fields(found) if getattr(found, f.name)} - {"commits"}


def test_two_runs_of_unchanged_inputs_do_not_differ():
    found = compared(two_runs())
    assert found.is_empty
    assert parts(found) == set()


def test_one_parameter_is_named_with_the_stages_behind_it_and_nothing_else():
    changed = two_runs(
        pretrain={"parameters": SEED | {"pretrain": {"rate": 0.2, "deep": {"n": 1}}}, "makes": ["other"]},
        sft={"makes": ["other weights", "metrics/sft.json as ever"]},
        evaluate={"makes": ["other figures"]},
    )
    found = compared(changed)
    assert found.parameters == (Change(name="pretrain.rate", before=0.1, after=0.2, stages=("pretrain",)),)
    assert found.stages == ("pretrain", "sft", "evaluate")
    assert [change.name for change in found.outputs] == ["models/pretrain", "models/sft", "metrics/evaluate.json"]
    assert parts(found) == {"parameters", "outputs"}


def test_a_parameter_of_several_stages_is_named_once():
    other = {"seed": 8}
    found = compared(
        two_runs(
            data={"parameters": other | {"data": {"rate": 0.1, "deep": {"n": 1}}}},
            sft={"parameters": other | {"sft": {"rate": 0.1, "deep": {"n": 2}}}},
        )
    )
    assert found.parameters == (
        Change(name="seed", before=7, after=8, stages=("data", "sft")),
        Change(name="sft.deep.n", before=1, after=2, stages=("sft",)),
    )
    assert parts(found) == {"parameters"}  # nothing came of it


def test_a_parameter_that_is_new_or_gone():
    found = compared(two_runs(sft={"parameters": SEED | {"sft": {"rate": 0.1, "deeper": 1}}}))
    assert found.parameters == (
        Change(name="sft.deep.n", before=1, after=None, stages=("sft",)),
        Change(name="sft.deeper", before=None, after=1, stages=("sft",)),
    )


def test_true_is_not_one():
    found = compared(two_runs(sft={"parameters": SEED | {"sft": {"rate": 0.1, "deep": {"n": True}}}}))
    assert [(change.name, change.before, change.after) for change in found.parameters] == [("sft.deep.n", 1, True)]
    assert found.parameters[0].after is True


def test_raw_data_is_a_cause_and_what_stages_hand_on_is_none():
    found = compared(
        two_runs(
            data={"reads": {"sources": "other"}, "makes": ["other texts"]},
            pretrain={"makes": ["other"]},
        )
    )
    assert found.data == (Change(name="sources", before=sha256("raw"), after=sha256("other"), stages=("data",)),)
    assert found.stages == ("data", "pretrain")
    assert parts(found) == {"data", "outputs"}


def test_data_that_no_stage_of_that_side_made_is_a_cause():
    chain = Chain()
    data = chain.stage("data", "a1", reads={}, makes={"data/text.parquet": "texts"})
    first = chain.stage("sft", "a2", reads={"data/text.parquet": "texts"}, makes={"models/sft": "w"}, behind=[data])
    second = chain.stage("sft", "b2", reads={"data/text.parquet": "by hand"}, makes={"models/sft": "v"})
    found = difference.compare({"data": data, "sft": first}, {"data": data, "sft": second})
    named = Change(name="data/text.parquet", before=sha256("texts"), after=sha256("by hand"), stages=("sft",))
    assert found.data == (named,)


def test_code_commands_and_environment():
    environment = ENVIRONMENT | {
        "python": "3.12.0",
        "libraries": {"torch": "2.14.0", "numpy": "2.4.6", "ray": "2.60.0"},
        "flags": ["avx2", "amx_bf16"],
    }
    found = compared(
        two_runs(
            pretrain={"code": "def step(): pass", "command": "python -m flows.other"},
            sft={"environment": environment},
        )
    )
    code = Change(
        name="tasks/steps/pretrain.py",
        before=sha256("def step(): ..."),
        after=sha256("def step(): pass"),
        stages=("pretrain",),
    )
    assert found.code == (code,)
    assert [(c.before, c.after) for c in found.commands] == [("python -m flows.pretrain", "python -m flows.other")]
    assert {(c.name, c.before, c.after) for c in found.environment} == {
        ("python", "3.11.7", "3.12.0"),
        ("libraries.torch", "2.13.0", "2.14.0"),
        ("libraries.ray", None, "2.60.0"),
        ("flags.fma", True, None),
        ("flags.amx_bf16", None, True),
    }
    assert {c.stages for c in found.environment} == {("sft",)}
    assert parts(found) == {"code", "commands", "environment"}


def test_other_bytes_from_the_same_inputs_are_unexplained():
    found = compared(two_runs(pretrain={"makes": ["not deterministic"]}, sft={"makes": ["other", "figures"]}))
    assert found.unexplained == ("pretrain",)
    assert found.stages == ("pretrain", "sft")
    assert parts(found) == {"unexplained", "outputs"}


def test_executions_versions_and_outputs_are_compared_with_all_behind_them(tmp_path):
    chain = two_runs(
        pretrain={"parameters": SEED | {"pretrain": {"rate": 0.2, "deep": {"n": 1}}}, "makes": ["other"]},
        sft={"makes": ["other weights", "metrics/sft.json as ever"]},
        evaluate={"makes": ["other figures"]},
    )
    graph = Graph(chain.statements)
    by_stage = graph.stages
    chain.register("1", "models/sft", "models/sft as ever", [by_stage["sft"][0], by_stage["evaluate"][0]])
    chain.register("2", "models/sft", "other weights", [by_stage["sft"][1], by_stage["evaluate"][1]])
    checkout = chain.write(tmp_path)
    graph = Graph(chain.statements)
    resolver = Resolver(graph, checkout, checkout.root)
    for before, after, stages in (
        ("sft~1", "sft", ("pretrain", "sft")),
        ("axon-chat@1", "axon-chat@2", ("pretrain", "sft")),
        ("run~1", "run", ("pretrain", "sft", "evaluate")),
        (md5("models/sft as ever")[:10], "models/sft", ("pretrain", "sft")),
    ):
        sides = [difference.side_of(graph, resolver.resolve(text)) for text in (before, after)]
        found = difference.compare(*sides)
        assert [change.name for change in found.parameters] == ["pretrain.rate"], before
        assert found.stages == stages
        assert parts(found) == {"parameters", "outputs"}
    for target in ("sft", "axon-chat@1", "run", "models/sft"):
        side = difference.side_of(graph, resolver.resolve(target))
        assert difference.compare(side, side).is_empty


def test_two_models_of_one_run_differ_in_the_stages_that_made_them(tmp_path):
    chain = Chain()
    sft = chain.stage("sft", "a1", reads={}, makes={"models/sft": "s"})
    ppo = chain.stage("ppo", "a2", reads={"models/sft": "s"}, makes={"models/ppo": "p"}, behind=[sft])
    dpo = chain.stage("dpo", "a3", reads={"models/sft": "s"}, makes={"models/dpo": "d"}, behind=[sft])
    chain.register("1", "models/ppo", "p", [ppo])
    chain.register("2", "models/dpo", "d", [dpo])
    checkout = chain.write(tmp_path)
    graph = Graph(chain.statements)
    targets = [Resolver(graph, checkout, tmp_path).resolve(f"axon-chat@{n}") for n in "12"]
    sides = [difference.side_of(graph, target) for target in targets]
    found = difference.compare(*sides, versions=difference.version_change(*targets))
    assert found.versions == (Change(name="model", before="models/ppo", after="models/dpo", stages=()),)
    assert (found.only_before, found.only_after) == (("ppo",), ("dpo",))
    assert parts(found) == {"versions", "only_before", "only_after"}


def test_what_nothing_made_cannot_be_compared(tmp_path):
    chain = two_runs()
    checkout = chain.write(tmp_path)
    graph = Graph(chain.statements)
    with pytest.raises(UserError, match=r"run~1 run"):
        difference.side_of(graph, Resolver(graph, checkout, tmp_path).resolve("sources"))


@pytest.fixture
def two_versions_of_data(tmp_path):
    """A checkout whose `data` stage kept texts 0 to 9 and then 3 to 11; the ids of both."""
    ids, written = [], []
    for numbers in (range(10), range(3, 12)):
        texts = [f"text {number}" for number in numbers]
        path = tmp_path / "data" / "text.parquet"
        columns = {name: ["" for _ in texts] for name in records.TEXT_COLUMNS}
        columns |= {"text": texts, "record_id": [records.record_id("own", text) for text in texts]}
        records.write(path, columns)
        ids.append({records.record_id("own", text).hex() for text in texts})
        written.append(path.read_bytes())
    return tmp_path, ids, written


def _sides(written: list[bytes]) -> list[dict[str, Any]]:
    chain = Chain()
    sides = []
    for number, content in enumerate(written):
        data = chain.stage("data", f"a{number}", reads={}, makes={"data/text.parquet": "placeholder"})
        sides.append({"data": _with_bytes(data, "data/text.parquet", content)})
    return sides


def _with_bytes(statement: Any, path: str, content: bytes) -> Any:
    """The statement as it would be had `path` this content."""
    body = copy.deepcopy(statement.body)
    subject = next(entry for entry in body["subject"] if entry["name"] == path)
    subject["digest"]["sha256"] = hashlib.sha256(content).hexdigest()
    outputs = body["predicate"]["buildDefinition"]["internalParameters"]["outputs"]
    outputs[path]["md5"] = hashlib.md5(content).hexdigest()
    return parse(canonical(body))


def test_records_are_compared_by_id_from_the_cache(two_versions_of_data):
    root, (before, after), written = two_versions_of_data
    chain_root = Chain().write(root)
    sides = _sides(written)
    old_md5 = sides[0]["data"].outputs["data/text.parquet"]
    cached = root / ".dvc" / "cache" / "files" / "md5" / old_md5[:2] / old_md5[2:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(written[0])
    (change,) = record_changes.compare(chain_root, *sides)
    assert (change.n_before, change.n_after, change.n_added, change.n_removed) == (10, 9, 2, 3)
    assert set(change.added) == after - before
    assert set(change.removed) == before - after
    assert record_changes.compare(chain_root, sides[0], sides[0]) == ()
    cached.unlink()
    (change,) = record_changes.compare(chain_root, *sides)
    assert "is neither in the workspace nor in DVC's cache" in change.unknown


def test_records_are_compared_by_the_tables_of_the_index(two_versions_of_data):
    root, (before, after), written = two_versions_of_data
    checkout = Chain().write(root)
    sides = _sides(written)
    demonstrations = root / "data" / "demonstrations.parquet"
    columns: dict[str, list[Any]] = {name: [""] for name in records.DEMONSTRATION_COLUMNS}
    columns["record_id"] = [records.record_id("maths", "1+1?\x002")]
    records.write(demonstrations, columns)
    for side, content in zip(sides, written, strict=True):
        side["data"].outputs["data/demonstrations.parquet"] = hashlib.md5(demonstrations.read_bytes()).hexdigest()
        (root / "data" / "text.parquet").write_bytes(content)
        digests = {path: side["data"].outputs[path] for path in tables.DATA}
        tables.ensure(tables.folder_of(checkout.state, digests), root, digests)
    (root / "data" / "text.parquet").unlink()
    (change,) = record_changes.compare(checkout, *sides)
    assert (change.path, change.n_added, change.n_removed) == ("data/text.parquet", 2, 3)
    assert set(change.added) == after - before
    assert set(change.removed) == before - after
