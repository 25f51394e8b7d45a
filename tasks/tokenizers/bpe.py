"""Byte-pair encoding in plain Python, to be read: learn merges, encode, decode (Gage 1994; Sennrich et al. 2016).

    aaabdaaabac → ZabdZabac (Z = aa) → ZYdZYac (Y = ab) → XdXac (X = ZY)

Learning counts every pair of neighbours once. From then on a merge changes only the counts of the pairs next to it, so
a merge costs as much as it has places, and not another pass over the text. Text comes as words with counts: no merge
crosses the border of two words, and a word that is there a thousand times is merged once.

Merges, ties included, and ids are those of the library `tokenizers`.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

Pair = tuple[int, int]  # ids of two neighbours
BYTES = tuple(bytes([byte]) for byte in range(256))


@dataclass(frozen=True, kw_only=True)
class Bpe:
    """`tokens[i]` are the bytes of id i, the 256 single bytes first; `merges` maps a pair to its (rank, id)."""

    tokens: tuple[bytes, ...]
    merges: Mapping[Pair, tuple[int, int]]

    def encode(self, words: Iterable[bytes]) -> list[int]:
        """The ids of a text that is cut into words."""
        known: dict[bytes, list[int]] = {}
        ids: list[int] = []
        for word in words:
            if word not in known:
                known[word] = self.encode_word(word)
            ids += known[word]
        return ids

    def encode_word(self, word: bytes) -> list[int]:
        """The ids of one word: of all pairs that can be merged always the one of lowest rank, the leftmost first."""
        ids = [self._first[byte] for byte in word]
        after = list(range(1, len(ids) + 1))  # where the right neighbour of each place stands
        before = list(range(-1, len(ids) - 1))
        waiting = [(*found, at) for at in range(len(ids) - 1) if (found := self.merges.get((ids[at], ids[at + 1])))]
        heapq.heapify(waiting)  # (rank, id, place), by rank and then by place: a rank has one id
        gone = -1
        while waiting:
            rank, new, at = heapq.heappop(waiting)
            right = after[at]
            if ids[at] == gone or right >= len(ids) or self.merges.get((ids[at], ids[right])) != (rank, new):
                continue  # one of the two has been merged with another meanwhile
            ids[at], ids[right] = new, gone
            after[at] = after[right]
            if after[at] < len(ids):
                before[after[at]] = at
            for left, other in ((before[at], at), (at, after[at])):
                if left >= 0 and other < len(ids) and (found := self.merges.get((ids[left], ids[other]))):
                    heapq.heappush(waiting, (*found, left))
        return [token for token in ids if token != gone]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8, as of half a character, become U+FFFD."""
        return b"".join(self.tokens[token] for token in ids).decode("utf-8", errors="replace")

    @cached_property
    def _first(self) -> dict[int, int]:
        return {token[0]: i for i, token in enumerate(self.tokens) if len(token) == 1}  # the id of each byte


def learn(words: Mapping[bytes, int], *, n_tokens: int, alphabet: Sequence[bytes] = BYTES) -> Bpe:
    """Merge the most frequent pair until there are `n_tokens` tokens, or no pair is left.

    words: how often each word is there. alphabet: the 256 bytes in the order of their ids, which decides ties: of two
    pairs that are equally frequent the one with the lower ids comes first.
    """
    return _Learning(words, alphabet).run(n_tokens)


class _Learning:
    """The words as they are merged so far, how often each pair is in them, and where to look for it."""

    def __init__(self, words: Mapping[bytes, int], alphabet: Sequence[bytes]) -> None:
        self._tokens = list(alphabet)
        ids = {token[0]: i for i, token in enumerate(alphabet)}
        self._words = [[ids[byte] for byte in word] for word in words]
        self._n_times = list(words.values())
        self._counts: defaultdict[Pair, int] = defaultdict(int)
        self._places: defaultdict[Pair, set[int]] = defaultdict(set)  # words that have, or have had, the pair
        for number, word in enumerate(self._words):
            for pair in pairwise(word):
                self._counts[pair] += self._n_times[number]
                self._places[pair].add(number)
        self._waiting = [(-count, pair) for pair, count in self._counts.items()]  # the first is the next merge
        heapq.heapify(self._waiting)

    def run(self, n_tokens: int) -> Bpe:
        merges: dict[Pair, tuple[int, int]] = {}
        while len(self._tokens) < n_tokens and self._waiting:
            count, pair = heapq.heappop(self._waiting)
            if -count != self._counts[pair]:  # it has become rarer: it waits for the turn that is right
                heapq.heappush(self._waiting, (-self._counts[pair], pair))
                continue
            if count == 0:
                break
            merges[pair] = (len(merges), len(self._tokens))
            self._merge(pair, len(self._tokens))
            self._tokens.append(self._tokens[pair[0]] + self._tokens[pair[1]])
        return Bpe(tokens=tuple(self._tokens), merges=merges)

    def _merge(self, pair: Pair, new: int) -> None:
        """Replace a pair in its words, and count what the neighbours of these places are now next to.

        Every pair that comes has the new token, so it is no pair that waits already. And every token comes of one
        merge: inside of what has become one token, the same bytes were merged in the same way everywhere.
        """
        fresh: set[Pair] = set()
        for number in self._places.pop(pair):
            n_times = self._n_times[number]
            self._words[number], gone, come = _replaced(self._words[number], pair, new)
            for other in gone:
                self._counts[other] -= n_times
            for other in come:
                self._counts[other] += n_times
                self._places[other].add(number)
            fresh.update(come)
        for other in fresh:
            if self._counts[other] > 0:
                heapq.heappush(self._waiting, (-self._counts[other], other))


def _replaced(word: list[int], pair: Pair, new: int) -> tuple[list[int], list[Pair], list[Pair]]:
    """(the word with `new` for each `pair`, from left to right; the pairs that are gone by it; those that came)."""
    first, second = pair
    merged: list[int] = []
    gone: list[Pair] = []
    come: list[Pair] = []
    i, last = 0, len(word) - 1
    while i <= last:
        if word[i] != first or i == last or word[i + 1] != second:
            merged.append(word[i])
            i += 1
            continue
        if merged:
            gone.append((merged[-1], first))
            come.append((merged[-1], new))
        if i + 1 < last:
            gone.append((second, word[i + 2]))
            come.append((new, word[i + 2]))
        merged.append(new)
        i += 2
    return merged, gone, come
