"""Text that comes token by token: together it is what decoding at once gives, and no piece is taken back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tasks.errors import UserError
from tasks.tokenizers import chat, kinds
from tasks.tokenizers.pieces import TextStream, Vocabulary, decode
from tests.tasks.test_tokenizers_kinds import ANY_TEXT, TEXTS, VOCAB_SIZE

TOKENIZERS = {kind: train(TEXTS, vocab_size=VOCAB_SIZE) for kind, train in kinds.TRAIN.items() if kind != "own"}
VOCABULARIES = {kind: Vocabulary(tokenizer) for kind, tokenizer in TOKENIZERS.items()}
KINDS = st.sampled_from(list(TOKENIZERS))
IDS = st.lists(st.integers(0, VOCAB_SIZE - 1) | st.integers(6, 261), max_size=20)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3)


def stream(kind: str, ids: list[int], **settings: object) -> tuple[list[str], TextStream]:
    one = TextStream(VOCABULARIES[kind], **settings)  # type: ignore[arg-type]
    return [*(one.add(token) for token in ids), one.finish()], one


def test_a_character_of_several_tokens_comes_whole() -> None:
    for kind, tokenizer in TOKENIZERS.items():
        ids = chat.encode_text(tokenizer, "a\U0001f600b")
        pieces, _ = stream(kind, ids)
        assert [piece for piece in pieces if piece] == ["a", "\U0001f600", "b"]
        assert len(ids) == 6


@settings(max_examples=300, deadline=None)
@given(kind=KINDS, text=ANY_TEXT)
def test_pieces_of_any_text_are_the_text(kind: str, text: str) -> None:
    pieces, _ = stream(kind, chat.encode_text(TOKENIZERS[kind], text))
    assert "".join(pieces) == text


@settings(max_examples=300, deadline=None)
@given(ids=IDS, special=st.booleans())
def test_pieces_of_any_ids_are_what_the_library_decodes(ids: list[int], special: bool) -> None:
    """Damaged characters too: the library replaces what Unicode recommends to replace."""
    pieces, _ = stream("byte_level", ids, special=special)
    assert "".join(pieces) == TOKENIZERS["byte_level"].decode(ids, skip_special_tokens=not special)


@settings(max_examples=300, deadline=None)
@given(ids=IDS, special=st.booleans())
def test_pieces_with_byte_fallback_are_what_the_library_decodes(ids: list[int], special: bool) -> None:
    """Of a run with a damaged byte the library replaces every byte: then Python's decoder says what is right."""
    pieces, _ = stream("byte_fallback", ids, special=special)
    at_once = TOKENIZERS["byte_fallback"].decode(ids, skip_special_tokens=not special)
    if "\ufffd" not in at_once:
        assert "".join(pieces) == at_once
    all_bytes = b"".join(VOCABULARIES["byte_fallback"][i] for i in ids if special or i > 5)
    assert "".join(pieces) == all_bytes.decode(errors="replace")


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first, by trying every beginning of the text."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@settings(max_examples=500, deadline=None)
@given(kind=KINDS, text=st.text(alphabet="aab\n", max_size=20), stops=STOPS)
def test_stop_strings_end_the_text_and_no_part_of_them_is_given_out(kind: str, text: str, stops: list[str]) -> None:
    ids = chat.encode_text(TOKENIZERS[kind], text)
    pieces, one = stream(kind, ids, stop=stops)
    assert ("".join(pieces), one.is_stopped) == cut(text, stops)
    again, given_out = TextStream(VOCABULARIES[kind], stop=stops), ""
    for number, token in enumerate(ids):
        given_out += again.add(token)
        if again.is_stopped:
            assert again.add(token) == again.finish() == ""
            break
        # Whatever comes next, also the rest of a stop string, what was given out stays right.
        so_far = TOKENIZERS[kind].decode(ids[: number + 1])
        for rest in (stop[n:] for stop in stops for n in range(len(stop))):
            assert cut(so_far + rest, stops)[0].startswith(given_out)


def test_text_is_held_back_no_longer_than_it_may_be_a_stop_string() -> None:
    one = TextStream(VOCABULARIES["byte_fallback"], stop=["\n\nUser"])
    byte_tokens = [6 + byte for byte in b"a\nb\n\nUs\n\nUser: x"]
    assert [one.add(token) for token in byte_tokens] == [
        "a", "", "\nb", "", "", "", "", "\n\nUs", "", "", "", "", "", "", "", "",
    ]  # fmt: skip
    assert one.is_stopped
    assert one.finish() == ""


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    ids = [chat.USER, *chat.encode_text(TOKENIZERS["byte_level"], "é"), chat.END]
    assert decode(VOCABULARIES["byte_level"], ids) == "é"
    assert decode(VOCABULARIES["byte_level"], ids, special=True) == "<|user|>é<|end|>"
    assert decode(VOCABULARIES["byte_level"], [VOCAB_SIZE + 5]) == ""


def test_the_decoder_of_released_llamas_is_read_too() -> None:
    """Spaces before every text, taken away again by Strip; no escapes."""
    vocab = {"<unk>": 0, "▁": 1, "▁a": 2, "b": 3, **{f"<0x{byte:02X}>": 4 + byte for byte in range(256)}}
    llama = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a")] if "a" in vocab else [], byte_fallback=True))
    llama.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    vocabulary = Vocabulary(llama)
    for ids in ([2, 3, 2, 1, 1], [1, 1, 3], [3, 2], [4 + 0x20, 2], [4 + 0xC3, 4 + 0xA9, 1, 3], []):
        assert decode(vocabulary, ids) == llama.decode(ids)


def test_unknown_decoders_and_empty_stop_strings_are_refused() -> None:
    other = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    other.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="WordPiece"):
        Vocabulary(other)
    with pytest.raises(ValueError, match="stop string is empty"):
        TextStream(VOCABULARIES["byte_level"], stop=[""])
