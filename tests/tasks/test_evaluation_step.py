"""Stage `evaluate` on tiny models with the real tokenizer, judge, engine and files."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from axon_models import checkpoint
from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Decoder
from axon_models.layers.language_model import scalar_head
from tasks.data import records
from tasks.errors import UserError
from tasks.evaluation import shards
from tasks.files import read_json, write_json
from tasks.steps import evaluate
from tasks.tokenizers import bytelevel, chat
from tasks.training.losses import bits_per_byte
from tests.helpers import make_context, serial_fan_out

VOCAB_SIZE = 262
SETTINGS: dict[str, Any] = {
    "precision": "float32", "evaluate.n_maths": 10, "evaluate.n_docs": 3, "evaluate.batch_size": 4,
    "evaluate.n_samples": 3, "evaluate.n_text_batches": 3, "evaluate.n_bootstrap": 200, "pretrain.seq_len": 16,
    "preferences.prompt_tokens": 40, "preferences.max_new_tokens": 8,
}  # fmt: skip
NAMES = ("pretrain", "sft", "sft_continued", "ppo", "dpo", "reward_model")


def identity(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def write_models(root: Path) -> None:
    config = DecoderConfig(
        vocab_size=VOCAB_SIZE,
        d_model=16,
        n_layers=1,
        heads=2,
        kv_heads=1,
        d_feed_forward=32,
        max_positions=64,
        init_std=0.4,
    )
    for seed, name in enumerate(NAMES):
        model, head = Decoder(config), scalar_head(config.d_model)
        model.init_weights(torch.Generator().manual_seed(seed))
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(9))
        is_reward_model = name == "reward_model"
        checkpoint.save(model, root / "models" / name, scalar_head=head if is_reward_model else None)
    # PPO that has learnt nothing: the same weights as SFT.
    shutil.copytree(root / "models" / "sft", root / "models" / "ppo", dirs_exist_ok=True)
    path = root / "models" / "reward_model" / "config.json"
    write_json(path, {**read_json(path), "reward_shift": 0.25})


def write_data(root: Path) -> None:
    tokenizer = bytelevel.train(["Return 1 + 1"], vocab_size=VOCAB_SIZE)
    bytelevel.save(tokenizer, root / "tokenizer")
    rng = random.Random(0)
    rows = [(f"What is {i} + 3?", "addition", str(i + 3)) for i in range(8)]
    rows += [(f"Which is larger, {i} or 4?", "comparison", str(max(i, 4))) for i in range(4)]
    rows += [(f"What does f{i} do?", "docs", f"Return {i}.") for i in range(4)]
    rows.append(("What is " + "1 + " * 20 + "1?", "addition", "21"))
    table: dict[str, list[Any]] = {name: [] for name in records.DEMONSTRATION_COLUMNS}
    for prompt, task, target in rows:
        row = dict.fromkeys(records.DEMONSTRATION_COLUMNS, "") | {
            "record_id": identity(prompt), "split": "test", "task": task,
            "prompt": prompt, "answer": target, "target": target,
        }  # fmt: skip
        for name, value in row.items():
            table[name].append(value)
    table["split"][0] = "train"
    records.write(root / "data" / "demonstrations.parquet", table)
    texts = ["".join(rng.choices("abcde \n", k=rng.randint(20, 90))) for _ in range(6)]
    encoded = [[*chat.encode_text(tokenizer, text), chat.END_OF_TEXT] for text in texts]
    lengths = [len(ids) for ids in encoded]
    index = {
        "record_id": [identity(text) for text in texts],
        "offset": [sum(lengths[:i]) for i in range(len(lengths))],
        "length": lengths,
        "n_bytes": [len(text.encode()) for text in texts],
    }
    (root / "tokens").mkdir()
    np.save(root / "tokens" / "text.test.npy", np.concatenate(encoded).astype(np.uint16))
    records.write(root / "tokens" / "text.test.index.parquet", index)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    write_data(root)
    write_models(root)
    evaluate.run(make_context(root, SETTINGS))
    return root


def outputs(root: Path) -> list[bytes]:
    names = ("metrics/evaluate.json", "evaluation/answers.parquet", "evaluation/samples.json")
    return [(root / name).read_bytes() for name in names]


def test_six_models_are_measured(root: Path) -> None:
    metrics = read_json(root / "metrics" / "evaluate.json")
    assert set(metrics) == {"base", "sft", "sft_continued", "ppo", "dpo", "best_of_n"}
    sft = metrics["sft"]
    assert (sft["win_rate_low"], sft["win_rate_vs_sft"], sft["win_rate_high"], sft["kl_to_sft"]) == (0.5, 0.5, 0.5, 0.0)
    for figures in metrics.values():
        assert figures["win_rate_low"] <= figures["win_rate_vs_sft"] <= figures["win_rate_high"]
        assert (figures["n_maths"], figures["n_docs"], figures["n_too_long"]) == (10, 3, 1)
        assert 0 <= figures["mean_length"] <= 8
        assert set(figures["by_task"]) == {"addition", "comparison", "docs"}
    assert metrics["dpo"]["kl_to_sft"] > 0
    assert metrics["dpo"]["n_kl"] == 4  # the first of each shard of four
    assert metrics["best_of_n"]["kl_to_sft"] == pytest.approx(np.log(3) - 2 / 3)
    assert metrics["best_of_n"]["bits_per_byte"] == sft["bits_per_byte"]


def test_a_model_with_the_weights_of_sft_measures_as_sft(root: Path) -> None:
    metrics = read_json(root / "metrics" / "evaluate.json")
    assert metrics["ppo"]["kl_to_sft"] == 0.0
    different = {"n_kl"}
    assert {k: v for k, v in metrics["ppo"].items() if k not in different} == {
        k: v for k, v in metrics["sft"].items() if k not in different
    }


def test_bits_per_byte_is_that_of_the_training_side(root: Path) -> None:
    index = records.read(root / "tokens" / "text.test.index.parquet")
    tokens = np.load(root / "tokens" / "text.test.npy", allow_pickle=False).astype(np.int64)
    order = sorted(range(6), key=lambda i: index["record_id"][i])
    context = make_context(root, SETTINGS)
    pieces, n_bytes = [], 0
    for chunk in evaluate._text_chunks(context):
        pieces.append(np.concatenate([tokens[offset : offset + length] for offset, length in chunk.documents]))
        n_bytes += chunk.n_bytes
    documents = [document for chunk in evaluate._text_chunks(context) for document in chunk.documents]
    assert documents == [(index["offset"][i], index["length"][i]) for i in order][: len(documents)]
    model = checkpoint.load(root / "models" / "dpo")
    with torch.no_grad():
        bits = sum(
            bits_per_byte(model, piece, 1, seq_len=16, batch_size=2, separator=chat.END_OF_TEXT) for piece in pieces
        )
    found = read_json(root / "metrics" / "evaluate.json")["dpo"]["bits_per_byte"]
    assert found == pytest.approx(bits / n_bytes, rel=1e-5)


def test_every_answer_is_kept(root: Path) -> None:
    table = records.read(root / "evaluation" / "answers.parquet")
    assert len(table["model"]) == 6 * 13
    metrics = read_json(root / "metrics" / "evaluate.json")
    for model, figures in metrics.items():
        rows = [i for i, name in enumerate(table["model"]) if name == model]
        assert np.mean([table["n_tokens"][i] for i in rows]) == pytest.approx(figures["mean_length"])
        assert np.mean([table["reward"][i] for i in rows]) == pytest.approx(figures["reward"])
    shown = read_json(root / "evaluation" / "samples.json")
    assert len(shown) == 8
    assert all(set(sample["answers"]) == set(metrics) for sample in shown)


def test_best_of_n_has_the_highest_reward_of_its_samples(root: Path) -> None:
    items: list[Mapping[str, Any]] = []

    def listen(name: str, function: str, work: Sequence[Mapping[str, Any]]) -> list[Any]:
        items.extend(work)
        return serial_fan_out(name, function, work)

    evaluate.run(make_context(root, SETTINGS, fan_out=listen))
    item = next(item for item in items if item["job"] == "best_of_n")
    chosen = shards.best_of_n(item)
    alone = [shards.best_of_n({**item, "n": 1, "prompts": [p for p in item["prompts"] for _ in range(3)]})]
    # The same rows of the same batch, each taken for itself: three samples per prompt.
    rewards = [row["reward"] for row in alone[0]]
    assert [row["reward"] for row in chosen] == [max(rewards[3 * i : 3 * i + 3]) for i in range(len(chosen))]


def test_results_depend_on_the_item_alone(root: Path, tmp_path: Path) -> None:
    before = outputs(root)

    def backwards(name: str, function: str, items: Sequence[Mapping[str, Any]]) -> list[Any]:
        shards._loaded.cache_clear()
        return serial_fan_out(name, function, items[::-1])[::-1]

    evaluate.run(make_context(root, SETTINGS, fan_out=backwards))
    assert outputs(root) == before


def test_items_and_results_are_json(root: Path) -> None:
    def strict(name: str, function: str, items: Sequence[Mapping[str, Any]]) -> list[Any]:
        assert json.loads(json.dumps(items, allow_nan=False)) == list(items)
        return serial_fan_out(name, function, items)

    evaluate.run(make_context(root, SETTINGS, fan_out=strict))


def test_no_prompt_that_fits_is_a_clear_error(root: Path) -> None:
    with pytest.raises(UserError, match=r"preferences\.prompt_tokens=16") as raised:
        evaluate.run(make_context(root, {**SETTINGS, "preferences.prompt_tokens": 16}))
    assert raised.value.exit_code == 1
