"""Plain-text mathematics and the LaTeX for it: fractions, powers, roots, polynomials and sums."""

from __future__ import annotations

import random

_VARIABLES = "xyznabt"


def _number(rng: random.Random, max_operand: int) -> int:
    return rng.randint(2, max_operand)


def _linear(rng: random.Random, max_operand: int) -> str:
    return f"{rng.choice(_VARIABLES)} {rng.choice('+-')} {_number(rng, max_operand)}"


def fraction(rng: random.Random, max_operand: int) -> tuple[str, str]:
    above = str(_number(rng, max_operand)) if rng.random() < 0.5 else _linear(rng, max_operand)
    below = str(_number(rng, max_operand)) if rng.random() < 0.5 else _linear(rng, max_operand)
    target = f"\\frac{{{above}}}{{{below}}}"
    if rng.random() < 0.3:
        return f"{above} over {below}", target
    bracketed = [f"({part})" if " " in part else part for part in (above, below)]
    return f"{bracketed[0]}/{bracketed[1]}", target


def power(rng: random.Random, max_operand: int) -> tuple[str, str]:
    base = rng.choice(_VARIABLES) if rng.random() < 0.4 else f"({_linear(rng, max_operand)})"
    exponent = _number(rng, max_operand)
    target = f"{base}^{{{exponent}}}"
    return (f"{base} to the power of {exponent}" if rng.random() < 0.3 else f"{base}^{exponent}"), target


def root(rng: random.Random, max_operand: int) -> tuple[str, str]:
    inside = str(_number(rng, max_operand)) if rng.random() < 0.3 else _linear(rng, max_operand)
    if rng.random() < 0.25:
        return f"the cube root of {inside}", f"\\sqrt[3]{{{inside}}}"
    target = f"\\sqrt{{{inside}}}"
    return (f"the square root of {inside}" if rng.random() < 0.4 else f"sqrt({inside})"), target


def polynomial(rng: random.Random, max_operand: int) -> tuple[str, str]:
    variable, degree = rng.choice(_VARIABLES), rng.randint(2, 9)
    first, last = rng.randint(2, min(9, max_operand)), _number(rng, max_operand)
    middle = f" {rng.choice('+-')} {rng.randint(2, 9)}{variable}" if rng.random() < 0.5 else ""
    tail = f"{middle} {rng.choice('+-')} {last}"
    return f"{first}{variable}^{degree}{tail}", f"{first}{variable}^{{{degree}}}{tail}"


def total(rng: random.Random, max_operand: int) -> tuple[str, str]:
    last, degree = _number(rng, max_operand), rng.randint(1, 5)
    spoken, term = ("k", "k") if degree == 1 else (f"k^{degree}", f"k^{{{degree}}}")
    first = rng.randint(0, 1)
    return f"the sum of {spoken} for k = {first} to {last}", f"\\sum_{{k={first}}}^{{{last}}} {term}"


_FORMS = (fraction, power, root, polynomial, total)


def latex_problem(rng: random.Random, max_operand: int) -> tuple[str, str]:
    """(plain text, LaTeX); exponents and limits always in braces, operators between single spaces."""
    return rng.choice(_FORMS)(rng, max_operand)
