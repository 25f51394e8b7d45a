"""Encode many texts by remembering the tokens of words, several times as fast as `tokenizers`, and to the same ids.

Most of a tokenizer's time goes into cutting text into words by rules over all of Unicode. In ASCII the rules are short
enough for `re`, and a word that was seen before needs a look into a table, no merges. Lines that are not ASCII go to
the library.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator, Sequence

from tokenizers import Encoding, Tokenizer, models

from tasks.tokenizers import bytelevel

N_KEPT, LONGEST_KEPT = 200_000, 64  # words and characters of a word: some 25 MB, 60 if most are that long

# What `bytelevel.splitter` cuts ASCII into: GPT-2's pattern where each digit is cut out first, so that white space
# before a digit stands at an end.
_WORDS = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[a-zA-Z]+|[0-9]| ?[^\sa-zA-Z0-9]+|\s+(?![^\s0-9])|\s+", re.ASCII
).findall
# Between a visible ASCII character and a line end a word ends always, whatever follows.
_LINES = re.compile(r"(?<=[!-~])(?=\n)").split


class Encoder:
    """Plain texts to ids, in which no special token is recognised: those of `chat.encode_text`, in one thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._words = _Words(tokenizer) if _is_known(tokenizer) else None

    def encode(self, texts: Sequence[str]) -> Iterator[array[int]]:
        """The ids of each text, as uint16."""
        if self._words is None:
            yield from (array("H", encoding.ids) for encoding in _encode_all(self._tokenizer, texts))
            return
        for text in texts:
            yield array("H", b"".join(self._parts(text, self._words)))

    def _parts(self, text: str, words: _Words) -> Iterator[bytes]:
        for line in (text,) if text.isascii() else _LINES(text):
            if line.isascii():
                yield from map(words.__getitem__, _WORDS(line))
            else:
                yield array("H", self._tokenizer.encode(line, add_special_tokens=False).ids).tobytes()


def _encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> Sequence[Encoding]:
    """Without the places of tokens in the text, and in one thread."""
    parallel = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        return list(tokenizer.encode_batch_fast(list(texts), add_special_tokens=False))
    finally:
        if parallel is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = parallel


class _Words(dict[str, bytes]):
    """The ids of words, computed when they are first asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._model = tokenizer.model
        self._characters = dict(enumerate(bytelevel.CHARACTERS))

    def __missing__(self, word: str) -> bytes:
        ids = array("H", [token.id for token in self._model.tokenize(word.translate(self._characters))]).tobytes()
        if len(self) < N_KEPT and len(word) <= LONGEST_KEPT:
            self[word] = ids
        return ids


def _is_known(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer cuts text as `bytelevel.splitter` does, and nothing but its merges decides after that."""
    return (
        tokenizer.normalizer is None
        and tokenizer.truncation is None
        and tokenizer.padding is None
        and tokenizer.pre_tokenizer is not None
        and tokenizer.pre_tokenizer.__getstate__() == bytelevel.splitter().__getstate__()
        and isinstance(tokenizer.model, models.BPE)
        and tokenizer.model.dropout is None
        and all(token.special for token in tokenizer.get_added_tokens_decoder().values())
    )
