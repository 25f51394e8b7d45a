"""The bytes of each token: what text is made of while it comes token by token.

The text of a token depends on what stands beside it only as far as characters are cut into bytes. Bytes can be looked
up one token at a time, whatever stands beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """pieces: the bytes of each id. special: ids that are no text. first_dropped: what is left away at the front of
    every text, if it is there: SentencePiece puts a space before every text, and its decoder takes it away."""

    pieces: Mapping[int, bytes] = field(repr=False)
    special: frozenset[int] = frozenset()
    first_dropped: bytes = b""

    def __getitem__(self, token: int) -> bytes:
        """The bytes of a token; none for an id that the tokenizer does not have, as `tokenizers` decodes it."""
        return self.pieces.get(token, b"")

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """What a tokenizer has: byte-level, or BPE with byte fallback, ours as well as released ones.

        Raises ValueError for a tokenizer with another decoder.
        """
        tree = json.loads(tokenizer.to_str())
        decoder = tree["decoder"] or {"type": "None"}
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            to_bytes: Callable[[str], bytes] = partial(_of_characters, _bytes_of_characters())
        elif "ByteFallback" in kinds and all(map(_is_byte_by_byte, steps)):
            replaced = [(step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"]
            to_bytes = partial(_of_piece, replaced)
        else:
            raise ValueError(
                f"a tokenizer with the decoder {', '.join(kinds)} cannot be read token by token; allowed: ByteLevel "
                "(as GPT-2's), or Replace of strings, ByteFallback, Fuse and Strip of one space in front (as Llama's)"
            )
        return cls(
            pieces={i: to_bytes(token) for token, i in tokenizer.get_vocab(with_added_tokens=True).items()},
            special=frozenset(added["id"] for added in tree["added_tokens"] if added["special"]),
            first_dropped=b" " if any(step["type"] == "Strip" and step["start"] for step in steps) else b"",
        )


def _is_byte_by_byte(step: Mapping[str, Any]) -> bool:
    """Whether a step of a decoder does the same to a token wherever it stands, but at the front of a text."""
    if step["type"] == "Replace":
        return "String" in step["pattern"]
    if step["type"] == "Strip":
        return step["content"] == " " and step["start"] <= 1 and step["stop"] == 0
    return step["type"] in ("ByteFallback", "Fuse")


def _bytes_of_characters() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for: its own where it can be seen, and for those from
    U+0100 on, in their order, the bytes that are left (Radford et al. 2019, section 2.2)."""
    seen = {character: ord(character) for character in ByteLevel.alphabet() if ord(character) < 256}
    others = sorted(set(range(256)) - set(seen.values()))
    return seen | {chr(256 + place): byte for place, byte in enumerate(others)}


def _of_characters(byte_of: Mapping[str, int], token: str) -> bytes:
    if all(character in byte_of for character in token):
        return bytes([byte_of[character] for character in token])
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
