"""Nothing held out is in training text: the cut, and the proof that must be able to fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data import overlap, preparation
from tasks.data.records import Demonstration, TextRecord

SHARED = "one two three four five"


def test_only_paragraphs_with_a_shared_run_go() -> None:
    index = overlap.RunIndex([f"Before. {SHARED.upper()}, after."], 5)
    text, removed = overlap.cut_shared("First paragraph here.\n\nxx One, two: three\nfour five yy.\n\nLast.", index)
    assert (text, removed) == ("First paragraph here.\n\nLast.", ["xx One, two: three\nfour five yy."])
    assert overlap.cut_shared("one two three four", index) == ("one two three four", [])


def test_runs_do_not_reach_from_one_training_text_into_the_next() -> None:
    index = overlap.RunIndex(["one two three", "four five"], 5)
    assert index.shared_spans(SHARED) == []


def test_a_run_across_paragraphs_is_found_also_when_cutting_makes_it() -> None:
    index = overlap.RunIndex([SHARED, "red green blue pink grey"], 5)
    text, removed = overlap.cut_shared("one two\n\nred green blue pink grey\n\nthree four five", index)
    assert text == ""
    assert len(removed) == 3


@settings(deadline=None)
@given(
    training=st.lists(st.text(alphabet="ab c\n", max_size=60), max_size=4),
    held_out=st.text(alphabet="ab c\nÄ", max_size=80),
)
def test_after_the_cut_the_exact_count_is_zero(training: list[str], held_out: str) -> None:
    text, _ = overlap.cut_shared(held_out, overlap.RunIndex(training, 3))
    assert overlap.count_overlaps([text], training, 3)["overlaps"] == 0


def test_the_count_by_hand() -> None:
    found = overlap.count_overlaps(["a b c d"], ["x a b c", "b c d b c d"], 3)
    assert (found["held_out_runs"], found["training_runs"], found["overlaps"]) == (2, 6, 3)


def _text(text: str, split: str, file: str) -> TextRecord:
    return TextRecord(source="python_docs", license="MIT", group=file, file=file, symbol=file, text=text, split=split)


def _question(answer: str, split: str, file: str) -> Demonstration:
    return Demonstration(
        source="python_docs", license="MIT", group=file, file=file, symbol=file, task="docs",
        prompt=f"What is {file}?", answer=answer, target=answer, split=split,
    )  # fmt: skip


TEXTS = [_text("Quite another text of training.", "train", "a.py"), _text("Held out and alone.", "test", "b.py")]
QUESTIONS = [_question("Trained.", "train", "a.py"), _question("Tested.", "test", "b.py")]


def test_clean_data_pass_the_proof() -> None:
    proof = preparation.prove_no_overlap(TEXTS, QUESTIONS, n_words=5)
    assert proof["overlaps"] == 0
    assert proof["held_out_texts"] == 2


@pytest.mark.parametrize(
    ("text", "question", "count"),
    [
        (_text(f"{SHARED} six", "train", "c.py"), None, "overlaps"),
        (_text("HELD out and alone.", "train", "c.py"), None, "texts_also_in_training"),
        (None, _question("More.", "preference", "b.py"), "training_questions_about_held_out_modules"),
        (None, replace(_question("More.", "train", "c.py"), prompt="What is b.py?"), "prompts_in_both"),
    ],
)
def test_every_kind_of_leak_fails_the_proof(text, question, count: str) -> None:
    texts = [*TEXTS, _text(SHARED, "test", "d.py"), *([text] if text else [])]
    questions = [*QUESTIONS, *([question] if question else [])]
    with pytest.raises(RuntimeError, match=f"'{count}': [1-9]"):
        preparation.prove_no_overlap(texts, questions, n_words=5)


def test_held_out_overlap_goes_and_training_stays() -> None:
    rejects = preparation.Rejects()
    texts = [_text(f"{SHARED} six.", "train", "a.py"), _text(f"Own words stay.\n\n{SHARED}", "test", "b.py"),
             _text(f"xx {SHARED}", "validation", "c.py")]  # fmt: skip
    questions = [_question(f"Says {SHARED}.", "test", "b.py"), _question("Fine answer.", "test", "d.py")]
    kept, asked = preparation.remove_overlap(texts, questions, n_words=5, min_chars=5, rejects=rejects)
    assert [t.text for t in kept] == [f"{SHARED} six.", "Own words stay."]
    assert [d.answer for d in asked] == ["Fine answer."]
    assert [r.reason for r in rejects.all()] == ["overlap", "overlap", "overlap_paragraph", "overlap_paragraph"]
    preparation.prove_no_overlap(kept, asked, n_words=5)
