"""The record index answers as a scan of everything would, for one version of data and for several."""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import yaml

from tasks.data import records
from tasks.errors import UserError
from tasks.files import file_md5, write_json
from tasks.lineage import index
from tasks.lineage.index import RecordIndex
from tasks.lineage.records import ids as record_ids
from tasks.lineage.records import tables, usage
from tasks.lineage.records.answers import Ancestry, Found, Place, Use, inherited
from tasks.lineage.records.tables import DATA, Execution, Facts
from tasks.lineage.records.usage import Uses

ROLES = (usage.TRAINED, usage.VALIDATED, usage.TOKENIZER)
LICENSES = {"docs": "BSD-3-Clause", "own": "MIT", "maths": "CC0-1.0"}


def _record(number: int, kind: str) -> dict[str, str]:
    source = ("maths" if number % 2 else "own") if kind == "demonstration" else ("docs", "own")[number % 2]
    texts = {"text": f"Text {number} tells of beavers\nand of number {number}."}
    if kind == "demonstration":
        texts = {"prompt": f"What is {number}+1?", "answer": f"It is {number + 1}.", "target": str(number + 1)}
    content = texts["text"] if kind == "text" else f"{texts['prompt']}\x00{texts['answer']}"
    return {
        "record_id": records.record_id(source, content),  # type: ignore[dict-item]
        "source": source,
        "license": LICENSES[source],
        "split": ("train", "train", "validation", "test")[number % 4],
        "package": "numpy" if source == "docs" else "",
        "version": "2.4" if source == "docs" else "",
        "file": f"{kind}{number}.py",
        "symbol": f"symbol{number}",
        "task": "addition",
        **texts,
    }


def write_data(root: Path, numbers: range) -> pandas.DataFrame:
    """data/ with a text and a demonstration for each number, shuffled, and one text twice; all as one table."""
    rows = {kind: [_record(number, kind) for number in numbers] for kind in ("text", "demonstration")}
    rows["text"].append(rows["text"][0] | {"file": "copy.py"})
    names = {"text": records.TEXT_COLUMNS, "demonstration": records.DEMONSTRATION_COLUMNS}
    for kind, path in (("text", "text"), ("demonstration", "demonstrations")):
        random.Random(7).shuffle(rows[kind])
        columns = {name: [row[name] for row in rows[kind]] for name in names[kind]}
        records.write(root / "data" / f"{path}.parquet", columns)
    rejected = {"source": ["docs"], "record_id": [b"r" * 16], "reason": ["long"], "detail": [""], "text": ["of moles"]}
    records.write(root / "data" / "rejects.parquet", rejected)
    return pandas.DataFrame([row | {"kind": kind} for kind in rows for row in rows[kind]])


def digests(root: Path, *paths: str) -> dict[str, str]:
    return {path: file_md5(root / path) for path in paths}


class Scanned:
    """An index of two versions of data with random uses, and every single use as a row of a table."""

    def __init__(self, folder: Path) -> None:
        self.state, self.root = folder / "state", folder / "root"
        rng, rows = np.random.default_rng(3), []
        self.known: dict[bytes, set[Facts]] = {}
        for version, numbers in enumerate((range(60), range(30, 100))):
            data = self.data = write_data(self.root, numbers)
            made = tables.folder_of(self.state, digests(self.root, *DATA))
            kept = tables.ensure(made, self.root, digests(self.root, *DATA))
            for row in data.itertuples():
                facts = Facts(row.kind, row.split, row.source, row.license, row.package, row.version)
                self.known.setdefault(row.record_id, set()).add(facts)
            for number in range(4):
                execution = Execution(
                    ("sft", "pretrain")[number % 2], hashlib.md5(bytes([version, number])).hexdigest()
                )
                found = []
                for role in ROLES:
                    taken = rng.integers(0, len(data), rng.integers(1, 90))
                    counts = rng.integers(0, 3, len(taken))
                    ids = [data.record_id[i] for i in taken]
                    found.append(Uses(role=role, ids=record_ids.of_bytes(ids), counts=counts))
                    rows += [(*execution, role, i, n) for i, n in zip(ids, counts.tolist(), strict=True)]
                tables.write_uses(made, kept, execution, found)
        self.uses = pandas.DataFrame(rows, columns=["stage", "execution", "role", "record_id", "count"])
        self.index = RecordIndex(self.state, self.root)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory) -> Scanned:
    return Scanned(tmp_path_factory.mktemp("with [letters] of *globs?"))


def test_every_record_has_the_uses_that_a_scan_finds(scanned):
    summed = scanned.uses.groupby(["record_id", "stage", "execution", "role"])["count"].sum()
    summed = summed[summed > 0]
    assert len(scanned.known) == 200
    for record_id in scanned.known:
        rows = summed[record_id].items() if record_id in summed else ()
        assert scanned.index.uses_of(record_id) == sorted(Use(*key, count) for key, count in rows)


def test_an_unknown_record_has_no_uses_and_no_facts(scanned):
    for record_id in (bytes(16), b"\xff" * 16, b"u" * 16):
        assert scanned.index.uses_of(record_id) == []
        assert scanned.index.facts_of(record_id) == []


def test_facts_of_a_record(scanned):
    for record_id, facts in scanned.known.items():
        assert scanned.index.facts_of(record_id) == sorted(facts)


def test_places_are_those_in_the_workspace(scanned):
    text = records.record_id("docs", "Text 30 tells of beavers\nand of number 30.")
    path = "data/text.parquet"
    found = [Place(path, "copy.py", "symbol30"), Place(path, "text30.py", "symbol30")]
    assert sorted(scanned.index.places_of(text)) == found
    of_version_2 = {tuple(row) for row in scanned.data[["record_id", "kind", "file", "symbol"]].itertuples(index=False)}
    for record_id, kind, file, symbol in of_version_2:
        path = f"data/{'text' if kind == 'text' else 'demonstrations'}.parquet"
        assert Place(path, file, symbol) in scanned.index.places_of(record_id)
    only_in_the_first_version = records.record_id("docs", "Text 2 tells of beavers\nand of number 2.")
    assert scanned.index.places_of(only_in_the_first_version) == []


def test_places_are_found_in_data_that_the_index_does_not_know(tmp_path):
    data = write_data(tmp_path, range(5))
    index_without_records = RecordIndex(tmp_path / "state", tmp_path)
    for row in data.itertuples():
        assert row.file in {place.file for place in index_without_records.places_of(row.record_id)}


def test_data_that_the_index_knows_is_not_looked_through_for_what_it_lacks(workspace, monkeypatch):
    root, state, data = workspace
    build(root, state, "data", "a", outputs=digests(root, *DATA))
    asked: list[str] = []
    standing = RecordIndex._standing
    monkeypatch.setattr(RecordIndex, "_standing", lambda self, *args: asked.append(args[0]) or standing(self, *args))
    assert RecordIndex(state, root).places_of(b"u" * 16) == []
    assert asked == []
    assert RecordIndex(state, root).places_of(data.record_id[0])
    (root / "dvc.lock").unlink()
    assert RecordIndex(state, root).places_of(b"u" * 16) == []
    assert asked[-2:] == list(DATA)


@pytest.mark.parametrize("roles", [ROLES, (usage.TRAINED,), (usage.TRAINED, usage.VALIDATED), ("none",)])
@pytest.mark.parametrize("n_executions", [1, 3, 8])
def test_contents_are_those_of_a_scan(scanned, roles, n_executions):
    executions = sorted(scanned.uses["execution"].unique())[:n_executions]
    found = scanned.index.contents_of([*executions, "0" * 32], roles)
    uses = scanned.uses[scanned.uses["execution"].isin(executions) & scanned.uses["role"].isin(roles)]
    uses = uses[uses["count"] > 0]
    assert found.unindexed == ["0" * 32]
    by_use = {key: (len(set(rows["record_id"])), rows["count"].sum()) for key, rows in uses.groupby(list(uses)[:3])}
    shares = {key: (sum(s.n_records for s in v), sum(s.n_uses for s in v)) for key, v in found.by_use.items()}
    assert shares == by_use
    assert sum(share.n_uses for share in found.distinct) == uses["count"].sum()
    ids = sorted(set(uses["record_id"]))
    assert list(scanned.index.ids_of(executions, roles)) == ids
    facts = [f for i in ids for f in scanned.known[i]]
    if n_executions == 1:
        assert {s.facts: s.n_records for s in found.distinct} == {f: facts.count(f) for f in set(facts)}
        assert found.n_records == len(ids)


def test_a_record_that_many_executions_used_counts_once(scanned):
    everything = scanned.index.contents_of(set(scanned.uses["execution"]), ROLES)
    of_both = scanned.uses[scanned.uses["count"] > 0]
    first = {hashlib.md5(bytes([0, number])).hexdigest() for number in range(4)}
    n_by_version = of_both.groupby(of_both["execution"].isin(first))["record_id"].nunique()
    assert everything.n_records == n_by_version.sum() < len(of_both)


def test_text_is_found_where_it_stands(scanned):
    found = scanned.index.find_text("number 77.")
    text = "Text 77 tells of beavers\nand of number 77."
    assert found == [Found(records.record_id("own", text).hex(), "data/text.parquet")]
    assert [f.where for f in scanned.index.find_text("It is 78")] == ["data/demonstrations.parquet"]
    assert scanned.index.find_text("of moles") == [Found((b"r" * 16).hex(), "data/rejects.parquet")]
    assert scanned.index.find_text("'; DROP TABLE x --%_") == []
    assert len(scanned.index.find_text("beavers")) == 70
    assert len(scanned.index.find_text("beavers", limit=9)) == 9


def test_a_text_that_is_no_longer_there_is_found_by_its_id(scanned):
    text = "Text 5 tells of beavers\nand of number 5."
    assert scanned.index.find_text(text + "\n") == [Found(records.record_id("own", text).hex(), "index")]
    assert scanned.index.find_text("tells of beavers\nand of number 5.") == []
    spoken = records.record_id("maths", "What is 5+1?\x00It is 6.")
    assert scanned.index.find_text("What is 5+1?\nIt is 6.") == [Found(spoken.hex(), "index")]


def test_no_text_is_refused(scanned):
    with pytest.raises(UserError, match="no text to look for"):
        scanned.index.find_text(" \n")


def test_without_an_index_nothing_is_known(tmp_path):
    empty = RecordIndex(tmp_path, tmp_path)
    assert empty.uses_of(b"x" * 16) == []
    assert empty.find_text("beavers") == []
    assert empty.contents_of(["0" * 32]).unindexed == ["0" * 32]
    assert list(empty.ids_of(["0" * 32])) == []


def test_what_shapes_a_model_is_handed_down_and_what_is_only_held_is_not():
    uses = [
        Use("data", "d", usage.KEPT, 1),
        Use("tokenizer", "t", usage.TOKENIZED, 1),
        Use("pretrain", "p", usage.TRAINED, 2),
        Use("sft", "s", usage.VALIDATED, 3),
        Use("evaluate", "e", usage.SHOWN, 1),
    ]
    artifacts = {
        "data/text.parquet": Ancestry("d", frozenset()),
        "tokens": Ancestry("t", frozenset({"d"})),
        "models/pretrain": Ancestry("p", frozenset({"d", "t"})),
        "models/sft": Ancestry("s", frozenset({"d", "t", "p"})),
        "models/dpo": Ancestry("x", frozenset({"d", "t", "p", "s"})),
        "models/other": Ancestry("y", frozenset({"d", "t"})),
        "report": Ancestry("r", frozenset({"d", "e"})),
    }
    assert inherited(uses, artifacts) == {
        "data/text.parquet": [uses[0]],
        "tokens": [uses[1]],
        "models/pretrain": [uses[2]],
        "models/sft": [uses[2], uses[3]],
        "models/dpo": [uses[2]],
        "report": [uses[4]],
    }


@pytest.fixture
def workspace(tmp_path) -> tuple[Path, Path, pandas.DataFrame]:
    """(root, state, data) with data/, token indices, comparisons and a dvc.lock that ties them together."""
    root, state = tmp_path / "root", tmp_path / "state"
    data = write_data(root, range(40))
    for kind, name in (("text", "text"), ("demonstration", "demonstrations")):
        for split in ("train", "validation", "test"):
            ids = list(data[(data.kind == kind) & (data.split == split)].record_id)
            columns = {"record_id": ids, "offset": [5 * i for i in range(len(ids))], "length": [5] * len(ids)}
            records.write(root / "tokens" / f"{name}.{split}.index.parquet", columns)
    write_json(root / "metrics" / "tokenizer.json", {})
    write_comparisons(root, list(data[data.kind == "demonstration"].record_id[:9]), "programmatic")
    write_lock(root)
    return root, state, data


def write_comparisons(root: Path, ids: list[bytes], judge: str) -> None:
    columns: dict[str, list[Any]] = {
        "record_id": sorted(ids),
        "source": ["human" if judge == "human" else "own"] * len(ids),
        "split": ["train", "train", "validation"] * (len(ids) // 3),
        "ranks": [[1, 2], [1, 1], [2, 1]] * (len(ids) // 3),
        "judge": [judge] * len(ids),
    }
    records.write(root / "preferences" / "comparisons.parquet", columns)


def write_lock(root: Path) -> None:
    """Only what is looked for: which data the tokens, and which tokens the comparisons were made from."""

    def entries(found: dict[str, str]) -> list[dict[str, str]]:
        return [{"path": path, "hash": "md5", "md5": digest} for path, digest in found.items()]

    data = digests(root, *DATA)
    stages = {
        "data": {"cmd": "", "deps": entries({"sources": "5.dir"}), "outs": entries(data)},
        "tokenizer": {"cmd": "", "deps": entries(data), "outs": entries({"tokens": "1.dir", "tokenizer": "2.dir"})},
        "preferences": {"cmd": "", "deps": entries({"tokens": "1.dir"}), "outs": entries({tables.RANKINGS: "3"})},
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


DPO = {"dpo": {"n_epochs": 2, "batch_size": 4}}


def build(root: Path, state: Path, stage: str, execution: str, **more: Any) -> list[Path]:
    values = {"parameters": {}, "outputs": {}, "inputs": {}} | more
    return index.build(root, state, stage, execution * 32, **values)


def test_stages_are_followed_to_their_data(workspace):
    root, state, data = workspace
    (kept,) = build(root, state, "data", "a", outputs=digests(root, *DATA))
    (tokenised,) = build(root, state, "tokenizer", "b", inputs=digests(root, *DATA))
    compared_with = {"models/sft": "9.dir", tables.RANKINGS: file_md5(root / tables.RANKINGS)}
    (compared,) = build(root, state, "dpo", "c", parameters=DPO, inputs=compared_with)
    assert kept.parent == tokenised.parent == compared.parent
    found = RecordIndex(state, root)
    spoken = sorted(data[data.kind == "demonstration"].record_id[:9])
    steps = {use.role: use for use in found.uses_of(spoken[0])}
    assert steps[usage.COMPARED] == Use("dpo", "c" * 32, usage.COMPARED, 2)
    assert steps[usage.KEPT] == Use("data", "a" * 32, usage.KEPT, 1)
    assert usage.COMPARED not in {use.role for use in found.uses_of(spoken[1])}, "a tie teaches nothing"
    # 3 comparisons are a batch; two steps, evaluated before the first and after each.
    assert Use("dpo", "c" * 32, usage.VALIDATED, 3) in found.uses_of(spoken[2])
    copied = data.record_id[data.file == "copy.py"].item()
    assert found.uses_of(copied)[0] == Use("data", "a" * 32, usage.KEPT, 2)


def test_building_again_changes_nothing(workspace):
    root, state, _ = workspace
    outputs = digests(root, *DATA)
    first = [path.read_bytes() for path in build(root, state, "data", "a", outputs=outputs)]
    assert [path.read_bytes() for path in build(root, state, "data", "a", outputs=outputs)] == first
    assert not [path for path in state.rglob("*") if path.name.startswith(".")]


def test_the_size_is_far_below_40_bytes_a_record(workspace):
    root, state, _ = workspace
    write_data(root, range(5000))
    build(root, state, "data", "a", outputs=digests(root, *DATA))
    size = sum(path.stat().st_size for path in state.rglob("*.parquet"))
    assert size / 10000 < 24


def test_rankings_by_people_have_records_of_their_own(workspace):
    root, state, _ = workspace
    ids = [hashlib.sha256(f"human\x00{i}".encode()).digest()[:16] for i in range(6)]
    write_comparisons(root, ids, "human")
    build(root, state, "preferences", "d", outputs=digests(root, tables.RANKINGS))
    found = RecordIndex(state, root)
    assert found.uses_of(ids[0]) == [Use("preferences", "d" * 32, usage.PROMPT, 2)]
    (facts,) = found.facts_of(ids[0])
    assert (facts.kind, facts.source, facts.license) == ("ranking", "human", "")
    assert found.places_of(ids[0]) == [Place(tables.RANKINGS, "", "")]


def test_artifacts_that_do_not_belong_together_are_refused(workspace):
    root, state, _ = workspace
    build(root, state, "data", "a", outputs=digests(root, *DATA))
    write_comparisons(root, [b"not in the data!"] * 3, "programmatic")
    with pytest.raises(UserError, match=r"dpo used record 6e6f7420696e2074686520646174612.* \(compared\)"):
        build(root, state, "dpo", "c", parameters=DPO, inputs={tables.RANKINGS: "3"})
    assert [path.name for path in state.rglob("uses-*")] == [f"uses-data-{'a' * 32}.parquet"]


def test_data_that_is_neither_indexed_nor_there_is_named(workspace):
    root, state, _ = workspace
    (root / "data" / "text.parquet").unlink()
    with pytest.raises(UserError, match=r"data/text\.parquet is not that; bring it back with: dvc checkout"):
        build(root, state, "dpo", "c", parameters=DPO, inputs={tables.RANKINGS: "3"})
    (root / "dvc.lock").unlink()
    with pytest.raises(UserError, match=r"dvc\.lock does not say which data/demonstrations\.parquet and data/text"):
        build(root, state, "dpo", "c", parameters=DPO, inputs={tables.RANKINGS: "3"})


def test_an_execution_that_is_no_id_is_refused(workspace):
    root, state, _ = workspace
    with pytest.raises(UserError, match="8 to 64 hexadecimal digits"):
        build(root, state, "data", "../x", outputs=digests(root, *DATA))


@pytest.mark.parametrize(
    ("name", "questions"),
    [
        ("records.parquet", ("uses_of", "facts_of", "contents_of")),
        ("groups.parquet", ("facts_of", "contents_of")),
        ("uses-*", ("uses_of", "contents_of")),
    ],
)
def test_a_damaged_file_is_named(workspace, name, questions):
    root, state, data = workspace
    build(root, state, "data", "a", outputs=digests(root, *DATA))
    (path,) = state.rglob(name)
    path.write_bytes(path.read_bytes()[:-9])
    for question in questions:
        asked = (["a" * 32], [usage.KEPT]) if question == "contents_of" else (data.record_id[0],)
        with pytest.raises(UserError, match=re.escape(path.name)):
            getattr(RecordIndex(state, root), question)(*asked)
