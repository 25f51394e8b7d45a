"""JSON lines of one's own: every form, damage of every kind, and labels at line starts alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.data import own_files
from tasks.data.records import Demonstration, TextRecord, read
from tasks.errors import UserError
from tasks.steps import data
from tests.helpers import make_context


def _parse(row: object) -> TextRecord | Demonstration:
    return own_files.parse_line(json.dumps(row).encode(), "files:x", "MIT")


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"instruction": "Do.", "output": "Done."}, "Do.", "Done."),
        ({"instruction": "Do.", "input": "This.", "output": "Done."}, "Do.\n\nThis.", "Done."),
        ({"instruction": "Do.", "context": "", "response": "Done.", "category": "qa"}, "Do.", "Done."),
        ({"prompt": "Say.", "response": "Said."}, "Say.", "Said."),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}, "Hi", "Yo"),
        ({"prompt": "Instruction: Say.\nInput:\nx", "response": "Response: It is in\n\nthe Output: line."},
         "Say.\n\nx", "It is in\n\nthe Output: line."),
    ],
)  # fmt: skip
def test_forms_are_told_line_by_line(row: object, prompt: str, answer: str) -> None:
    record = _parse(row)
    assert isinstance(record, Demonstration)
    assert (record.prompt, record.answer, record.target, record.task) == (prompt, answer, answer, "own")


def test_texts_are_normalised_and_keep_their_labels() -> None:
    record = _parse({"text": "Output: cafe\u0301\r\n"})
    assert isinstance(record, TextRecord)
    assert record.text == "Output: café"


def test_chats_of_several_turns_keep_all_but_the_last_answer_as_json() -> None:
    turns = [
        {"role": role, "content": content}
        for role, content in [("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
    ]
    record = _parse({"messages": turns})
    assert isinstance(record, Demonstration)
    assert json.loads(record.prompt) == turns[:-1]
    assert record.answer == "D"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not JSON"),
        (b'{"text": "\xff\xfe"}', "not UTF-8"),
        (b'["text"]', "must be an object"),
        (b'{"txt": "x"}', "no known form"),
        (b'{"text": ""}', "not empty"),
        (b'{"prompt": "x"}', "'response' is missing"),
        (b'{"prompt": "x", "response": 3}', "must be text"),
        (b'{"instruction": " ", "output": "x"}', "is empty"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "must end with"),
        (b'{"messages": [{"role": "bot", "content": "x"}]}', "role 'bot'"),
        (b'{"messages": "x"}', "must be a list"),
    ],
)
def test_damage_is_named(line: bytes, reason: str) -> None:
    with pytest.raises(own_files.DamagedLine, match=reason):
        own_files.parse_line(line, "files:x", "MIT")


def _write(root: Path, n_good: int, n_bad: int) -> dict[str, object]:
    subjects = [
        "amber",
        "birch",
        "cedar",
        "dune",
        "ember",
        "fjord",
        "grove",
        "heron",
        "islet",
        "jetty",
        "kelp",
        "lagoon",
    ]
    lines = []
    for i in range(n_good):
        a, b, c = (subjects[(i * step) % 12] for step in (1, 5, 7))
        words = " ".join(f"{a}{i} {b} {c}{k}" for k in range(6))
        lines.append(json.dumps({"text": f"A tale of {a} and {b} number {i}: {words}."}))
        lines.append(json.dumps({"prompt": f"Who met {a} at {b} {i}?", "response": f"The {c} {i} met {a}."}))
    (root / "own.jsonl").write_text("\n".join([*lines, *['{"text": '] * n_bad]) + "\n\n")
    return {
        "data.files": [{"path": "own.jsonl", "license": "CC-BY-4.0"}],
        "data.python_docs.packages": [],
        "data.maths.max_questions": 120,
        "data.max_damaged_fraction": 0.05,
    }


def test_a_run_on_own_files_accounts_for_every_line(tmp_path: Path) -> None:
    context = make_context(tmp_path, _write(tmp_path, 100, 3))
    data.run(context)
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    own = manifest["sources"]["files:own.jsonl"]
    for table in ("text", "demonstrations"):
        assert own[table]["read"] == own[table]["kept"] + sum(own[table]["rejected"].values())
    assert own["text"]["read"] == 103
    assert own["text"]["rejected"]["damaged"] == 3
    assert own["demonstrations"]["read"] == 100
    assert manifest["licenses"]["CC-BY-4.0"] == own["text"]["kept"] + own["demonstrations"]["kept"]
    assert manifest["overlap"]["overlaps"] == 0
    assert read(tmp_path / "data" / "rejects.parquet")["detail"][0].startswith("line 201: not JSON")
    for table, splits in (("text", 3), ("demonstrations", 4)):
        assert len(set(read(tmp_path / "data" / f"{table}.parquet")["split"])) == splits
    first = {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()}
    data.run(context)
    assert {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()} == first


def test_too_much_damage_fails_but_leaves_the_rejects(tmp_path: Path) -> None:
    context = make_context(tmp_path, _write(tmp_path, 20, 3))
    with pytest.raises(UserError, match="3 of 43 lines are damaged") as caught:
        data.run(context)
    assert caught.value.exit_code == 1
    assert read(tmp_path / "data" / "rejects.parquet")["reason"] == ["damaged"] * 3
    assert not (tmp_path / "data" / "text.parquet").exists()


def test_nothing_left_is_a_clear_mistake(tmp_path: Path) -> None:
    overrides = _write(tmp_path, 5, 0) | {"data.filters.min_chars": 5000, "data.filters.max_chars": 8000}
    with pytest.raises(UserError, match=r"0 texts to pretrain on are left.*rejects\.parquet"):
        data.run(make_context(tmp_path, overrides))


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_missing_and_empty_files_fail_before_anything(tmp_path: Path, content: str | None) -> None:
    overrides = _write(tmp_path, 1, 0)
    (tmp_path / "own.jsonl").unlink()
    if content is not None:
        (tmp_path / "own.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"own\.jsonl") as caught:
        data.run(make_context(tmp_path, overrides))
    assert caught.value.exit_code == 2
    assert not (tmp_path / "data").exists()
