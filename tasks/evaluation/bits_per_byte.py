"""Bits per byte: what a model needs to write down held-out text, whatever its tokenizer.

    bits_per_byte = Σ_tokens −log2 p(token | tokens before it in its window) / Σ_documents bytes(document)

Every token is paid for: the first of a document is predicted from the separator before it, and the separator
that ends a document costs bits but counts no bytes. So the figure is that of a (strong) compressor, and
stands beside zlib or xz honestly. Windows are as long as in pretraining, and a window begins without memory
of the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Chunk(NamedTuple):
    """Whole documents that are scored together: their (offset, length) in the token array, and their bytes."""

    documents: list[tuple[int, int]]
    n_bytes: int


class Document(NamedTuple):
    record_id: bytes
    offset: int
    length: int
    n_bytes: int


def chunks(documents: Sequence[Document], *, n_chunks: int, tokens_per_chunk: int) -> list[Chunk]:
    """Deal documents in the order of their record_id into chunks of at least `tokens_per_chunk` tokens.

    Stops after `n_chunks`; with less text, the last chunk holds what is left.
    """
    dealt: list[Chunk] = []
    held: list[tuple[int, int]] = []
    n_bytes = 0
    for document in sorted(documents):
        if len(dealt) == n_chunks:
            return dealt
        held.append((document.offset, document.length))
        n_bytes += document.n_bytes
        if sum(length for _, length in held) >= tokens_per_chunk:
            dealt.append(Chunk(held, n_bytes))
            held, n_bytes = [], 0
    if held and len(dealt) < n_chunks:
        dealt.append(Chunk(held, n_bytes))
    return dealt


def bits_per_byte(nats: Sequence[float], n_bytes: Sequence[int]) -> float:
    """The figure over all chunks. Raises ValueError without a byte of text."""
    if not sum(n_bytes):
        raise ValueError("bits per byte need at least one byte of text")
    return math.fsum(nats) / math.log(2.0) / sum(n_bytes)
