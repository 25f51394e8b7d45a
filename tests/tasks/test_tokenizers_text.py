"""Text that comes token by token: together it is what decoding at once gives, and no piece is taken back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models

from axon_models.generation.text import TextStream, decode
from axon_models.generation.vocabulary import Vocabulary
from tasks.tokenizers import bpe, chat, kinds, own
from tests.tasks.test_tokenizers_kinds import ANY_TEXT, TEXTS, VOCAB_SIZE

TOKENIZERS = {kind: train(TEXTS, vocab_size=VOCAB_SIZE) for kind, train in kinds.TRAIN.items()}
VOCABULARIES = {kind: Vocabulary.of(tokenizer) for kind, tokenizer in TOKENIZERS.items()}
OWN = bpe.learn(own.count_words(TEXTS), n_tokens=VOCAB_SIZE - len(chat.SPECIAL_TOKENS), alphabet=own.ALPHABET)
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
    ids = chat.encode_text(TOKENIZERS[kind], text)
    pieces, _ = stream(kind, ids)
    assert "".join(pieces) == decode(VOCABULARIES[kind], ids) == text


@settings(max_examples=300, deadline=None)
@given(kind=KINDS, ids=IDS, special=st.booleans())
def test_pieces_of_any_ids_are_what_is_decoded_at_once_and_none_is_taken_back(
    kind: str, ids: list[int], special: bool
) -> None:
    """Also where bytes are damaged: what was given out is the beginning of the whole, whatever came behind it."""
    pieces, _ = stream(kind, ids, special=special)
    whole = decode(VOCABULARIES[kind], ids, special=special)
    assert "".join(pieces) == whole
    assert all(whole.startswith("".join(pieces[:n])) for n in range(len(pieces)))


@settings(max_examples=200, deadline=None)
@given(ids=IDS)
def test_pieces_of_our_own_bpe_are_what_it_decodes(ids: list[int]) -> None:
    learnt = [i for i in ids if i >= len(chat.SPECIAL_TOKENS)]
    pieces, _ = stream("own", ids)
    assert "".join(pieces) == OWN.decode([i - len(chat.SPECIAL_TOKENS) for i in learnt])


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("damage", [b"\xff", b"\xe6\x9d", b"\xc0\x80", b"\xed\xa0\x80", b"\xf0\x9f\x98"])
def test_only_what_is_damaged_is_replaced(kind: str, damage: bytes) -> None:
    """Whole characters beside it come through; how many U+FFFD there are is Unicode's advice, which Python follows."""
    vocabulary = VOCABULARIES[kind]
    byte_ids = {vocabulary[i]: i for i in range(6, 262)}  # ids 6 to 261 are the bytes, in all three kinds
    content = "é東".encode() + damage + "x\U0001f600é".encode()
    pieces, _ = stream(kind, [byte_ids[bytes([byte])] for byte in content])
    assert "".join(pieces) == content.decode(errors="replace")


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
    vocabulary = Vocabulary.of(llama)
    for ids in ([2, 3, 2, 1, 1], [1, 1, 3], [3, 2], [4 + 0x20, 2], [4 + 0xC3, 4 + 0xA9, 1, 3], []):
        assert decode(vocabulary, ids) == llama.decode(ids)


def test_unknown_decoders_and_empty_stop_strings_are_refused() -> None:
    other = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    other.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="WordPiece"):
        Vocabulary.of(other)
    for step in (decoders.Strip(" ", 2, 0), decoders.Strip(" ", 0, 1), decoders.Replace(Regex("a+"), " ")):
        other.decoder = decoders.Sequence([decoders.ByteFallback(), step])
        with pytest.raises(ValueError, match="cannot be read token by token"):
            Vocabulary.of(other)
    with pytest.raises(ValueError, match="stop string is empty"):
        TextStream(VOCABULARIES["byte_level"], stop=[""])
