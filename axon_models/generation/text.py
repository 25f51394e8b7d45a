"""Text from tokens as they come: whole characters only, and nothing that could still be the beginning of a stop string.

Tokens are looked up as bytes, and a decoder of UTF-8 keeps the bytes of an unfinished character until the rest comes.
All text that is written while a model speaks is made here, and so is the text of a whole answer.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from axon_models.generation.vocabulary import Vocabulary


class TextStream:
    """The text of one sequence of tokens, given out piece by piece.

    `add` returns what has become certain, `finish` the rest. The pieces together are the decoded tokens, up to and
    without the stop string that is complete first (of several that end at the same character, the longest). After it
    nothing more is given out, and `is_stopped` is true.

    Bytes that are no UTF-8 become U+FFFD. `tokenizers` does the same for byte-level tokenizers. With byte fallback it
    writes U+FFFD for every byte of a run that is damaged anywhere, also for whole characters in it: that cannot be told
    before the run is over, so here only what is damaged is replaced.

    special: whether special tokens are written too. Raises ValueError for an empty stop string.
    """

    def __init__(self, vocabulary: Vocabulary, *, stop: Iterable[str] = (), special: bool = False) -> None:
        self._vocabulary = vocabulary
        self._skipped = frozenset[int]() if special else vocabulary.special
        self._stop = tuple(stop)
        if "" in self._stop:
            raise ValueError("a stop string is empty: text would end before it begins; leave it out")
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._dropped = vocabulary.first_dropped
        self._held = ""  # decoded, and perhaps the beginning of a stop string
        self.is_stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now that `token` has come; often none."""
        if self.is_stopped or token in self._skipped:
            return ""
        piece = self._vocabulary[token]
        if piece and self._dropped:
            piece, self._dropped = piece.removeprefix(self._dropped), b""
        return self._certain(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        if self.is_stopped:
            return ""
        text = self._certain(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _certain(self, more: str) -> str:
        known = len(self._held)
        text = self._held + more
        for end in range(known + 1, len(text) + 1):
            ended = [len(stop) for stop in self._stop if text.endswith(stop, 0, end)]
            if ended:
                self.is_stopped, self._held = True, ""
                return text[: end - max(ended)]
        keep = max((_begun(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _begun(text: str, stop: str) -> int:
    """How many characters of `stop` the end of `text` may be the beginning of."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def decode(vocabulary: Vocabulary, tokens: Iterable[int], *, special: bool = False) -> str:
    """The text of tokens all at once, as a stream of them gives it piece by piece."""
    stream = TextStream(vocabulary, special=special)
    return "".join([*(stream.add(token) for token in tokens), stream.finish()])
