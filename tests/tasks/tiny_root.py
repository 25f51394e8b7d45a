"""A root as the data and tokenizer stages leave it, small enough that every training stage takes a second."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tasks.data import records
from tasks.files import write_json
from tasks.tokenizers import chat

SPECIAL = ["<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]

OVERRIDES: dict[str, Any] = {
    "threads": 1,
    "precision": "float32",
    "tokenizer.vocab_size": 262,
    "model.d_model": 32,
    "model.n_layers": 2,
    "model.heads": 4,
    "model.kv_heads": 2,
    "model.d_feed_forward": 48,
    "model.max_positions": 64,
    "pretrain.n_steps": 6,
    "pretrain.batch_size": 4,
    "pretrain.seq_len": 32,
    "pretrain.warmup_steps": 2,
    "pretrain.evaluate_every": 3,
    "pretrain.n_validation_batches": 2,
    "sft.n_steps": 6,
    "sft.batch_size": 4,
    "sft.seq_len": 48,
    "sft.warmup_steps": 2,
    "sft.evaluate_every": 3,
    "sft.n_validation_batches": 2,
    "preferences.n_prompts": 12,
    "preferences.n_validation_prompts": 6,
    "preferences.prompt_tokens": 16,
    "preferences.max_new_tokens": 8,
    "preferences.batch_size": 16,
    "reward_model.batch_size": 4,
    "reward_model.n_epochs": 1,
    "reward_model.warmup_steps": 1,
    "ppo.n_iterations": 2,
    "ppo.prompts_per_iteration": 4,
    "ppo.minibatch_size": 2,
    "ppo.epochs": 2,
    "dpo.batch_size": 4,
    "dpo.warmup_steps": 1,
}


def byte_tokenizer() -> Tokenizer:
    """Byte-level, no merges: 6 special tokens and 256 bytes."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL)}
    for token in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[token] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def make_root(root: Path) -> Path:
    """What `data` and `tokenizer` leave, as far as later stages read it: sentences and two-digit sums."""
    tokenizer = byte_tokenizer()
    (root / "tokenizer").mkdir(parents=True)
    tokenizer.save(str(root / "tokenizer" / "tokenizer.json"))
    (root / "tokens").mkdir()
    for split, n in (("train", 40), ("validation", 6), ("test", 6)):
        texts = [f"{split} text {i} says that {i} and {i} make {2 * i}." for i in range(n)]
        encoded = [[*tokenizer.encode(text).ids, chat.END_OF_TEXT] for text in texts]
        columns = {"n_bytes": [len(text.encode()) for text in texts]}
        _write(root, f"text.{split}", texts, encoded, columns)
    rows: dict[str, list[Any]] = {name: [] for name in ("record_id", "source", "split", "task", "prompt", "target")}
    for number, (split, n) in enumerate((("train", 60), ("preference", 40), ("validation", 12), ("test", 12))):
        pairs = [(number * 20 + i % 9, i) for i in range(n)]
        prompts, targets = [f"{a}+{b}=" for a, b in pairs], [str(a + b) for a, b in pairs]
        examples = [chat.encode_example(tokenizer, p, t) for p, t in zip(prompts, targets, strict=True)]
        columns = {"prompt_length": [length for _, length in examples], "task": ["addition"] * n}
        _write(root, f"demonstrations.{split}", prompts, [tokens for tokens, _ in examples], columns)
        rows["record_id"] += [_id(prompt) for prompt in prompts]
        rows["source"] += ["maths"] * n
        rows["split"] += [split] * n
        rows["task"] += ["addition"] * n
        rows["prompt"] += prompts
        rows["target"] += targets
    records.write(root / "data" / "demonstrations.parquet", rows)
    write_json(root / "metrics" / "tokenizer.json", {"vocab_size": tokenizer.get_vocab_size()})
    return root


def _id(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def _write(
    root: Path, name: str, texts: Sequence[str], encoded: Sequence[list[int]], columns: Mapping[str, list[Any]]
) -> None:
    lengths = [len(tokens) for tokens in encoded]
    offsets = [sum(lengths[:i]) for i in range(len(lengths))]
    np.save(root / "tokens" / f"{name}.npy", np.array([t for tokens in encoded for t in tokens], dtype=np.uint16))
    index = {"record_id": [_id(text) for text in texts], "offset": offsets, "length": lengths, **columns}
    records.write(root / "tokens" / f"{name}.index.parquet", index)


def digests(root: Path, *folders: str) -> dict[str, str]:
    """SHA-256 of every file below `folders`."""
    files = [f for folder in folders for f in sorted((root / folder).rglob("*")) if f.is_file()]
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
