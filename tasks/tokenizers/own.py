"""Byte-level BPE by the project's own `bpe`: the same tokenizer as `bytelevel` trains, from code that can be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, models

from tasks.tokenizers import bpe, bytelevel
from tasks.tokenizers.chat import SPECIAL_TOKENS
from tasks.tokenizers.folder import of_size

# Ids of bytes follow the characters that stand for them, as in `bytelevel`: it decides between equally frequent pairs.
ALPHABET = tuple(bytes([byte]) for byte in sorted(range(256), key=lambda byte: bytelevel.CHARACTERS[byte]))
_BYTES = {character: byte for byte, character in enumerate(bytelevel.CHARACTERS)}


def words(text: str) -> list[bytes]:
    """The words of a text in their order, as bytes; together they are the text."""
    return [_bytes(word) for word, _ in bytelevel.splitter().pre_tokenize_str(text)]


def _bytes(word: str) -> bytes:
    return bytes([_BYTES[character] for character in word])


def count_words(texts: Iterable[str]) -> dict[bytes, int]:
    """How often each word is in the texts."""
    splitter, counts = bytelevel.splitter(), Counter[str]()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(text))
    return {_bytes(word): n for word, n in counts.items()}


def train(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A tokenizer whose ids are the special tokens, the 256 bytes, then merges by frequency.

    Raises UserError when the texts are too few for so many merges.
    """
    learnt = bpe.learn(count_words(texts), n_tokens=vocab_size - len(SPECIAL_TOKENS), alphabet=ALPHABET)
    return of_size(to_tokenizer(learnt), vocab_size)


def to_tokenizer(learnt: bpe.Bpe) -> Tokenizer:
    """The same merges for the library `tokenizers`; ids stand behind those of the special tokens."""
    tokens = ["".join(bytelevel.CHARACTERS[byte] for byte in token) for token in learnt.tokens]
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *tokens))}
    by_rank = sorted(learnt.merges, key=lambda pair: learnt.merges[pair])
    merges = [(tokens[left], tokens[right]) for left, right in by_rank]
    tokenizer = bytelevel.around(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
