"""Stage `tokenizer`: BPE from training text, tokenised splits, and what compression alone achieves.

A tokenizer in `sources/tokenizer` is taken as it is instead: `axon forget --keep-tokenizer` puts it there. With
`pretrain.init_from` it is the one of the checkpoint that pretraining starts from.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from tasks.data import records
from tasks.data.records import TEST, TRAIN
from tasks.errors import UserError
from tasks.evaluation import compression
from tasks.files import write_json
from tasks.steps.context import StepContext
from tasks.tokenizers import adopted, chat, folder, kinds, shards, splits

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
            "baselines": _baselines(root, 1 + max(tokenizer.get_vocab().values())),
        }
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
