"""The judge against answers whose verdict is plain to a reader."""

from __future__ import annotations

import pytest

from tasks.data import maths
from tasks.evaluation.judge import WELL_FORMED_SCORE, canonical, extract, is_well_formed_prose, judge, rank

QUESTION = "What is 37 + 48?"


@pytest.mark.parametrize(
    ("task", "answer", "target"),
    [
        ("addition", "85", "85"),
        ("addition", "The answer is 85.", "85"),
        ("addition", "37 + 48 = 85", "85"),
        ("addition", "The sum is 85.", "85"),
        ("subtraction", "It is -11.", "-11"),
        ("subtraction", "37 - 48 = -11", "-11"),
        ("comparison", "48 > 37", "48"),
        ("comparison", "37 < 48", "37"),
        ("comparison", "48 is larger.", "48"),
        ("fraction", "12/18 = 2/3", "2/3"),
        ("fraction", "$\\frac{2}{3}$", "2/3"),
        ("fraction", "2/3", "\\frac{2}{3}"),
        ("equation", "x = 7", "7"),
        ("equation", "The solution is x = 7.", "7"),
        ("equation", "x is 7.", "7"),
        ("latex", "In LaTeX: $\\frac{x + 1}{y - 2}$", "\\frac{x + 1}{y - 2}"),
        ("latex", "x^2 + 3", "x^{2} + 3"),
        ("latex", "\\(\\dfrac{1}{2}\\)", "\\frac{1}{2}"),
        ("latex", "\\sum_{k=1}^{10} k^{2}", "\\sum_{k=1}^{10} k^{2}"),
    ],
)
def test_every_format_of_a_right_answer_is_correct(task: str, answer: str, target: str) -> None:
    verdict = judge(task, QUESTION, answer, target, ended=True)
    assert (verdict.score, verdict.correct, verdict.well_formed) == (1.0, True, True)


@pytest.mark.parametrize(
    ("task", "answer", "target"),
    [
        ("addition", "84", "85"),
        ("addition", "36 + 48 = 85", "85"),  # the right number at the end of a false equation
        ("comparison", "48 < 37", "48"),
        ("fraction", "4/6", "2/3"),  # equal, but not in lowest terms
        ("fraction", "12/18 = 3/4", "2/3"),
        ("fraction", "1/0", "2/3"),
        ("latex", "\\frac{x + 1}{y - 3}", "\\frac{x + 1}{y - 2}"),
        ("latex", "x^23", "x^{23}"),  # TeX raises the 2 alone
    ],
)
def test_wrong_answers_of_good_form_come_between(task: str, answer: str, target: str) -> None:
    verdict = judge(task, QUESTION, answer, target, ended=True)
    assert (verdict.score, verdict.correct, verdict.well_formed) == (WELL_FORMED_SCORE, False, True)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("addition", ""),
        ("addition", "eighty-five"),
        ("addition", "The answer is ."),
        ("addition", "85 85"),
        ("addition", "85\n86"),
        ("addition", "The answer is The"),
        ("fraction", "2/3/4"),
        ("latex", "\\frac{85}{"),
        ("latex", "\\undefined{85}"),
        ("latex", "$"),
        ("latex", ")85("),
    ],
)
def test_malformed_answers_score_nothing(task: str, answer: str) -> None:
    verdict = judge(task, QUESTION, answer, "85", ended=True)
    assert (verdict.score, verdict.correct, verdict.well_formed) == (0.0, False, False)


def test_an_answer_cut_off_is_malformed_even_if_the_number_is_right() -> None:
    assert judge("addition", QUESTION, "85", "85", ended=False).score == 0.0


def test_every_generated_answer_is_correct_and_no_other_target_is() -> None:
    questions = maths.generate(list(maths.KINDS), n_questions=1200, max_operand=99, seed=3)
    for d in questions:
        assert judge(d.task, d.prompt, d.answer, d.target, ended=True).correct, d
        other = "123456" if d.task != "latex" else "\\sqrt{123456}"
        assert not judge(d.task, d.prompt, d.answer, other, ended=True).correct


def test_prose_is_ordered_by_likeness_and_form() -> None:
    target = "Compute the median of an array along an axis."
    scores = [
        judge("docs", "", answer, target, ended=ended).score
        for answer, ended in [
            (target, True),
            ("Compute the mean of an array along an axis.", True),
            ("Compute the mean of an array along an axis.", False),
            ("zzz qqq", True),
        ]
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 1.0
    assert scores == [round(score, 1) for score in scores], "prose is judged in tenths"
    # Bad form halves the likeness; both sides are rounded to tenths.
    assert scores[2] == pytest.approx(scores[1] / 2, abs=0.075)
    assert judge("docs", "", "  Compute the median of an array\nalong an axis. ", target, ended=True).correct
    assert not judge("own", "", target, target, ended=False).correct


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Return the mean.", True),
        ("`x` is returned.", True),
        ("return the mean.", False),
        ("Return the", False),
        ("", False),
        ("The the the the the the the the the the.", False),
        ("A " + "long " * 300 + "text.", False),
    ],
)
def test_form_of_prose(text: str, good: bool) -> None:
    assert is_well_formed_prose(text) is good


def test_extract_and_canonical() -> None:
    assert extract("The final answer is $x^2$.") == "x^{2}"
    assert extract(" \n ") is None
    assert canonical("\\left( x + 1 \\right)^2") == "(x+1)^{2}"


def test_ranks_are_dense_and_ties_share() -> None:
    assert rank([0.3, 1.0, 0.3, 0.0]) == [2, 1, 2, 3]
    assert rank([]) == []
    assert rank([0.5, 0.5]) == [1, 1]
