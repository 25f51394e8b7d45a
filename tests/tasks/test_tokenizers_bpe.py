"""Our own BPE against the library `tokenizers`: merges, ties, ids; and against a count of all pairs at every step."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from tasks.errors import UserError
from tasks.tokenizers import bpe, bytelevel, own

SYLLABLES = ["ab", "abc", "bc", "cab", "a", "b", "ca", "bca", "é", "東", "1", " ", "\n"]


def corpus(seed: int) -> list[str]:
    """Few letters, so that ties and runs like `aaaa` are common."""
    rng = random.Random(seed)
    letters = "abcdefghijkl"[: rng.choice([2, 3, 4, 12])]
    lines = []
    for _ in range(rng.randint(5, 30)):
        words = ["".join(rng.choices(letters, k=rng.randint(1, 14))) for _ in range(rng.randint(5, 40))]
        lines.append(" ".join(words))
    return lines


def test_the_worked_example() -> None:
    """aaabdaaabac → XdXac with X = aaab: Gage's example, by hand in the module's docstring."""
    learnt = bpe.learn({b"aaabdaaabac": 1}, n_tokens=259)
    assert learnt.tokens[256:] == (b"aa", b"ab", b"aaab")
    assert [learnt.tokens[i] for i in learnt.encode_word(b"aaabdaaabac")] == [b"aaab", b"d", b"aaab", b"a", b"c"]
    assert list(learnt.merges) == [(ord("a"), ord("a")), (ord("a"), ord("b")), (256, 257)]


def test_learning_equals_counting_all_pairs_at_every_step() -> None:
    words = {b"low": 5, b"lowest": 2, b"newer": 6, b"wider": 3, b"new": 2, b"slow": 1}
    learnt = bpe.learn(words, n_tokens=256 + 12)
    split = {word: list(word) for word in words}
    for pair, (_, new) in learnt.merges.items():
        counts = Counter[tuple[int, int]]()
        for word, ids in split.items():
            for neighbours in pairwise(ids):
                counts[neighbours] += words[word]
        assert pair == min(counts, key=lambda p: (-counts[p], p))
        split = {word: _merge(ids, pair, new) for word, ids in split.items()}
    assert {word: learnt.encode_word(word) for word in words} == split


def _merge(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    merged: list[int] = []
    for token in ids:
        if merged and (merged[-1], token) == pair:
            merged[-1] = new
        else:
            merged.append(token)
    return merged


def test_own_training_gives_the_librarys_tokenizer_to_the_byte() -> None:
    n_compared = 0
    for seed in range(40):
        texts, vocab_size = corpus(seed), 262 + 10 * (seed % 12) + 5
        try:
            theirs = bytelevel.train(texts, vocab_size=vocab_size)
        except UserError:
            with pytest.raises(UserError, match=rf"tokenizer\.vocab_size={vocab_size}"):
                own.train(texts, vocab_size=vocab_size)
            continue
        ours = own.train(texts, vocab_size=vocab_size)
        assert ours.to_str(pretty=True) == theirs.to_str(pretty=True)
        n_compared += 1
    assert n_compared > 30


@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from(SYLLABLES)).map("".join))
def test_encoding_gives_the_librarys_ids(text: str) -> None:
    ours, theirs = _same_merges()
    assert ours.encode(own.words(text)) == [i - 6 for i in theirs.encode(text, add_special_tokens=False).ids]
    assert ours.decode(ours.encode(own.words(text))) == text


def _same_merges(memo: list[tuple[bpe.Bpe, Tokenizer]] = []) -> tuple[bpe.Bpe, Tokenizer]:  # noqa: B006 made once
    if not memo:
        texts = [line.replace("d", "é").replace("e", "東") for seed in range(8) for line in corpus(seed)]
        learnt = bpe.learn(own.count_words(texts), n_tokens=700, alphabet=own.ALPHABET)
        memo.append((learnt, own.to_tokenizer(learnt)))
    return memo[0]


@settings(max_examples=200, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), unique=True, max_size=9),
    word=st.text(alphabet="abc", max_size=24),
)
def test_any_merges_give_the_librarys_ids(pairs: list[tuple[int, int]], word: str) -> None:
    """Merges that no training would give too: of low rank behind high, and several for one token."""
    tokens, ids, merges = ["a", "b", "c"], {"a": 0, "b": 1, "c": 2}, {}
    for left, right in pairs:
        if left < len(tokens) and right < len(tokens):
            token = tokens[left] + tokens[right]
            if token not in ids:
                ids[token] = len(tokens)
                tokens.append(token)
            merges[left, right] = (len(merges), ids[token])
    theirs = Tokenizer(models.BPE(vocab=ids, merges=[(tokens[a], tokens[b]) for a, b in merges]))
    ours = bpe.Bpe(tokens=tuple(token.encode() for token in tokens), merges=merges)
    assert ours.encode_word(word.encode()) == theirs.encode(word).ids


def test_half_a_character_is_decoded_with_replacement() -> None:
    plain = bpe.learn({}, n_tokens=300)
    assert len(plain.tokens) == 256
    assert plain.decode([*"é".encode(), 0xE6, 0x9D, ord("x")]) == "é\ufffdx"
    assert plain.encode([b"", b"\xff\x00"]) == [255, 0]


def test_words_are_the_text() -> None:
    text = "naïve  café\n\n x = 12345 it's 東京 \0"
    assert b"".join(own.words(text)).decode() == text
    assert own.words("x = 12") == [b"x", b" =", b" ", b"1", b"2"]
    assert sum(own.count_words([text, "東京"]).values()) == len(own.words(text)) + 1
