"""Find what looks like personal data or a secret in a text: where and of which kind, never the value.

Each detector is a pattern with a check behind it, so that a finding means something definite. What is known to
belong to nobody (reserved domains, documentation addresses, test card numbers) is left out. Names, postal addresses
and anything that only its meaning gives away are not looked for.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

VERSION = 1  # of these definitions: facts found under another one are looked for anew


@dataclass(frozen=True, order=True)
class Span:
    """Characters `start` to `end` (not included) of a text, and what they look like."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Detector:
    """`hints`: one of them stands in every match; a fast way to pass over most texts."""

    kind: str
    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    is_real: Callable[[re.Match[str]], bool]


def _always(_: re.Match[str]) -> bool:
    return True


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())


# RFC 2606 and 6761: domains that are reserved for examples and tests.
_RESERVED_DOMAIN = re.compile(r"(?:.*\.)?(?:example\.(?:com|net|org|edu)|example|test|invalid|localhost|local)")


def _is_address(match: re.Match[str]) -> bool:
    return not _RESERVED_DOMAIN.fullmatch(match["domain"].lower())


def _is_international_number(match: re.Match[str]) -> bool:
    """E.164: 8 to 15 digits with the country code. Digits without a break count from 11 on, and dots where there are
    at least two: +2147483647 and +0.5 are figures."""
    text = match[0]
    digits = _digits(text)
    is_figure = text.count(".") == 1 or (text[1:].isdigit() and len(digits) < 11)
    return 8 <= len(digits) <= 15 and not is_figure and not _is_fictional(digits)


def _is_fictional(digits: str) -> bool:
    """555-0100 to 555-0199, which the North American plan keeps for fiction."""
    return digits[-7:-2] == "55501"


def _is_north_american_number(match: re.Match[str]) -> bool:
    return not _is_fictional(_digits(match[0]))


_SECTION_BELOW = 32


def _is_public_address(match: re.Match[str]) -> bool:
    """A global unicast address. Four numbers below 32 are read as a version or the number of a section."""
    parts = [int(part) for part in match[0].split(".")]
    if any(part > 255 for part in parts) or all(part < _SECTION_BELOW for part in parts):
        return False
    address = ipaddress.IPv4Address(".".join(str(part) for part in parts))
    return address.is_global and not address.is_multicast


# Numbers that payment services publish for tests.
_TEST_CARDS = frozenset((
    "4111111111111111", "4242424242424242", "4012888888881881", "4000056655665556", "4000000000000002",
    "5555555555554444", "5105105105105100", "2223003122003222", "5200828282828210", "378282246310005",
    "371449635398431", "378734493671000", "6011111111111117", "6011000990139424", "3056930009020004",
    "36227206271667", "30569309025904", "38520000023237", "3530111333300000", "3566002020360505",
    "6200000000000005",
))  # fmt: skip
# First digits and length of the issuers' numbers (ISO/IEC 7812).
_ISSUERS = (
    (re.compile(r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|6011|64[4-9]|65|62|35(?:2[89]|[3-8])"), 16),
    (re.compile(r"3[47]"), 15),
    (re.compile(r"3(?:0[0-5]|[689])"), 14),
)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _is_card(match: re.Match[str]) -> bool:
    digits = _digits(match[0])
    of_an_issuer = any(len(digits) == length and prefix.match(digits) for prefix, length in _ISSUERS)
    return of_an_issuer and len(set(digits)) > 1 and digits not in _TEST_CARDS and luhn(digits)


# ISO 13616 registry: length of the account numbers of each country.
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15,
    "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19,
    "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip
# The numbers that standards and banks print as examples.
_EXAMPLE_IBANS = frozenset({"GB82WEST12345698765432", "GB29NWBK60161331926819", "DE89370400440532013000",
                            "FR1420041010050500013M02606", "CH9300762011623852957", "NL91ABNA0417164300"})  # fmt: skip


def mod97(iban: str) -> bool:
    """The checksum of ISO 13616: country and check digits to the end, letters as 10 to 35, remainder 1 of 97."""
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def _is_iban(match: re.Match[str]) -> bool:
    iban = match[0].replace(" ", "")
    return len(iban) == _IBAN_LENGTHS.get(iban[:2]) and iban not in _EXAMPLE_IBANS and mod97(iban)


def _is_aws_key(match: re.Match[str]) -> bool:
    return "EXAMPLE" not in match[0]  # as in Amazon's own documentation: AKIAIOSFODNN7EXAMPLE


DETECTORS = (
    Detector(
        "email", ("@",),
        re.compile(r"(?<![\w.%+-])[A-Za-z0-9][\w.%+-]{0,63}@(?P<domain>(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24})(?![\w(@])",
                   re.ASCII),
        _is_address,
    ),
    Detector(
        "phone", ("+",),
        re.compile(r"(?<![\w.+*/^)\]-])\+[1-9](?:[ .-]?\(?\d\)?){7,16}(?![\d.]?\d|[A-Za-z_])", re.ASCII),
        _is_international_number,
    ),
    Detector(
        "phone", ("-", "."),
        re.compile(r"(?<![\w.+-])(?:\([2-9]\d\d\) ?[2-9]\d\d([-.])\d{4}|[2-9]\d\d([-.])[2-9]\d\d\2\d{4})(?![\w-]|\.\d)",
                   re.ASCII),
        _is_north_american_number,
    ),
    Detector(
        "ipv4", (".",),
        re.compile(r"(?<![\w.-])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\w|\.\w|-[A-Za-z])", re.ASCII),
        _is_public_address,
    ),
    Detector(
        "credit_card", tuple("3456"),
        re.compile(r"(?<![\w.,/-])(?:\d{14,16}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{4,5})"
                   r"(?![\w/-]|\.\d)", re.ASCII),
        _is_card,
    ),
    Detector(
        "iban", tuple("0123456789"),
        re.compile(r"(?<![\w/.-])[A-Z]{2}\d{2}(?:[A-Z0-9]{11,28}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?![\w/-])",
                   re.ASCII),
        _is_iban,
    ),
    Detector(
        "aws_key_id", ("AKIA", "ASIA"),
        re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
        _is_aws_key,
    ),
    Detector(
        "private_key", ("-----BEGIN ",),
        re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
        _always,
    ),
    Detector(
        "access_token", ("gh", "glpat-", "hf_", "xox", "AIza"),
        re.compile(r"(?<![A-Za-z0-9_])(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{82}|glpat-[\w-]{20}|hf_[A-Za-z0-9]{34}"
                   r"|xox[abprs]-[A-Za-z0-9-]{10,72}|AIza[\w-]{35})(?![A-Za-z0-9_])", re.ASCII),
        _always,
    ),
)  # fmt: skip
KINDS = tuple(dict.fromkeys(detector.kind for detector in DETECTORS))


def find(text: str) -> list[Span]:
    """All findings in `text`, in the order of their places; none lies within another (a card number in an IBAN)."""
    found: list[Span] = []
    for span in sorted(_find(text), key=lambda s: (s.start, -s.end, s.kind)):
        if not found or span.end > found[-1].end:
            found.append(span)
    return found


def _find(text: str) -> Iterator[Span]:
    for detector in DETECTORS:
        if any(hint in text for hint in detector.hints):
            for match in detector.pattern.finditer(text):
                if detector.is_real(match):
                    yield Span(match.start(), match.end(), detector.kind)
