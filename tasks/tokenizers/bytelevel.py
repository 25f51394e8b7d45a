"""Byte-level BPE with single digits: any text is a sequence of known tokens, and comes back unchanged.

Digits stand alone, so that a number is read place by place (Singh and Strouse 2024, "Tokenization counts").
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tasks.tokenizers.chat import SPECIAL_TOKENS
from tasks.tokenizers.folder import FILES, keep, load, of_size, save

# Directories of tokenizers are read and written alike for all kinds; most of the callers know this kind alone.
__all__ = ["CHARACTERS", "FILES", "around", "keep", "load", "save", "splitter", "train"]


def _characters() -> tuple[str, ...]:
    """The character that stands for each byte in tokenizer.json: itself where it can be seen, else one from U+0100
    on (Radford et al. 2019, section 2.2)."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in seen else chr(next(others)) for byte in range(256))


CHARACTERS = _characters()


def splitter() -> pre_tokenizers.PreTokenizer:
    """Cuts text into words, which no merge crosses, and writes their bytes as `CHARACTERS`."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def around(model: models.BPE) -> Tokenizer:
    """A tokenizer of this kind with these merges."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A tokenizer whose ids are the special tokens, the 256 bytes, then merges by frequency.

    Raises UserError when the texts are too few for so many merges.
    """
    tokenizer = around(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return of_size(tokenizer, vocab_size)
