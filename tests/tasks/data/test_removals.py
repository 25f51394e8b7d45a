"""What the removal list names is in no output, in no guise; without a list the outputs are what they were."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.data import near_duplicates, python_docs, removal_list, removals
from tasks.data.records import Demonstration, TextRecord, read, record_id
from tasks.data.removal_list import Entry
from tasks.errors import UserError
from tasks.steps import data
from tests.helpers import make_context, serial_fan_out
from tests.tasks.data import corpus

# SHA-256 of the rows that the data stage wrote for `corpus.planted` before it knew of removal lists.
BEFORE = {
    "demonstrations": "5799bdc26b11d72f3e1de3fd2b4f2047f054fb489c543b873a458d4e91cf465e",
    "rejects": "daf62504f1cf1dee13af78199f727b9ba06b843a28bc4b39ab66e91af5bf8ea4",
    "text": "00cbd48062fb94461d47b824026558d0222e6213bec6b522316aeb27f37a5d0b",
}
PLANTED_ID = record_id("files:sources/own.jsonl", corpus.PLANTED)


def entry(record: bytes = bytes(16), **changes: Any) -> Entry:
    return dataclasses.replace(
        Entry(record=removals.id_digest(record), content=(), cluster=None, when="2026-01-31", reason="asked"), **changes
    )


def run(
    root: Path, *entries: Entry, plant: Callable[[Path], None] = corpus.planted, **overrides: Any
) -> dict[str, Any]:
    """Run the data stage on the corpus with a list of `entries`; returns its manifest."""
    plant(root)
    if entries:
        removal_list.write(root, entries)
    data.run(make_context(root, corpus.OVERRIDES))
    manifest: dict[str, Any] = json.loads((root / "data" / "manifest.json").read_text())
    return manifest


def tables(root: Path) -> dict[str, dict[str, list[Any]]]:
    return {path.stem: read(path) for path in sorted((root / "data").glob("*.parquet"))}


def everything(root: Path) -> str:
    """All that the outputs hold: their bytes, and their Parquet values, which the bytes have compressed."""
    raw = b"".join(path.read_bytes() for path in sorted((root / "data").iterdir()))
    return raw.decode("latin-1") + repr(tables(root))


def outputs(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "data").iterdir()}


def test_without_a_list_the_outputs_are_those_of_before(tmp_path: Path) -> None:
    assert all(word in repr(corpus.PLANTED) for word in corpus.TELLTALES)
    manifest = run(tmp_path)
    rows = {name: hashlib.sha256(repr(columns).encode()).hexdigest() for name, columns in tables(tmp_path).items()}
    assert rows == BEFORE
    assert "removed" not in json.dumps(manifest)
    first = outputs(tmp_path)
    (tmp_path / removal_list.PATH).write_text('{"version": 1, "removed": []}\n')
    run(tmp_path)
    assert outputs(tmp_path) == first
    assert all(word in everything(tmp_path) for word in corpus.TELLTALES), "the test can see what it looks for"


BY_EACH_WAY: dict[str, Entry] = {
    "id": entry(PLANTED_ID),
    "another id": entry(also=(removals.id_digest(PLANTED_ID),)),
    "content": entry(content=(removals.content_digest(corpus.PLANTED),)),
    "bands": entry(bands=removals.bands_of(corpus.PLANTED)),
}


@pytest.mark.parametrize("way", BY_EACH_WAY)
def test_the_record_its_copy_and_its_near_duplicate_go_whichever_way_it_is_listed(tmp_path: Path, way: str) -> None:
    manifest = run(tmp_path, BY_EACH_WAY[way])
    gone = {corpus.PLANTED, corpus.NEAR}
    assert not gone & set(tables(tmp_path)["text"]["text"])
    texts = [row for row in tables(tmp_path)["rejects"]["text"] if "Vexelbrandt" in row]
    assert all(text.startswith('{"text"') for text in texts), "only the line cut short, which is another record"
    assert manifest["removed"]["texts"] >= 3
    assert manifest["sources"]["files:sources/own.jsonl"]["text"]["removed"] == 1


def test_what_forgetting_writes_leaves_no_word_of_it_in_any_byte(tmp_path: Path) -> None:
    """The digests and the bands together: also as an answer, and in a line that is no JSON."""
    listed = entry(
        PLANTED_ID, content=(removals.content_digest(corpus.PLANTED),), bands=removals.bands_of(corpus.PLANTED)
    )
    manifest = run(tmp_path, listed)
    assert [word for word in corpus.TELLTALES if word in everything(tmp_path)] == []
    assert manifest["removed"] == {"listed": 1, "texts": 4, "demonstrations": 1}
    for source in manifest["sources"].values():
        for counts in source.values():
            assert counts["read"] == counts["kept"] + sum(counts["rejected"].values()) + counts.get("removed", 0)


def test_all_else_stays(tmp_path: Path) -> None:
    """Beside the planted ones the very same records as where they never were."""
    run(tmp_path / "removed", BY_EACH_WAY["content"], entry(b"x" * 16, bands=removals.bands_of(corpus.PLANTED)))
    run(tmp_path / "never", plant=corpus.plain)
    removed, never = tables(tmp_path / "removed"), tables(tmp_path / "never")
    assert removed["text"] == never["text"]
    assert removed["demonstrations"] == never["demonstrations"]


def test_a_near_duplicate_added_later_is_known_by_its_bands(tmp_path: Path) -> None:
    def later(root: Path) -> None:
        corpus.write(root, "own", [*corpus.lines(1, 40), {"text": corpus.LIKE}])
        corpus.write(root, "more", corpus.lines(2, 40))

    pair = [near_duplicates.signature(text, 64) for text in (corpus.PLANTED, corpus.LIKE)]
    assert near_duplicates.clusters(pair, 0.8) == [0, 1], "the data stage alone would not have seen it"
    run(tmp_path, entry(bands=removals.bands_of(corpus.PLANTED)), plant=later)
    assert [word for word in corpus.TELLTALES if word in everything(tmp_path)] == []


def test_bands_tell_near_from_far() -> None:
    words = [f"word{i}" for i in range(200)]
    listed = removals.Removals((entry(bands=removals.bands_of(" ".join(words))),))
    found = {}
    for n_changed in (0, 2, 4, 30, 60, 200):
        changed = [f"other{i}" for i in range(n_changed)]
        step = max(1, 200 // max(1, n_changed))
        text = [changed[i // step] if i % step == 0 and i // step < n_changed else word for i, word in enumerate(words)]
        found[n_changed] = listed.is_near(removals.bands_of(" ".join(text)))
    assert found == {0: True, 2: True, 4: True, 30: False, 60: False, 200: False}


def test_a_demonstration_goes_by_its_own_id_and_by_that_among_rejects(tmp_path: Path) -> None:
    source, text = "files:sources/own.jsonl", f"{corpus.QUESTION}\n{corpus.PLANTED}"
    demonstration = Demonstration(
        source=source, license="", group="", task="own", prompt=corpus.QUESTION, answer=corpus.PLANTED, target=""
    )
    assert removals.known_ids(demonstration) == {demonstration.record_id, record_id(source, text)}
    row = json.loads((corpus.planted(tmp_path), (tmp_path / "sources" / "more.jsonl").read_text())[1].splitlines()[2])
    identity = record_id("files:sources/more.jsonl", f"{row['prompt']}\x00{row['response']}")
    run(tmp_path, entry(identity))
    assert corpus.PLANTED not in tables(tmp_path)["demonstrations"]["answer"]
    assert corpus.PLANTED in tables(tmp_path)["text"]["text"], "the text of that answer is a record of its own"


def test_short_answers_do_not_drag_each_other_along() -> None:
    def say(prompt: str) -> Demonstration:
        return Demonstration(source="s", license="", group="", task="own", prompt=prompt, answer="Yes.", target="Yes.")

    listed = removals.Removals((entry(content=(removals.content_digest("Yes."),), bands=removals.bands_of("Yes.")),))
    asked = [say("Is the amber lantern lit?"), say("Do otters sleep in the kelp?")]
    dropped = removals.drop(asked, "x", listed, None, serial_fan_out)
    assert dropped.kept == asked


def test_generated_questions_go_one_by_one(tmp_path: Path) -> None:
    run(tmp_path, plant=corpus.plain)
    before = tables(tmp_path)["demonstrations"]
    maths = [i for i, source in enumerate(before["source"]) if source == "maths"]
    identity = before["record_id"][maths[7]]
    manifest = run(tmp_path, entry(identity), plant=corpus.plain)
    after = tables(tmp_path)["demonstrations"]["record_id"]
    assert set(before["record_id"]) - set(after) == {identity}
    assert manifest["sources"]["maths"]["demonstrations"]["removed"] == 1


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> TextRecord:
    """Three docstrings in place of installed packages; the first is the planted text."""

    def text(symbol: str, content: str) -> TextRecord:
        return TextRecord(
            source="python_docs", license="MIT", group=f"python_docs/{symbol}.py", file=f"{symbol}.py", symbol=symbol,
            package="pkg", version="1", text=content,
        )  # fmt: skip

    texts = [text("pkg.ledger", corpus.PLANTED), text("pkg.near", corpus.NEAR), text("pkg.far", "Fold the kelp twice.")]
    collected = python_docs.Collected(
        packages=[], texts=texts, public=frozenset((t.file, t.symbol) for t in texts), unreadable=[]
    )
    monkeypatch.setattr(python_docs, "collect", lambda names, fan_out: collected)
    return texts[0]


def test_a_docstring_goes_with_the_question_about_it_by_the_id_of_its_headed_text(
    tmp_path: Path, docs: TextRecord
) -> None:
    run(tmp_path, plant=corpus.plain)
    text = tables(tmp_path)["text"]
    shown = text["record_id"][text["symbol"].index("pkg.ledger")]
    assert shown != docs.record_id
    manifest = run(tmp_path, entry(shown), plant=corpus.plain)
    assert manifest["sources"]["python_docs"]["text"]["removed"] == 2
    assert [word for word in corpus.TELLTALES if word in everything(tmp_path)] == []


def test_past_the_limit_of_damage_the_removed_lines_are_not_among_the_rejects(tmp_path: Path) -> None:
    def damaged(root: Path) -> None:
        corpus.planted(root)
        path = root / "sources" / "own.jsonl"
        path.write_text(f'{{"text": "{corpus.PLANTED}\n' + "{\n" * 40 + path.read_text())

    listed = entry(content=(removals.content_digest(corpus.PLANTED),), bands=removals.bands_of(corpus.PLANTED))
    with pytest.raises(UserError, match="40 of 122 lines are damaged"):
        run(tmp_path, listed, plant=damaged)
    assert read(tmp_path / "data" / "rejects.parquet")["text"] == ["{"] * 40


def test_the_list_comes_back_as_it_was_written(tmp_path: Path) -> None:
    full = entry(
        b"a" * 16, content=("0" * 64, "1" * 64), also=("2" * 64,), cluster="3" * 64, bands=removals.bands_of("a b")
    )
    least = entry(b"b" * 16)
    removal_list.write(tmp_path, [full, least])
    assert removal_list.read(tmp_path) == tuple(sorted([full, least], key=lambda e: e.record))
    assert removal_list.read(tmp_path / "elsewhere") == ()
    # The form without the keys that may be left out is right too.
    row = {key: value for key, value in least.to_json().items() if key not in ("also", "bands")}
    (tmp_path / removal_list.PATH).write_text(json.dumps({"version": 1, "removed": [row]}))
    assert removal_list.read(tmp_path) == (least,)


RIGHT: dict[str, Any] = entry().to_json()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not JSON"),
        ('{"version": 1, "version": 1, "removed": []}', "a key stands twice"),
        ("[]", "it must be"),
        ({"version": 1}, "it must be"),
        ({"version": 1, "removed": [], "text": "x"}, "it must be"),
        ({"version": 2, "removed": []}, "version=2 must be 1"),
        ({"version": True, "removed": []}, "version=True must be 1"),
        ({"version": 1, "removed": {}}, "removed must be a list"),
        ({"version": 1, "removed": ["x"]}, "removed[0] must be an object"),
        ({"version": 1, "removed": [RIGHT, {k: v for k, v in RIGHT.items() if k != "when"}]}, "removed[1] has no when"),
        ({"version": 1, "removed": [RIGHT | {"text": "x"}]}, "removed[0].text is not a known key"),
        ({"version": 1, "removed": [RIGHT | {"record": "ABC"}]}, "removed[0].record='ABC' must be 64 hex digits"),
        ({"version": 1, "removed": [RIGHT | {"cluster": 3}]}, "removed[0].cluster=3 must be 64 hex digits or null"),
        ({"version": 1, "removed": [RIGHT | {"content": "0" * 64}]}, "removed[0].content must be a list"),
        ({"version": 1, "removed": [RIGHT | {"also": ["x"]}]}, "removed[0].also must be a list"),
        ({"version": 1, "removed": [RIGHT | {"when": "31.1.2026"}]}, "removed[0].when='31.1.2026' must be a date"),
        ({"version": 1, "removed": [RIGHT | {"reason": "x" * 201}]}, "removed[0].reason must be text of at most 200"),
        ({"version": 1, "removed": [RIGHT | {"bands": "AAAA"}]}, "removed[0].bands must be null or base64"),
        ({"version": 1, "removed": [RIGHT, RIGHT]}, "is listed twice"),
    ],
)
def test_a_list_that_is_not_right_stops_the_stage(tmp_path: Path, content: str | Mapping[str, Any], expected: str):
    corpus.plain(tmp_path)
    (tmp_path / removal_list.PATH).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as caught:
        data.run(make_context(tmp_path, corpus.OVERRIDES))
    assert expected in str(caught.value)
    assert "sources/removals.json is not a removal list" in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "data").exists()
