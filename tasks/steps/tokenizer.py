"""Stage `tokenizer`: BPE from training text, tokenised splits, and what compression alone achieves.

A tokenizer in `sources/tokenizer` is taken as it is instead: `axon forget --keep-tokenizer` puts it there.
"""

from __future__ import annotations

from pathlib import Path

from tasks.data import records
from tasks.data.records import TEST, TRAIN
from tasks.errors import UserError
from tasks.evaluation import compression
from tasks.files import write_json
from tasks.steps.context import StepContext
from tasks.tokenizers import chat, folder, kinds, shards, splits

N_PHASES = 3
KEPT = Path("sources") / "tokenizer"


def _baselines(root: Path, vocab_size: int) -> dict[str, float]:
    text = records.read(root / "data" / "text.parquet", ["split", "text"])
    of_split = {
        name: [content for split, content in zip(text["split"], text["text"], strict=True) if split == name]
        for name in (TRAIN, TEST)
    }
    return compression.baselines(
        train_tokens=shards.load_tokens(root / "tokens" / f"text.{TRAIN}.npy"),
        test_tokens=shards.load_tokens(root / "tokens" / f"text.{TEST}.npy"),
        train_bytes="\n".join(of_split[TRAIN]).encode(),
        test_texts=of_split[TEST],
        vocab_size=vocab_size,
        separator=chat.END_OF_TEXT,
    )


def run(context: StepContext) -> None:
    """Write tokenizer/, tokens/ and metrics/tokenizer.json."""
    root, kind, vocab_size = context.root, context.params.tokenizer.kind, context.params.tokenizer.vocab_size
    if vocab_size > shards.MAX_VOCAB_SIZE:
        raise UserError(f"tokenizer.vocab_size={vocab_size} must be at most {shards.MAX_VOCAB_SIZE}: ids are 16 bits")
    context.report(0, N_PHASES, {})
    is_kept = (root / KEPT / folder.FILES[0]).is_file()
    if is_kept:
        tokenizer = folder.keep(root / KEPT, root / "tokenizer", vocab_size=vocab_size)
    else:
        tokenizer = kinds.TRAIN[kind](splits.TrainingTexts(root=root), vocab_size=vocab_size)
        folder.save(tokenizer, root / "tokenizer")
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
            "baselines": _baselines(root, vocab_size),
        }
        | ({"kept": True} if is_kept else {}),
    )
    context.report(N_PHASES, N_PHASES, {})
