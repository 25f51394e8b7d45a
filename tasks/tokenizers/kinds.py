"""The kinds of tokenizers by their name in `tokenizer.kind`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from tokenizers import Tokenizer

from tasks.tokenizers import byte_fallback, bytelevel, own


class Train(Protocol):
    """Train on texts; ids 0 to 5 are the special tokens, and any text is made of known tokens and comes back unchanged.

    Raises UserError when the texts are too few for `vocab_size` tokens.
    """

    def __call__(self, texts: Iterable[str], *, vocab_size: int) -> Tokenizer: ...


TRAIN: dict[str, Train] = {"byte_level": bytelevel.train, "byte_fallback": byte_fallback.train, "own": own.train}
