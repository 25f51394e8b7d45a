"""Ids to text as they come: whole characters only, and nothing that could still be the beginning of a stop string.

The text of a token depends on what stands beside it only as far as characters are cut into bytes. So tokens are looked
up as bytes, and a decoder of UTF-8 keeps the bytes of an unfinished character until the rest is there.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from tasks.errors import UserError
from tasks.tokenizers.bytelevel import CHARACTERS


class Vocabulary:
    """The bytes of each id of a tokenizer: byte-level, or BPE with byte fallback, ours as well as released ones.

    Raises UserError for a tokenizer with another decoder.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tree = json.loads(tokenizer.to_str())
        decoder = tree["decoder"] or {"type": None}
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            to_bytes = _of_characters
        elif "ByteFallback" in kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
            replaced = [(step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"]
            to_bytes = partial(_of_piece, replaced)
        else:
            raise UserError(
                f"a tokenizer with the decoder {', '.join(map(str, kinds))} cannot be read token by token; allowed: "
                "ByteLevel (as GPT-2's), or Replace, ByteFallback, Fuse and Strip (as Llama's)"
            )
        self._bytes = {i: to_bytes(token) for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
        self.special = frozenset(added["id"] for added in tree["added_tokens"] if added["special"])
        # SentencePiece puts a space before every text; its decoder takes it away.
        self.first_dropped = b" " if any(s["type"] == "Strip" and s["start"] for s in steps) else b""

    def __getitem__(self, token: int) -> bytes:
        """The bytes of a token; none for an id that the tokenizer does not have, as `tokenizers` decodes it."""
        return self._bytes.get(token, b"")


_BYTE_OF = {character: byte for byte, character in enumerate(CHARACTERS)}


def _of_characters(token: str) -> bytes:
    if all(character in _BYTE_OF for character in token):
        return bytes([_BYTE_OF[character] for character in token])
    return token.encode()  # an added token of other characters


def _of_piece(replaced: Sequence[tuple[str, str]], token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass  # a token that only looks like a byte
    for old, new in replaced:
        token = token.replace(old, new)
    return token.encode()


class TextStream:
    """The text of one sequence of ids, given out piece by piece.

    `add` returns what has become certain, `finish` the rest. The pieces together are the decoded ids, up to and without
    the stop string that is complete first (of several that end at the same character, the longest). After it nothing
    more is given out, and `is_stopped` is true.

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
        """What was held back, when no more ids come."""
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


def decode(vocabulary: Vocabulary, ids: Iterable[int], **settings: Any) -> str:
    """The text of ids all at once; `settings` as for `TextStream`."""
    stream = TextStream(vocabulary, **settings)
    return "".join([*(stream.add(token) for token in ids), stream.finish()])
