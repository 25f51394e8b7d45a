"""Streamed text against the text of all tokens at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axon_models.generation.text import TextStream, decode
from axon_models.generation.vocabulary import Vocabulary

BYTES = Vocabulary(pieces={byte: bytes([byte]) for byte in range(256)} | {256: b"<end>"}, special=frozenset({256}))
WORDS = Vocabulary(pieces={n: f" w{n}".encode() for n in range(9)}, first_dropped=b" ")  # as SentencePiece's


def of_bytes(tokens: list[int]) -> str:
    """What Python says of tokens that are bytes; 256 is special."""
    return bytes(token for token in tokens if token < 256).decode(errors="replace")


def streamed(tokens: list[int], stop: tuple[str, ...] = (), vocabulary: Vocabulary = BYTES) -> list[str]:
    stream, pieces = TextStream(vocabulary, stop=stop), []
    for token in tokens:
        pieces.append(stream.add(token))
        if stream.is_stopped:
            break
    return [*pieces, stream.finish()]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(max_size=12).map(lambda text: list(text.encode())), st.lists(st.integers(0, 256), max_size=12))
)
def test_pieces_make_up_the_text_of_all_tokens(tokens: list[int]) -> None:
    assert "".join(streamed(tokens)) == decode(BYTES, tokens) == of_bytes(tokens)


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=12))
def test_every_piece_is_whole_characters(text: str) -> None:
    """Nothing that is let out is ever taken back: pieces are of the text, not of its replacement characters."""
    tokens, out = list(text.encode()), ""
    for piece in streamed(tokens):
        out += piece
        assert text.startswith(out)


@settings(max_examples=300, deadline=None)
@given(
    st.text("abé", max_size=12),
    st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces = streamed(list(text.encode()), tuple(stop))
    places = [text.find(string) for string in stop if string in text]
    # The first to be complete stops: of those that are complete then, the one that begins first is cut off.
    ends = [text.find(string) + len(string) for string in stop if string in text]
    if not places:
        assert "".join(pieces) == text
        return
    seen = text[: min(ends)]
    assert "".join(pieces) == seen[: min(seen.find(string) for string in stop if string in seen)]


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    stream = TextStream(BYTES, stop=["\nUser:", "END"])
    said = [stream.add(token) for token in b"a EN\nUs"]
    assert said == ["a", " ", "", "", "EN", "", ""]
    assert stream.add(ord("e")) == ""
    assert stream.add(ord("d")) == "\nUsed"  # it was not one
    assert [stream.add(token) for token in b"END"] == ["", "", ""]
    assert stream.is_stopped
    assert stream.finish() == ""


def test_what_was_held_back_comes_at_the_end() -> None:
    stream = TextStream(BYTES, stop=["END"])
    assert [stream.add(token) for token in b"xEN"] == ["x", "", ""]
    assert stream.finish() == "EN"
    unfinished = TextStream(BYTES)
    assert [unfinished.add(token) for token in "é".encode()[:1]] == [""]
    assert unfinished.finish() == "�"


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_the_space_before_a_text_is_left_away_once(n: int) -> None:
    assert "".join(streamed(list(range(n)), vocabulary=WORDS)) == " ".join(f"w{token}" for token in range(n))


def test_special_tokens_are_written_where_that_is_asked_for() -> None:
    assert decode(BYTES, [256, 97, 256]) == "a"
    assert decode(BYTES, [256, 97, 256], special=True) == "<end>a<end>"
