"""The programmatic judge: maths answers by exact verification, prose by likeness to a reference and by form.

A maths answer is correct (score 1), well-formed but wrong (0.3), or malformed (0). Well-formed means: it ended by
itself, it reads as one of the answer formats, and its value has the kind that the task asks for. An answer that
states an equation or a relation must state a true one to be correct. Prose is scored by chrF (Popović 2015) between
0 and 1, halved when its form is bad.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from sacrebleu.metrics import CHRF

JUDGE = "programmatic"
MATHS_TASKS = ("addition", "subtraction", "comparison", "fraction", "equation", "latex")
WELL_FORMED_SCORE = 0.3
BAD_FORM_FACTOR = 0.5
MAX_PROSE_CHARS = 600


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`score` orders answers to one prompt; `correct` is exact match; `well_formed` is about form alone."""

    score: float
    correct: bool
    well_formed: bool


_INTEGER = r"-?\d+"
_VALUE = rf"{_INTEGER}(?:/\d+)?"
_LEAD = re.compile(
    r"(?:the (?:final )?answer is|the (?:sum|difference|result) is|it is|in latex:|(?:the solution is )?x =|x is)\s+",
    re.IGNORECASE,
)
_RELATION = re.compile(rf"({_INTEGER}) ([<>]) ({_INTEGER})")
_IS_LARGER = re.compile(rf"({_INTEGER}) is (?:larger|smaller)")
_SUM = re.compile(rf"({_VALUE}) ([+-]) ({_VALUE})")
_VALUE_ALONE = re.compile(_VALUE)
_LATEX_FRACTION = re.compile(r"\\frac\{(-?\d+)\}\{(\d+)\}")
_LATEX_TEXT = re.compile(r"[A-Za-z0-9\\{}\[\]()^_+\-*/=,. ]+")
_LATEX_COMMANDS = frozenset({"frac", "sqrt", "sum"})
_WORD_RUN = 4


def canonical(value: str) -> str:
    """One spelling for equal values: no dollars, \\( \\), last full stop, or spaces but between digits;
    x^2 is x^{2}."""
    value = value.strip()
    if value.endswith("."):
        value = value[:-1].rstrip()
    for left, right in (("$", "$"), ("\\(", "\\)")):
        if value.startswith(left) and value.endswith(right) and len(value) > len(left) + len(right):
            value = value[len(left) : -len(right)].strip()
    value = re.sub(r"\\([dt])frac", r"\\frac", value)
    value = re.sub(r"\\(left|right)(?=[()\[\]])", "", value)
    value = re.sub(r"([\^_])([A-Za-z0-9])", r"\1{\2}", value)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", value)


def extract(answer_text: str) -> str | None:
    """The final answer in canonical form, or None where none can be told.

    Known are a bare value, a sentence that leads to one ("The answer is 85."), a whole equation ("37 + 48 = 85"), and
    a relation ("48 > 37", "48 is larger."), which answers with what it begins with.
    """
    text = answer_text.strip()
    if not text or "\n" in text:
        return None
    bare = text.removesuffix(".")
    if match := _RELATION.fullmatch(bare) or _IS_LARGER.fullmatch(bare):
        return match[1]
    while lead := _LEAD.match(text):
        text = text[lead.end() :]
    left, equals, right = text.rpartition(" = ")
    if equals and "\\" not in left and "{" not in left:
        text = right
    return canonical(text) or None


def _is_balanced(text: str) -> bool:
    opened = []
    pairs = {"}": "{", ")": "(", "]": "["}
    for character in text:
        if character in pairs.values():
            opened.append(character)
        elif character in pairs and (not opened or opened.pop() != pairs[character]):
            return False
    return not opened


def is_latex(text: str) -> bool:
    """Whether a text is LaTeX of the kinds that are asked for: known commands with balanced brackets."""
    commands = re.findall(r"\\([A-Za-z]*)", text)
    known = all(re.match("|".join(sorted(_LATEX_COMMANDS)), command) for command in commands)
    return bool(_LATEX_TEXT.fullmatch(text)) and known and _is_balanced(text)


def _fits(task: str, value: str) -> bool:
    """Whether a canonical value is of the kind that the task asks for."""
    if task == "latex":
        return is_latex(value)
    if task == "fraction":
        return bool(_VALUE_ALONE.fullmatch(value) or _LATEX_FRACTION.fullmatch(value))
    return bool(re.fullmatch(_INTEGER, value))


def _plain(task: str, value: str) -> str:
    match = _LATEX_FRACTION.fullmatch(value) if task == "fraction" else None
    return f"{match[1]}/{match[2]}" if match else value


def _value(text: str) -> Fraction | None:
    """The exact value of `a`, `a/b`, or a sum or difference of two of them; None for anything else."""
    try:
        if match := _SUM.fullmatch(text):
            first, second = Fraction(match[1]), Fraction(match[3])
            return first + second if match[2] == "+" else first - second
        return Fraction(text) if _VALUE_ALONE.fullmatch(text) else None
    except ZeroDivisionError:
        return None


def _is_false(answer_text: str) -> bool:
    """Whether the answer states an equation or a relation of numbers that does not hold."""
    text = answer_text.strip().removesuffix(".")
    if match := _RELATION.fullmatch(text):
        low, high = (int(match[1]), int(match[3])) if match[2] == "<" else (int(match[3]), int(match[1]))
        return low >= high
    left, equals, right = text.rpartition(" = ")
    if not equals or (not _SUM.fullmatch(left) and not _VALUE_ALONE.fullmatch(left)):
        return False
    first, second = _value(left), _value(right)
    return first is None or second is None or first != second


def _judge_maths(task: str, answer_text: str, target: str, ended: bool) -> Verdict:
    found = extract(answer_text)
    if not ended or found is None or not _fits(task, found):
        return Verdict(score=0.0, correct=False, well_formed=False)
    correct = _plain(task, found) == _plain(task, canonical(target)) and not _is_false(answer_text)
    return Verdict(score=1.0 if correct else WELL_FORMED_SCORE, correct=correct, well_formed=True)


def is_well_formed_prose(text: str) -> bool:
    """Sentence-like: starts like one, ends like one, has no long repetition, is neither empty nor endless."""
    text = text.strip()
    if not 2 <= len(text) <= MAX_PROSE_CHARS:
        return False
    if not (text[0].isupper() or text[0].isdigit() or text[0] in "`\"'(") or text[-1] not in ".!?)`\"'":
        return False
    words = text.lower().split()
    runs = [tuple(words[i : i + _WORD_RUN]) for i in range(len(words) - _WORD_RUN + 1)]
    return len(runs) - len(set(runs)) <= len(runs) // 4


def similarity(answer_text: str, target: str) -> float:
    """chrF of the answer against the reference, in [0, 1], rounded so that equal answers tie on every machine."""
    return round(CHRF().sentence_score(answer_text.strip(), [target.strip()]).score / 100, 6)


def _judge_prose(answer_text: str, target: str, ended: bool) -> Verdict:
    likeness = similarity(answer_text, target)
    well_formed = ended and is_well_formed_prose(answer_text)
    correct = ended and " ".join(answer_text.split()) == " ".join(target.split())
    # In tenths: a finer difference of chrF between two short texts is noise, and such answers should tie.
    score = round(likeness if well_formed or correct else BAD_FORM_FACTOR * likeness, 1)
    return Verdict(score=score, correct=correct, well_formed=well_formed)


def judge(task: str, prompt: str, answer_text: str, target: str, *, ended: bool) -> Verdict:
    """The verdict on one answer; `ended` says that the model ended it itself, within the limit of tokens.

    `prompt` is not looked at: what it asks for is in `task` and `target`. It is taken so that a judge that reads the
    prompt can stand in the same place.
    """
    if task in MATHS_TASKS:
        return _judge_maths(task, answer_text, target, ended)
    return _judge_prose(answer_text, target, ended)


def rank(scores: Sequence[float]) -> list[int]:
    """1 for the best; equal scores share a rank, and the next rank is not skipped."""
    places = {score: place for place, score in enumerate(sorted(set(scores), reverse=True), start=1)}
    return [places[score] for score in scores]
