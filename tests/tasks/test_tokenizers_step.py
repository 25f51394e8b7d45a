"""The tokenizer stage on a small data set: arrays, indexes and metrics agree with the records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tasks.data import records
from tasks.steps import data, tokenizer
from tasks.tokenizers import bytelevel, chat, shards
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


def test_shards_cover_all_rows_once() -> None:
    sizes = [5, 1, 9, 2, 2]
    assert shards.plan(sizes, [0, 2, 3, 4], shard_bytes=10) == [[0, 2], [3, 4]]
    assert shards.plan(sizes, []) == []


def test_an_array_of_another_length_than_its_index_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="3 tokens written"):
        shards.write_array(tmp_path / "x.npy", [np.arange(3)], 4)
    assert list(tmp_path.iterdir()) == []
