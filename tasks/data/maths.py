"""Generated questions with answers that can be verified, in several phrasings and several answer formats.

They are made for models of a few million parameters and a minute of fine-tuning: operands of one width, at the end of
the question and before one closing sign, stand at the same distance from the answer in every phrasing, so that a small
model can learn where to look. Three answer formats, drawn without regard to the question, leave it something to gain
from preferences. A problem's `key` names its operands, sorted where the order does not change the work: all phrasings
of a key land in one split.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tasks.data.latex import latex_problem
from tasks.data.records import Demonstration

SOURCE = "maths"
LICENSE = "CC0-1.0"
_MAX_MISSES = 2000


@dataclass(frozen=True, kw_only=True)
class Problem:
    """`questions` and `answers` are the phrasings to draw from; every one of `answers` states `target`."""

    key: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    target: str


def _operand(rng: random.Random, max_operand: int) -> int:
    """A number of as many digits as `max_operand` has: 10 to 99 for 99."""
    return rng.randint(10 ** (len(str(max_operand)) - 1), max_operand)


def _answers(value: str, whole: str) -> tuple[str, ...]:
    return (value, f"The answer is {value}.", whole)


def addition(rng: random.Random, max_operand: int) -> Problem:
    a, b = _operand(rng, max_operand), rng.randint(1, 9)
    low, high = sorted((a, b))
    return Problem(
        key=f"{low},{high}",
        questions=(f"What is {a} + {b}?", f"Compute {a} + {b}.", f"Add {a} and {b}.", f"The sum of {a} and {b}?"),
        answers=_answers(str(a + b), f"{a} + {b} = {a + b}"),
        target=str(a + b),
    )


def subtraction(rng: random.Random, max_operand: int) -> Problem:
    a, b = _operand(rng, max_operand), rng.randint(1, 9)
    low, high = sorted((a, b))
    return Problem(
        key=f"{low},{high}",
        questions=(f"What is {a} - {b}?", f"Compute {a} - {b}.", f"{a} minus {b}?"),
        answers=_answers(str(a - b), f"{a} - {b} = {a - b}"),
        target=str(a - b),
    )


def comparison(rng: random.Random, max_operand: int) -> Problem:
    a = b = _operand(rng, max_operand)
    while a == b:
        b = _operand(rng, max_operand)
    low, high = sorted((a, b))
    word, value, relation = rng.choice((("larger", high, f"{high} > {low}"), ("smaller", low, f"{low} < {high}")))
    return Problem(
        key=f"{low},{high}",
        questions=(
            f"Which is {word}, {a} or {b}?",
            f"Which number is {word}: {a} or {b}?",
            f"The {word} of {a} and {b}?",
        ),
        answers=_answers(str(value), relation),
        target=str(value),
    )


def _fraction_text(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"


def fraction(rng: random.Random, max_operand: int) -> Problem:
    """A sum over one prime denominator, or a fraction to be reduced; answers are in lowest terms."""
    if rng.random() < 0.85:
        c = rng.choice([n for n in range(11, max(max_operand, 11) + 1) if all(n % d for d in (2, 3, 5, 7))])
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        value, term = Fraction(a + b, c), f"{a}/{c} + {b}/{c}"
        low, high = sorted((a, b))
        key = f"sum,{low},{high},{c}"
        questions: tuple[str, ...] = (f"What is {term}?", f"Compute {term}.", f"Add {a}/{c} and {b}/{c}.")
    else:
        q = rng.randint(2, 9)
        k = rng.randint(2, 9)
        p = rng.choice([p for p in range(1, q) if math.gcd(p, q) == 1])
        value, term = Fraction(p, q), f"{p * k}/{q * k}"
        key = f"reduce,{p * k},{q * k}"
        questions = (f"Simplify {term}.", f"Reduce {term}.", f"What is {term} in lowest terms?")
    text = _fraction_text(value)
    return Problem(key=key, questions=questions, answers=_answers(text, f"{term} = {text}"), target=text)


def equation(rng: random.Random, max_operand: int) -> Problem:
    """x + a = b or x - a = b with a whole, positive solution."""
    sign = rng.choice("+-")
    x, a = _operand(rng, max_operand), rng.randint(1, 9)
    term = f"x {sign} {a} = {x + a if sign == '+' else x - a}"
    return Problem(
        key=f"{sign},{a},{x}",
        questions=(f"Solve {term}.", f"What is x if {term}?", f"Find x: {term}."),
        answers=_answers(str(x), f"x = {x}"),
        target=str(x),
    )


def latex(rng: random.Random, max_operand: int) -> Problem:
    """Plain text to LaTeX."""
    spoken, target = latex_problem(rng, max_operand)
    return Problem(
        key=target,
        questions=(
            f"Convert to LaTeX: {spoken}.",
            f"LaTeX for {spoken}?",
            f"In LaTeX, what is {spoken}?",
        ),
        answers=_answers(target, f"${target}$"),
        target=target,
    )


KINDS: dict[str, Callable[[random.Random, int], Problem]] = {
    "addition": addition,
    "subtraction": subtraction,
    "comparison": comparison,
    "fraction": fraction,
    "equation": equation,
    "latex": latex,
}


def _draw(kind: str, n: int, seed: int, max_operand: int) -> list[Demonstration]:
    """At most `n` questions of one kind: of new operands as long as they are easily found, then new phrasings of
    known operands, and fewer than `n` when these run out too."""
    rng = random.Random(f"{seed}/{kind}")
    keys: set[str] = set()
    prompts: set[str] = set()
    found: list[Demonstration] = []
    misses = 0
    while len(found) < n and misses < 2 * _MAX_MISSES:
        problem = KINDS[kind](rng, max_operand)
        prompt, answer = rng.choice(problem.questions), rng.choice(problem.answers)
        if prompt in prompts or (problem.key in keys and misses < _MAX_MISSES):
            misses += 1
            continue
        misses = 0 if problem.key not in keys else misses
        keys.add(problem.key)
        prompts.add(prompt)
        found.append(
            Demonstration(
                source=SOURCE,
                license=LICENSE,
                group=f"{SOURCE}/{kind}/{problem.key}",
                task=kind,
                prompt=prompt,
                answer=answer,
                target=problem.target,
            )
        )
    return found


def generate(kinds: Sequence[str], *, n_questions: int, max_operand: int, seed: int) -> list[Demonstration]:
    """About equally many questions of each kind, `n_questions` in all; a function of the arguments alone."""
    share, rest = divmod(n_questions, max(1, len(kinds)))
    found: list[Demonstration] = []
    for number, kind in enumerate(kinds):
        found += _draw(kind, share + (number < rest), seed, max_operand)
    return found
