"""Generated questions: verified anew from their text, balanced, and apart in their splits."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

import pytest

from tasks.data import maths
from tasks.data.splits import assign
from tasks.parameter_sections import Splits

QUESTIONS = maths.generate(list(maths.KINDS), n_questions=3000, max_operand=99, seed=7)


def test_numbers_per_kind_are_balanced_and_prompts_differ() -> None:
    assert Counter(d.task for d in QUESTIONS) == dict.fromkeys(maths.KINDS, 500)
    assert len({d.prompt for d in QUESTIONS}) == len(QUESTIONS)
    assert len({d.group for d in QUESTIONS}) == len(QUESTIONS)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _solution(task: str, prompt: str) -> str:
    """The answer worked out from the words of the question, on another way than the generator's."""
    n = _numbers(prompt)
    if task == "addition":
        return str(sum(n))
    if task == "subtraction":
        return str(n[0] - n[1])
    if task == "comparison":
        return str(max(n) if "larger" in prompt else min(n))
    if task == "fraction":
        return str(sum(Fraction(n[i], n[i + 1]) for i in range(0, len(n), 2)))
    left, right = re.search(r"(\d*x(?: [+-] \d+)?) = (-?\d+)", prompt).groups()  # type: ignore[union-attr]
    of_x = re.sub(r"(\d+)x", r"\1*x", left)
    return str(next(x for x in range(100) if eval(of_x, {"x": x}) == int(right)))


@pytest.mark.parametrize("task", [kind for kind in maths.KINDS if kind != "latex"])
def test_targets_are_right(task: str) -> None:
    for d in QUESTIONS:
        if d.task == task:
            assert _solution(task, d.prompt) == d.target, d


def test_latex_reads_back_as_the_plain_text() -> None:
    for d in QUESTIONS:
        if d.task == "latex":
            assert _numbers(d.prompt.replace("cube", "3"))[:1] == _numbers(d.target)[:1] or "sum" in d.prompt
            assert sorted(_numbers(d.prompt.replace("cube", "3"))) == sorted(
                _numbers(d.target)[: None if "k^" in d.prompt or "sum" not in d.prompt else 2]
            )
            assert d.target.count("{") == d.target.count("}")


def test_answer_formats_vary() -> None:
    additions = [d for d in QUESTIONS if d.task == "addition"]
    shapes = Counter(re.sub(r"\d+", "N", d.answer) for d in additions)
    assert set(shapes) == {"N", "The answer is N.", "N + N = N"}
    assert min(shapes.values()) > 120


@pytest.mark.parametrize("task", ["addition", "subtraction", "comparison"])
def test_operands_stand_at_the_same_distance_from_the_end_in_every_phrasing(task: str) -> None:
    """What makes them learnable in a minute: two operands, each of one width, then one closing sign."""
    ends = [re.search(r"(\d+) \S+ (\d+)[?.]$", d.prompt) for d in QUESTIONS if d.task == task]
    assert all(ends)
    assert len({(len(end[1]), len(end[2])) for end in ends if end}) == 1


def test_same_operands_share_a_group_in_any_order_and_phrasing() -> None:
    few = maths.generate(["addition"], n_questions=300, max_operand=9, seed=1)
    by_group: dict[str, set[tuple[int, ...]]] = {}
    for d in few:
        by_group.setdefault(d.group, set()).add(tuple(sorted(_numbers(d.prompt))))
    assert all(len(operands) == 1 for operands in by_group.values())
    assert len(by_group) <= 55 < len(few)  # 55 unordered pairs of 0..9, asked in several phrasings
    splits = assign(by_group, Splits(preference=0.1, validation=0.1, test=0.2))
    tested = {tuple(sorted(_numbers(d.prompt))) for d in few if splits[d.group] == "test"}
    assert tested
    assert not tested & {tuple(sorted(_numbers(d.prompt))) for d in few if splits[d.group] != "test"}


def test_a_function_of_the_arguments_alone() -> None:
    again = maths.generate(list(maths.KINDS), n_questions=3000, max_operand=99, seed=7)
    assert again == QUESTIONS
    assert maths.generate(["addition"], n_questions=50, max_operand=99, seed=8) != again[:50]


@pytest.mark.parametrize("kind", list(maths.KINDS))
def test_the_smallest_operands_work_and_end(kind: str) -> None:
    found = maths.generate([kind], n_questions=1500, max_operand=9, seed=1)
    assert 30 < len(found) <= 1500
    assert len(found) < 1500 or kind in ("fraction", "equation", "latex")
