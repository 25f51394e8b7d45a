"""The benchmark of uptraining: its arithmetic by hand, and once all the way through with a model of nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from axon_models import checkpoint
from benchmarks.uptrain import Row, cache_bytes, counts_of, main, parameters_of, prompts_of, table
from tasks.errors import UserError
from tests.axon_models.small import small_decoder
from tests.helpers import make_tree
from tests.tasks.tiny_root import OVERRIDES, digests, make_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_root(tmp_path / "root")
    (root / "params.yaml").write_text(yaml.safe_dump(make_tree(OVERRIDES | {"model.heads": 4, "pretrain.n_steps": 60})))
    return root


def test_heads_that_are_compared() -> None:
    assert counts_of(4) == [4, 2, 1]
    assert counts_of(6) == [6, 2, 1]
    assert counts_of(3) == [3, 1]
    assert counts_of(2) == [2, 1]
    assert counts_of(1) == [1]


def test_bytes_of_a_cached_token_by_hand() -> None:
    """Keys and values, layers, heads, dimensions of a head, four bytes each."""
    model = small_decoder()
    config = model.config
    assert cache_bytes(model) == 2 * config.n_layers * config.kv_heads * (config.d_model // config.heads) * 4


def test_prompts_are_text_of_all_lengths() -> None:
    stream = np.arange(1000, dtype=np.uint16)
    prompts = prompts_of(stream, 5, 88, 1)
    assert sorted(map(len, prompts)) == [8, 28, 48, 68, 88]
    assert all(prompt == list(range(prompt[0], prompt[0] + len(prompt))) for prompt in prompts)
    assert prompts == prompts_of(stream, 5, 88, 1) != prompts_of(stream, 5, 88, 2)
    assert [len(prompt) for prompt in prompts_of(stream, 1, 88, 1)] == [48]


def test_the_schedule_is_drawn_together_with_the_steps(root: Path) -> None:
    params = parameters_of(root, 30)
    section = params.pretrain
    assert (section.n_steps, section.warmup_steps, section.evaluate_every) == (30, 1, 30)  # warm-up was 2 of 60
    assert params.model.kv_heads == params.model.heads == 4
    assert parameters_of(root, None).pretrain.n_steps == 60
    with pytest.raises(UserError, match="with --steps 0"):
        parameters_of(root, 0)


def test_a_table_by_hand() -> None:
    shared = {"heads": 4, "pooled": 2.5, "uptrained": 2.0, "cache_bytes": 6144}
    rows = [
        Row(**shared, kv_heads=4, from_scratch=None, speeds={1: [90.0, 110.0, 100.0], 32: [1500.0]}),
        Row(**shared, kv_heads=2, from_scratch=1.75, speeds={1: [120.0, 100.0], 32: [2000.0]}),
        Row(**shared, kv_heads=1, from_scratch=1.5, speeds={1: [1.0], 32: [2.0]}),
    ]
    lines = table(rows, [1, 32]).split("\n")
    assert lines[2] == "| multi-head | 2.5000 | 2.0000 | – | 6,144 | 100 | 90 to 110 | 1,500 | 1,500 to 1,500 |"
    assert lines[3].startswith("| grouped-query, 2 | 2.5000 | 2.0000 | 1.7500 | 6,144 | 110 | 100 to 120 |")
    assert lines[4].startswith("| multi-query |")
    assert len({line.count("|") for line in lines}) == 1
    assert "from scratch" not in table(rows[:1], [1, 32])


def test_all_the_way_and_nothing_written_to_the_checkout(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(root, ".")
    settings = ["--rounds", "1", "--new-tokens", "4", "--batches", "1,3", "--fraction", "0.1"]
    main([str(root), "--steps", "20", "--from-scratch", *settings])
    said = capsys.readouterr().out
    rows = json.loads(said.splitlines()[-1])["rows"]
    assert [row["kv_heads"] for row in rows] == [4, 2, 1]
    assert [row["cache_bytes"] for row in rows] == [rows[2]["cache_bytes"] * n for n in (4, 2, 1)]
    assert [row["from_scratch"] is None for row in rows] == [True, False, False]
    assert all(len(speeds) == 1 and speeds[0] > 0 for row in rows for speeds in row["speeds"].values())
    assert digests(root, ".") == before

    checkpoint.save(small_decoder(vocab_size=262, kv_heads=6), root.parent / "own", tokenizer_dir=root / "tokenizer")
    main([str(root), "--steps", "20", "--model", str(root.parent / "own"), *settings])
    said = capsys.readouterr().out
    assert "pretraining" not in said
    assert [row["kv_heads"] for row in json.loads(said.splitlines()[-1])["rows"]] == [6, 2, 1]


def test_a_checkout_without_tokens_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "has no params.yaml, tokens, tokenizer; make it with `axon run tokenizer`" in capsys.readouterr().err
