"""Unicode normalisation, and the length and quality filters that every source goes through."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

# Control characters but for tab and newline, the byte order mark, zero-width space and soft hyphen.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\u200b\u00ad]")
_LINE_ENDS = re.compile("\r\n?|\u2028|\u2029|\x85")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
MIN_LINES_FOR_REPETITION = 8
MAX_REPEATED_LINE_FRACTION = 0.5


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`data.filters` of params.yaml."""

    min_chars: int
    max_chars: int
    min_letter_fraction: float


def normalise(text: str) -> str:
    """NFC, `\\n` line ends, no control or invisible characters, no trailing blanks, at most one blank line.

    Lone surrogates, which no UTF-8 file can hold, become U+FFFD. Applying it twice changes nothing more.
    """
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    text = _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text))
    text = _BLANK_LINES.sub("\n\n", _TRAILING.sub("", unicodedata.normalize("NFC", text)))
    return text.strip("\n \t")


def letter_fraction(text: str) -> float:
    """Letters among the characters that are not white space; 0 for an empty text."""
    visible = "".join(text.split())
    return sum(map(str.isalpha, visible)) / len(visible) if visible else 0.0


def why_rejected(text: str, limits: Limits) -> tuple[str, str] | None:
    """The (reason, detail) for which a normalised text is left out, or None if it stays."""
    if len(text) < limits.min_chars:
        return "too_short", f"{len(text)} characters, at least {limits.min_chars}"
    if len(text) > limits.max_chars:
        return "too_long", f"{len(text)} characters, at most {limits.max_chars}"
    if (fraction := letter_fraction(text)) < limits.min_letter_fraction:
        return "few_letters", f"{fraction:.2f} letters, at least {limits.min_letter_fraction}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) >= MIN_LINES_FOR_REPETITION:
        line, count = Counter(lines).most_common(1)[0]
        if count / len(lines) > MAX_REPEATED_LINE_FRACTION:
            return "repetitive", f"{count} of {len(lines)} lines are {line[:60]!r}"
    return None
