"""Text from tokens as they come: whole characters only, and never a part of a string at which to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]  # the text of some tokens; unfinished characters as U+FFFD at its end

_UNFINISHED = "�"


class TextStream:
    """The text of tokens that are pushed one at a time, up to the first of the strings `stop`.

    All pushed text together is `decode` of all tokens, cut before the first stop string. What may still become
    another character, or the rest of a stop string, is held back until that is decided.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._tokens: list[int] = []
        # Tokens are decoded from `_start` on, a little before the first that is not out, because in some tokenizers
        # a token's text depends on the one before it.
        self._start = self._read = 0
        self._written = ""  # of the text from `_start` on
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token; the text that is now certain. After a stop string nothing more comes."""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._start :])
        if text.endswith(_UNFINISHED):
            return ""
        certain = self._let_out(text)
        self._start, self._read = self._read, len(self._tokens)
        self._written = self._decode(self._tokens[self._start :])
        return certain

    def finish(self) -> str:
        """What was held back, when no further token comes."""
        text = self._let_out(self._decode(self._tokens[self._start :])) if self._tokens else ""
        held, self._held = self._held, ""
        return text + ("" if self.stopped else held)

    def _let_out(self, text: str) -> str:
        """Take the text from `_start` on; what of it is new and certain, up to a stop string."""
        new, self._written = text[len(self._written) :], text
        if self.stopped:
            return ""
        pending = self._held + new
        places = [place for place in (pending.find(string) for string in self._stop) if place >= 0]
        if places:
            self.stopped, self._held = True, ""
            return pending[: min(places)]
        n_held = max((_overlap(pending, string) for string in self._stop), default=0)
        self._held = pending[len(pending) - n_held :]
        return pending[: len(pending) - n_held]


def _overlap(text: str, string: str) -> int:
    """The length of the longest end of `text` with which `string` begins."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)
