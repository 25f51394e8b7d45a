"""SPDX licence expressions against patterns: what `policy.yaml` allows and forbids.

https://spdx.github.io/spdx-spec/v3.0.1/annexes/spdx-license-expressions/
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

_SPECIAL = ("NOASSERTION", "NONE")  # SPDX's words for "not known" and "without a licence"
_OWN = "licenseref-"


@dataclass(frozen=True)
class Refusal:
    """`rule`: allowed_licenses or forbidden_licenses; `detail` tells more of the licence, with its own separator."""

    rule: str
    allowed: str
    detail: str


@cache
def known_identifiers() -> tuple[str, ...]:
    """The licences of the SPDX list."""
    from license_expression import get_spdx_licensing

    symbols = get_spdx_licensing().known_symbols
    return tuple(
        sorted(k for k, symbol in symbols.items() if not symbol.is_exception and not k.lower().startswith(_OWN))
    )


def check_pattern(pattern: str) -> str:
    """`pattern`, if it can match a licence: an SPDX identifier, LicenseRef-NAME, or a pattern of them with `*`.

    Raises ValueError otherwise: a forbidden licence that is spelled wrong would forbid nothing.
    """
    text = pattern.lower()
    if text.startswith(_OWN) or pattern in _SPECIAL:
        return pattern
    if any(_matches(identifier, pattern) for identifier in (*known_identifiers(), *_SPECIAL)):
        return pattern
    raise ValueError(f"no SPDX licence is called that{_suggestion(pattern)}; own licences are named LicenseRef-NAME")


def why_refused(license: str, allowed: Sequence[str], forbidden: Sequence[str]) -> Refusal | None:
    """None if the expression is permitted: of alternatives (OR) one is enough, of parts (AND) all must be."""
    expression = _parse(license)
    text = license if expression is None else expression.render()
    if _permits(expression, text, allowed, forbidden):
        return None
    if not _permits(expression, text, ["*"], forbidden):
        return Refusal("forbidden_licenses", f"none of {', '.join(forbidden)}", _note(license))
    return Refusal("allowed_licenses", f"only {', '.join(allowed) or 'none'}", _note(license))


def _parse(license: str) -> Any:
    """The expression; None for text that is not one, which then counts as a single name."""
    from license_expression import ExpressionError, Licensing, ParseError

    try:
        return Licensing().parse(license)
    except (ExpressionError, ParseError):
        return None


def _permits(expression: Any, text: str, allowed: Sequence[str], forbidden: Sequence[str]) -> bool:
    from license_expression import AND, OR, LicenseWithExceptionSymbol

    if isinstance(expression, AND | OR):
        parts = [_permits(part, part.render(), allowed, forbidden) for part in expression.args]
        return all(parts) if isinstance(expression, AND) else any(parts)
    names = [text]
    if isinstance(expression, LicenseWithExceptionSymbol):  # an exception only adds permissions
        names.append(expression.license_symbol.key)
    return not _any_matches(names, forbidden) and _any_matches(names, allowed)


def _any_matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(_matches(name, pattern) for name in names for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    """SPDX identifiers are compared without regard to case; `*` alone is a wildcard."""
    return fnmatch.fnmatchcase(name.strip().lower(), pattern.lower().replace("[", "[[]"))


def _note(license: str) -> str:
    """What is odd about the names in a licence that stands in the data."""
    from license_expression import Licensing, get_spdx_licensing

    expression = _parse(license)
    names = Licensing().license_keys(expression, unique=True) if expression is not None else [license]
    known = {name.lower() for name in get_spdx_licensing().known_symbols}
    if any(name in _SPECIAL for name in names):
        return " (it is not known)"
    odd = [name for name in names if name.lower() not in known and not name.lower().startswith(_OWN)]
    return f", {odd[0]!r} is no SPDX licence{_suggestion(odd[0])}" if odd else ""


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name.replace(" ", "-").lower(), [i.lower() for i in known_identifiers()], n=1)
    spelled = next((i for i in known_identifiers() if close and i.lower() == close[0]), None)
    return f" (did you mean {spelled}?)" if spelled else ""
