"""Streamed text against the text of all tokens at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axon_models.generation.text import TextStream


def of_bytes(tokens: list[int]) -> str:
    """A tokenizer whose tokens are bytes, and 256 a special token without text."""
    return bytes(token for token in tokens if token < 256).decode(errors="replace")


def of_words(tokens: list[int]) -> str:
    """A tokenizer that loses the space before its first word, as SentencePiece's does."""
    return " ".join(f"w{token}" for token in tokens)


def streamed(tokens: list[int], stop: tuple[str, ...] = (), decode=of_bytes) -> list[str]:  # type: ignore[no-untyped-def]
    stream, pieces = TextStream(decode, stop), []
    for token in tokens:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(max_size=12).map(lambda text: list(text.encode())), st.lists(st.integers(0, 256), max_size=12))
)
def test_pieces_make_up_the_text_of_all_tokens(tokens: list[int]) -> None:
    assert "".join(streamed(tokens)) == of_bytes(tokens)


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
    stream = TextStream(of_bytes, ["\nUser:", "END"])
    said = [stream.push(token) for token in b"a EN\nUs"]
    assert said == ["a", " ", "", "", "EN", "", ""]
    assert stream.push(ord("e")) == ""
    assert stream.push(ord("d")) == "\nUsed"  # it was not one
    assert [stream.push(token) for token in b"END"] == ["", "", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_what_was_held_back_comes_at_the_end() -> None:
    stream = TextStream(of_bytes, ["END"])
    assert [stream.push(token) for token in b"xEN"] == ["x", "", ""]
    assert stream.finish() == "EN"
    unfinished = TextStream(of_bytes)
    assert [unfinished.push(token) for token in "é".encode()[:1]] == [""]
    assert unfinished.finish() == "�"


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_tokens_text_may_depend_on_the_one_before(n: int) -> None:
    assert "".join(streamed(list(range(n)), decode=of_words)) == of_words(list(range(n)))
