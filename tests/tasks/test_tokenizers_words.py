"""Texts encoded by the table of words have the ids that the library gives the whole text."""

from __future__ import annotations

import sysconfig
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from tasks.tokenizers import chat, kinds, words
from tests.tasks.test_tokenizers_kinds import ANY_TEXT, TEXTS

# Where rules meet: white space of all kinds, quotes before s and t, digits, controls, and some that are not ASCII.
EDGES = "ab sT'’\n\r\t\v\f\x1c\x1f\0\x85\xa0\u200b\u2028\u300005٣²é日_!<|>"
# With all pairs of them as texts, merges join whatever rules do not keep apart: a wrong cut has other ids.
PAIRS = [a + b + c for a in EDGES for b in EDGES for c in (b, " ", "\n")]
TOKENIZERS = {kind: train([*TEXTS, *PAIRS], vocab_size=700) for kind, train in kinds.TRAIN.items()}
ENCODERS = {kind: words.Encoder(Tokenizer.from_str(tokenizer.to_str())) for kind, tokenizer in TOKENIZERS.items()}
PARTS = ["'s", "'ll", "can't", "  ", "\n\n", "\r\n", " 5", "12", "x", "é", "…", "\n", "<|end|>", " !?", "\n5", "\n\na"]
EDGY = st.text(alphabet=EDGES + "  \n\n", max_size=40) | st.lists(st.sampled_from(PARTS)).map("".join)


def same_ids(kind: str, text: str) -> None:
    assert [list(ids) for ids in ENCODERS[kind].encode([text])] == [chat.encode_text(TOKENIZERS[kind], text)]


@settings(max_examples=1500, deadline=None)
@given(text=ANY_TEXT | EDGY | st.text(alphabet=[chr(i) for i in range(128)]))
def test_any_text_has_the_ids_of_the_library(text: str) -> None:
    same_ids("byte_level", text)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT | EDGY)
def test_every_kind_has_them(kind: str, text: str) -> None:
    same_ids(kind, text)


def test_every_short_text_has_them() -> None:
    texts = ["".join(characters) for n in range(6) for characters in product(" \n\ta5'é", repeat=n)]
    found = ENCODERS["byte_level"].encode(texts)
    for text, encoding in zip(texts, TOKENIZERS["byte_level"].encode_batch(texts), strict=True):
        assert next(found).tolist() == encoding.ids, repr(text)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_real_text_has_them(kind: str) -> None:
    """Sources with characters from many scripts, and long plain ones."""
    folder = Path(sysconfig.get_path("stdlib"))
    texts = [(folder / name).read_text() for name in ("html/entities.py", "typing.py", "locale.py", "heapq.py")]
    assert not all(text.isascii() for text in texts)
    for text in texts:
        same_ids(kind, text)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_text_that_spells_a_special_token_stays_text(kind: str) -> None:
    for text in ("<|end|>", "é <|end|>", "a\n<|user|>é\n"):
        same_ids(kind, text)
        assert chat.END not in next(ENCODERS[kind].encode([text]))


def test_only_what_cuts_text_alike_is_looked_up_in_the_table() -> None:
    def known(change: object = None) -> bool:
        tokenizer = Tokenizer.from_str(TOKENIZERS["byte_level"].to_str())
        if callable(change):
            change(tokenizer)
        return words.Encoder(tokenizer)._words is not None

    def drop(tokenizer: Tokenizer) -> None:
        tokenizer.model.dropout = 0.5

    def lower(tokenizer: Tokenizer) -> None:
        tokenizer.normalizer = normalizers.Lowercase()

    def together(tokenizer: Tokenizer) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    assert known()
    assert ENCODERS["own"]._words is not None
    assert ENCODERS["byte_fallback"]._words is None
    assert not known(drop)
    assert not known(lower)
    assert not known(together)
    assert not known(lambda tokenizer: tokenizer.add_tokens(["cat"]))
    assert not known(lambda tokenizer: tokenizer.enable_truncation(3))
    assert not known(lambda tokenizer: tokenizer.enable_padding(length=9))


def test_the_table_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "N_KEPT", 3)
    encoder = words.Encoder(TOKENIZERS["byte_level"])
    long = "a" * (words.LONGEST_KEPT + 1)
    texts = [long, "one two three four five", "one two three four five", "", long]
    found = [list(ids) for ids in encoder.encode(texts)]
    assert found == [chat.encode_text(TOKENIZERS["byte_level"], text) for text in texts]
    assert encoder._words is not None
    assert set(encoder._words) == {"one", " two", " three"}
