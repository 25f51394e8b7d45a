"""The tokenizer stage on a small data set: arrays, indexes and metrics agree with the records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tasks.data import records
from tasks.evaluation import compression
from tasks.steps import data, tokenizer
from tasks.tokenizers import bytelevel, chat, rows, shards, splits
from tests.helpers import make_context
from tests.tasks.test_data_own_files import _write


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    context = make_context(folder, _write(folder, 120, 0) | {"tokenizer.vocab_size": 320})
    data.run(context)
    tokenizer.run(context)
    return folder


def test_arrays_hold_every_record_in_order(root: Path) -> None:
    tok = bytelevel.load(root / "tokenizer")
    text = records.read(root / "data" / "text.parquet")
    for split in records.TEXT_SPLITS:
        tokens = np.load(root / "tokens" / f"text.{split}.npy", mmap_mode="r", allow_pickle=False)
        index = records.read(root / "tokens" / f"text.{split}.index.parquet")
        assert tokens.dtype == np.uint16
        assert len(tokens) == sum(index["length"])
        by_id = dict(zip(text["record_id"], text["text"], strict=True))
        assert index["record_id"] == [i for i, s in zip(text["record_id"], text["split"], strict=True) if s == split]
        for identity, offset, length, n_bytes in zip(*index.values(), strict=True):
            document = tokens[offset : offset + length].tolist()
            assert document[-1] == chat.END_OF_TEXT
            assert tok.decode(document[:-1], skip_special_tokens=False) == by_id[identity]
            assert n_bytes == len(by_id[identity].encode())


def test_demonstrations_are_chats_with_the_length_of_their_prompt(root: Path) -> None:
    tok = bytelevel.load(root / "tokenizer")
    rows = records.read(root / "data" / "demonstrations.parquet")
    by_id = dict(zip(rows["record_id"], zip(rows["prompt"], rows["answer"], rows["task"], strict=True), strict=True))
    n_rows = 0
    for split in records.DEMONSTRATION_SPLITS:
        tokens = shards.load_tokens(root / "tokens" / f"demonstrations.{split}.npy")
        index = records.read(root / "tokens" / f"demonstrations.{split}.index.parquet")
        assert list(index) == ["record_id", "offset", "length", "prompt_length", "task"]
        for identity, offset, length, prompt_length, task in zip(*index.values(), strict=True):
            prompt, answer, of_task = by_id[identity]
            assert task == of_task
            expected = chat.encode_example(tok, prompt, answer)
            assert (tokens[offset : offset + length].tolist(), prompt_length) == expected
            n_rows += 1
    assert n_rows == len(rows["prompt"])


def test_metrics(root: Path) -> None:
    metrics = json.loads((root / "metrics" / "tokenizer.json").read_text())
    assert metrics["vocab_size"] == 320
    for split, rate in metrics["bytes_per_token"].items():
        tokens = shards.load_tokens(root / "tokens" / f"text.{split}.npy")
        index = records.read(root / "tokens" / f"text.{split}.index.parquet")
        assert rate == pytest.approx(sum(index["n_bytes"]) / len(tokens))
    assert 0 < metrics["baselines"]["token_3gram"] < metrics["baselines"]["token_unigram"] < 8
    assert "baselines_of" not in metrics


def test_baselines_of_much_text_are_of_a_part_of_it_and_say_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text of the same documents that the tokens are of: what those documents give when there are no others."""
    (tmp_path / "data").symlink_to(root / "data")
    monkeypatch.setattr(tokenizer, "MEASURED_BYTES", {"train": 2000, "test": 300})
    tokenizer.run(make_context(tmp_path, {"tokenizer.vocab_size": 320}))
    metrics = json.loads((tmp_path / "metrics" / "tokenizer.json").read_text())
    text = records.read(root / "data" / "text.parquet", ["split", "text"])
    tok = bytelevel.load(root / "tokenizer")
    parts = {}
    for split, at_most in (("train", 2000), ("test", 300)):
        texts = [content for found, content in zip(text["split"], text["text"], strict=True) if found == split]
        parts[split] = [texts[i] for i in compression.spread([len(t.encode()) for t in texts], at_most)]
        n_bytes = sum(len(t.encode()) for t in parts[split])
        assert metrics["baselines_of"][split] == {"documents": len(parts[split]), "bytes": n_bytes}
        assert 0.5 * at_most < n_bytes <= at_most < sum(len(t.encode()) for t in texts)
    ids = {
        split: np.array([i for t in texts for i in (*chat.encode_text(tok, t), chat.END_OF_TEXT)])
        for split, texts in parts.items()
    }
    assert metrics["baselines"] == compression.baselines(
        train_tokens=ids["train"],
        test_tokens=ids["test"],
        train_bytes="\n".join(parts["train"]).encode(),
        test_texts=parts["test"],
        vocab_size=320,
        separator=chat.END_OF_TEXT,
    )


def test_held_out_words_do_not_shape_the_vocabulary(root: Path, tmp_path: Path) -> None:
    """The same tokenizer comes from data without the held-out rows."""
    for table in ("text", "demonstrations"):
        rows = records.read(root / "data" / f"{table}.parquet")
        keep = [i for i, split in enumerate(rows["split"]) if split == "train"]
        more = [i for i, split in enumerate(rows["split"]) if split != "train"]
        changed = {name: [values[i] for i in (*keep, *more)] for name, values in rows.items()}
        key = "text" if table == "text" else "answer"
        changed[key] = changed[key][: len(keep)] + ["qqqq zzzz " * 9] * len(more)
        records.write(tmp_path / "data" / f"{table}.parquet", changed)
    tokenizer.run(make_context(tmp_path, {"tokenizer.vocab_size": 320}))
    expected = (root / "tokenizer" / "tokenizer.json").read_bytes()
    assert (tmp_path / "tokenizer" / "tokenizer.json").read_bytes() == expected


@pytest.mark.parametrize("kind", ["byte_fallback", "own"])
def test_another_kind_is_trained_and_gives_every_text_back(root: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "data").symlink_to(root / "data")
    tokenizer.run(make_context(tmp_path, {"tokenizer.kind": kind, "tokenizer.vocab_size": 320}))
    same = [(tmp_path / name).read_bytes() == (root / name).read_bytes() for name in ("tokenizer/tokenizer.json",)]
    assert same == [kind == "own"], "our own BPE must learn what the library learns, and byte fallback something else"
    tok = bytelevel.load(tmp_path / "tokenizer")
    text = records.read(root / "data" / "text.parquet", ["split", "text"])
    expected = [content for split, content in zip(text["split"], text["text"], strict=True) if split == "train"]
    tokens = shards.load_tokens(tmp_path / "tokens" / "text.train.npy")
    ends = np.flatnonzero(tokens == chat.END_OF_TEXT)
    found = [tok.decode(part[part != chat.END_OF_TEXT].tolist()) for part in np.split(tokens, ends + 1)[:-1]]
    assert found == expected


def test_windows_and_batches_do_not_show(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of one row, two at a time, read in batches of three rows: the same bytes."""
    for folder in ("data", "tokenizer"):
        (tmp_path / folder).symlink_to(root / folder)
    monkeypatch.setattr(splits, "WINDOW", 2)
    monkeypatch.setattr(rows, "BATCH_ROWS", 3)
    monkeypatch.setattr(shards.plan, "__defaults__", (1,))
    splits.tokenise(tmp_path, make_context(tmp_path).fan_out)
    for file in sorted((root / "tokens").iterdir()):
        assert (tmp_path / "tokens" / file.name).read_bytes() == file.read_bytes(), file.name


def test_rows_are_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BATCH_ROWS", 4)
    records.write(tmp_path / "x.parquet", {"a": [str(i) for i in range(10)], "b": ["é" * i for i in range(10)]})
    reader = rows.Reader(tmp_path / "x.parquet", ["a", "b"])
    for wanted in ([0, 1, 5, 9], [2, 3], [], [9], [0]):
        taken = {"a": [str(i) for i in wanted], "b": ["é" * i for i in wanted]}
        assert reader.take(wanted) == taken
    assert rows.sizes(tmp_path / "x.parquet", ["a", "b"]) == [1 + 2 * i for i in range(10)]


def test_shards_cover_all_rows_once() -> None:
    sizes = [5, 1, 9, 2, 2]
    assert shards.plan(sizes, [0, 2, 3, 4], shard_bytes=10) == [[0, 2], [3, 4]]
    assert shards.plan(sizes, []) == []


def test_an_array_of_another_length_than_its_index_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="3 tokens written"):
        shards.write_array(tmp_path / "x.npy", [np.arange(3)], 4)
    assert list(tmp_path.iterdir()) == []


def test_an_array_is_what_numpy_writes(tmp_path: Path) -> None:
    expected = np.arange(1000, dtype=np.uint16)
    assert shards.write_array(tmp_path / "x.npy", [expected[:1], expected[1:]]) == 1000
    np.save(tmp_path / "y.npy", expected)
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "y.npy").read_bytes()
