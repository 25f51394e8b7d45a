"""Near-duplicates by MinHash over word n-grams: signatures, candidate pairs by LSH, clusters by union-find.

Broder 1997 (MinHash), Leskovec et al., *Mining of Massive Datasets*, chapter 3 (banding); `datasketch` computes both.
The shingle hashes are made with numpy, since hashing shingle by shingle in Python takes ten times as long.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasketch import MinHash, MinHashLSH

if TYPE_CHECKING:
    from tasks.steps.context import FanOut

SHINGLE_WORDS = 5
N_CHUNKS = 12
_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication is a bijection modulo 2**64
_SEED = 1


def shingle_hashes(text: str) -> np.ndarray:
    """Distinct 32-bit hashes of the runs of 5 words (of the whole, if there are fewer), sorted; uint64."""
    words = _WORD.findall(text.lower()) or [text]
    crc = np.array([zlib.crc32(word.encode()) for word in words], dtype=np.uint64)
    n = max(1, len(crc) - SHINGLE_WORDS + 1)
    mixed = np.zeros(n, dtype=np.uint64)
    for offset in range(min(SHINGLE_WORDS, len(crc))):
        mixed = (mixed ^ crc[offset : offset + n]) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed >> np.uint64(32))


def template(permutations: int) -> MinHash:
    """An empty MinHash; copying it saves drawing the permutations again."""
    return MinHash(permutations, seed=_SEED, hashfunc=int)


def signature(text: str, permutations: int, empty: MinHash | None = None) -> np.ndarray:
    """MinHash values (permutations,) uint64; `empty` is a `template` of so many permutations."""
    minhash = template(permutations) if empty is None else empty.copy()
    minhash.update_batch(shingle_hashes(text))
    return np.asarray(minhash.hashvalues, dtype=np.uint64)


def sign(item: dict[str, Any]) -> list[str]:
    """For fan-out: `{"texts": […], "permutations": n}` to one base64 text per signature (uint32 values)."""
    empty = template(item["permutations"])
    signatures = (signature(text, item["permutations"], empty) for text in item["texts"])
    return [base64.b64encode(values.astype("<u4").tobytes()).decode() for values in signatures]


def decode(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<u4").astype(np.uint64)


def sign_all(name: str, texts: Sequence[str], permutations: int, fan_out: FanOut) -> list[np.ndarray]:
    """The signatures of `texts`, made in other processes."""
    return [decode(made) for made in deal(name, f"{__name__}:sign", texts, {"permutations": permutations}, fan_out)]


def deal(name: str, function: str, texts: Sequence[str], item: Mapping[str, Any], fan_out: FanOut) -> list[Any]:
    """One result per text: texts are dealt out in turn to `N_CHUNKS` items `{"texts": […], **item}` of a fan-out."""
    parts = [texts[i::N_CHUNKS] for i in range(N_CHUNKS) if texts[i::N_CHUNKS]]
    results = fan_out(name, function, [{"texts": list(part), **item} for part in parts])
    return [results[i % N_CHUNKS][i // N_CHUNKS] for i in range(len(texts))]


def clusters(signatures: Sequence[np.ndarray], threshold: float) -> list[int]:
    """For each item the index of the first item of its cluster (its own index if it stands first or alone).

    Two items are joined if LSH proposes them and the share of equal values, which estimates the Jaccard similarity,
    is at least `threshold`. Clusters are the connected components, so the order of proposals cannot matter.
    """
    parent = list(range(len(signatures)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    if not signatures:
        return []
    permutations = len(signatures[0])
    lsh = MinHashLSH(threshold=threshold, num_perm=permutations)
    empty = template(permutations)
    for i, values in enumerate(signatures):
        minhash = empty.copy()
        minhash.hashvalues = values
        for j in lsh.query(minhash):
            if np.mean(values == signatures[j]) >= threshold:
                first, second = sorted((root(i), root(j)))
                parent[second] = first
        lsh.insert(i, minhash, check_duplication=False)
    return [root(i) for i in range(len(signatures))]
