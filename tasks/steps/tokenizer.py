"""Stage `tokenizer`: byte-level BPE from training text, tokenised splits, and what compression alone achieves.

A tokenizer in `sources/tokenizer` is taken as it is instead: `axon forget --keep-tokenizer` puts it there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tasks.data import records
from tasks.data.records import DEMONSTRATION_SPLITS, TEST, TEXT_SPLITS, TRAIN
from tasks.errors import UserError
from tasks.evaluation import compression
from tasks.files import new_directory, write_json
from tasks.steps.context import StepContext
from tasks.tokenizers import bytelevel, chat, shards

N_PHASES = 3
KEPT = Path("sources") / "tokenizer"


def _training_texts(text: dict[str, list[Any]], demonstrations: dict[str, list[Any]]) -> Iterator[str]:
    """Texts and demonstrations of the split train alone: what is held out must not shape the vocabulary."""
    for split, content in zip(text["split"], text["text"], strict=True):
        if split == TRAIN:
            yield content
    rows = zip(demonstrations["split"], demonstrations["prompt"], demonstrations["answer"], strict=True)
    for split, prompt, answer in rows:
        if split == TRAIN:
            yield from (message["content"] for message in chat.to_messages(prompt))
            yield answer


@dataclass(frozen=True, kw_only=True)
class _Split:
    """One split of one table (text or demonstrations): its rows there, and the sizes of all rows of the table."""

    table: str
    name: str
    rows: list[int]
    n_bytes: list[int]
    items: list[dict[str, Any]]


def _plan(root: Path, table: str, columns: dict[str, list[Any]], names: Sequence[str]) -> list[_Split]:
    if table == "text":
        n_bytes = [len(text.encode()) for text in columns["text"]]
    else:
        n_bytes = [len((p + a).encode()) for p, a in zip(columns["prompt"], columns["answer"], strict=True)]
    splits = []
    for name in names:
        rows = [row for row, split in enumerate(columns["split"]) if split == name]
        items = [{"root": str(root), "table": table, "rows": part} for part in shards.plan(n_bytes, rows)]
        splits.append(_Split(table=table, name=name, rows=rows, n_bytes=n_bytes, items=items))
    return splits


def _write_split(folder: Path, split: _Split, columns: dict[str, list[Any]], results: list[Any]) -> dict[str, int]:
    """Write the tokens of a split with their index; returns its documents, tokens and bytes."""
    lengths = [length for result in results for length in result["lengths"]]
    index = {
        "record_id": [columns["record_id"][row] for row in split.rows],
        "offset": list(shards.offsets(lengths)),
        "length": lengths,
    }
    if split.table == "text":
        index["n_bytes"] = [split.n_bytes[row] for row in split.rows]
    else:
        index["prompt_length"] = [n for result in results for n in result["prompt_lengths"]]
        index["task"] = [columns["task"][row] for row in split.rows]
    name = f"{split.table}.{split.name}"
    shards.write_array(folder / f"{name}.npy", (shards.unpack(r["tokens"]) for r in results), sum(lengths))
    records.write(folder / f"{name}.index.parquet", index)
    n_bytes = sum(split.n_bytes[row] for row in split.rows)
    return {"documents": len(split.rows), "tokens": sum(lengths), "bytes": n_bytes}


def _tokenise(
    context: StepContext, text: dict[str, list[Any]], demonstrations: dict[str, list[Any]]
) -> dict[str, dict[str, dict[str, int]]]:
    """Write tokens/; returns the sizes by table and split."""
    tables = {"text": text, "demonstrations": demonstrations}
    splits = _plan(context.root, "text", text, TEXT_SPLITS)
    splits += _plan(context.root, "demonstrations", demonstrations, DEMONSTRATION_SPLITS)
    items = [item for split in splits for item in split.items]
    results = iter(context.fan_out("tokens", "tasks.tokenizers.shards:encode", items))
    sizes: dict[str, dict[str, dict[str, int]]] = {table: {} for table in tables}
    with new_directory(context.root / "tokens") as folder:
        for split in splits:
            of_split = list(islice(results, len(split.items)))
            sizes[split.table][split.name] = _write_split(folder, split, tables[split.table], of_split)
    return sizes


def run(context: StepContext) -> None:
    """Write tokenizer/, tokens/ and metrics/tokenizer.json."""
    root, vocab_size = context.root, context.params.tokenizer.vocab_size
    if vocab_size > shards.MAX_VOCAB_SIZE:
        raise UserError(f"tokenizer.vocab_size={vocab_size} must be at most {shards.MAX_VOCAB_SIZE}: ids are 16 bits")
    context.report(0, N_PHASES, {})
    text = records.read(root / "data" / "text.parquet", ["record_id", "split", "text"])
    demonstrations = records.read(
        root / "data" / "demonstrations.parquet", ["record_id", "split", "task", "prompt", "answer"]
    )
    is_kept = (root / KEPT / bytelevel.FILES[0]).is_file()
    if is_kept:
        tokenizer = bytelevel.keep(root / KEPT, root / "tokenizer", vocab_size=vocab_size)
    else:
        tokenizer = bytelevel.train(_training_texts(text, demonstrations), vocab_size=vocab_size)
        bytelevel.save(tokenizer, root / "tokenizer")
    context.share("tokenizer")
    context.report(1, N_PHASES, {})
    sizes = _tokenise(context, text, demonstrations)
    context.report(2, N_PHASES, {})
    test_texts = [content for split, content in zip(text["split"], text["text"], strict=True) if split == TEST]
    baselines = compression.baselines(
        train_tokens=shards.load_tokens(root / "tokens" / f"text.{TRAIN}.npy"),
        test_tokens=shards.load_tokens(root / "tokens" / f"text.{TEST}.npy"),
        train_bytes="\n".join(c for s, c in zip(text["split"], text["text"], strict=True) if s == TRAIN).encode(),
        test_texts=test_texts,
        vocab_size=vocab_size,
        separator=chat.END_OF_TEXT,
    )
    write_json(
        root / "metrics" / "tokenizer.json",
        {
            "vocab_size": tokenizer.get_vocab_size(),
            "bytes_per_token": {split: size["bytes"] / size["tokens"] for split, size in sizes["text"].items()},
            "sizes": sizes,
            "baselines": baselines,
        }
        | ({"kept": True} if is_kept else {}),
    )
    context.report(N_PHASES, N_PHASES, {})
