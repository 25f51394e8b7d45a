"""A record is found in all that holds it, and a model with all records that shaped it."""

from __future__ import annotations

import pytest

from tasks.data import records
from tasks.errors import UserError
from tasks.files import file_md5
from tasks.lineage import holders, questions, telling
from tasks.lineage.graph import Graph
from tasks.lineage.records import tables, usage
from tasks.lineage.records.answers import Use
from tasks.lineage.records.ids import of_bytes
from tasks.lineage.records.usage import Uses
from tasks.lineage.targets import Resolver
from tests.tasks.lineage.chain_by_hand import plain, small


@pytest.fixture
def chain():
    return small()


@pytest.fixture
def checkout(chain, tmp_path):
    return chain.write(tmp_path)


@pytest.fixture
def resolver(chain, checkout):
    return Resolver(Graph(chain.statements), checkout, checkout.root)


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


def test_a_record_is_drawn_to_what_used_it_and_on_from_where_it_shaped_something(indexed):
    resolver, (otter, _, mole, _) = indexed

    def drawn(record):
        uses = holders.uses_of(resolver.graph, resolver.checkout, record)
        answer = questions.ask(resolver.graph, resolver.resolve(record), uses=uses)
        short = {node.id: node.name.split(" ")[0] for node in answer.nodes.values()}
        return {(short[s], short[t]): edge.role for (s, t), edge in answer.edges.items()}

    assert drawn(otter) == {
        ("record", "data"): "kept × 1",
        ("record", "sft"): "trained × 3",
        ("sft", "evaluate"): "",
        ("sft", "axon-chat@1"): "",
    }
    assert drawn(mole) == {("record", "data"): "kept × 1", ("record", "evaluate"): "evaluated × 1"}


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
