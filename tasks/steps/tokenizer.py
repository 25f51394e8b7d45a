"""Stage `tokenizer`: BPE from training text, tokenised splits, and what compression alone achieves.

A tokenizer in `sources/tokenizer` is taken as it is instead: `axon forget --keep-tokenizer` puts it there. With
`pretrain.init_from` it is the one of the checkpoint that pretraining starts from.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tasks.data import records
from tasks.data.records import TEST, TRAIN
from tasks.errors import UserError
from tasks.evaluation import compression
from tasks.files import write_json
from tasks.steps.context import StepContext
from tasks.tokenizers import adopted, chat, folder, kinds, rows, shards, splits

N_PHASES = 3
KEPT = Path("sources") / "tokenizer"
# Of text, that `baselines` are of at most: their memory does not grow with the data.
MEASURED_BYTES = {TRAIN: 32 * 2**20, TEST: 8 * 2**20}


def _baselines(root: Path, vocab_size: int) -> dict[str, Any]:
    """`baselines`, and `baselines_of` where they are of a part of the texts: its documents and bytes by split."""
    texts: dict[str, list[str]] = {}
    tokens: dict[str, np.ndarray] = {}
    parts = {}
    for split, at_most in MEASURED_BYTES.items():
        name = f"text.{split}"
        index = records.read(root / "tokens" / f"{name}.index.parquet", ["offset", "length", "n_bytes"])
        chosen = compression.spread(index["n_bytes"], at_most)
        tokens[split] = shards.load_tokens(root / "tokens" / f"{name}.npy")
        if len(chosen) < len(index["n_bytes"]):
            spans = [slice(index["offset"][i], index["offset"][i] + index["length"][i]) for i in chosen]
            tokens[split] = np.concatenate([tokens[split][span] for span in spans])
            parts[split] = {"documents": len(chosen), "bytes": sum(index["n_bytes"][i] for i in chosen)}
        texts[split] = _texts(root, split, set(chosen))
    found = compression.baselines(
        train_tokens=tokens[TRAIN],
        test_tokens=tokens[TEST],
        train_bytes="\n".join(texts[TRAIN]).encode(),
        test_texts=texts[TEST],
        vocab_size=vocab_size,
        separator=chat.END_OF_TEXT,
    )
    return {"baselines": found} | ({"baselines_of": parts} if parts else {})


def _texts(root: Path, split: str, chosen: Container[int]) -> list[str]:
    """The texts of a split at the places `chosen` among its own, in the order of tokens/."""
    table = rows.columns(root / "data" / "text.parquet", ["split", "text"])
    of_split = (text for found, text in table if found == split)
    return [text for place, text in enumerate(of_split) if place in chosen]


def run(context: StepContext) -> None:
    """Write tokenizer/, tokens/ and metrics/tokenizer.json."""
    root, vocab_size = context.root, context.params.tokenizer.vocab_size
    if vocab_size > shards.MAX_VOCAB_SIZE:
        raise UserError(f"tokenizer.vocab_size={vocab_size} must be at most {shards.MAX_VOCAB_SIZE}: ids are 16 bits")
    context.report(0, N_PHASES, {})
    tokenizer, learns = _tokenizer(context)
    context.share("tokenizer")
    context.report(1, N_PHASES, {})
    sizes = splits.tokenise(root, context.fan_out)
    context.report(2, N_PHASES, {})
    write_json(
        root / "metrics" / "tokenizer.json",
        {
            "vocab_size": tokenizer.get_vocab_size(),
            "bytes_per_token": {split: size["bytes"] / size["tokens"] for split, size in sizes["text"].items()},
            "sizes": sizes,
        }
        | _baselines(root, 1 + max(tokenizer.get_vocab().values()))
        | ({} if learns else {"kept": True}),
    )
    context.report(N_PHASES, N_PHASES, {})


def _tokenizer(context: StepContext) -> tuple[Tokenizer, bool]:
    """Write tokenizer/; returns the tokenizer, and whether it was learnt from the texts at hand."""
    root, section, init_from = context.root, context.params.tokenizer, context.params.pretrain.init_from
    is_kept = (root / KEPT / folder.FILES[0]).is_file()
    if init_from is not None:
        tokenizer = adopted.adopt(adopted.directory_of(root, init_from)).tokenizer
        if is_kept and folder.load(root / KEPT).to_str() != tokenizer.to_str():
            raise UserError(
                f"{KEPT / folder.FILES[0]} is another tokenizer than that of pretrain.init_from={init_from}; remove "
                "it, or set pretrain.init_from to null"
            )
    elif is_kept:
        return folder.keep(root / KEPT, root / "tokenizer", vocab_size=section.vocab_size), False
    else:
        tokenizer = kinds.TRAIN[section.kind](splits.TrainingTexts(root=root), vocab_size=section.vocab_size)
    folder.save(tokenizer, root / "tokenizer")
    return tokenizer, init_from is None
