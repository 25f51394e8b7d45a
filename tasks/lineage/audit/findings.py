"""What an audit says: what it checked and how much of it, what it could not reach, and every finding with its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# The parts of an audit in the order in which they are checked and shown.
PARTS = ("chain", "keys", "agreement", "artifacts", "cache", "code", "tracking", "registered", "policy")
WELL, FOUND, UNANCHORED = 0, 1, 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it must be. `place`: a path below the root, a database row, or a statement's file."""

    part: str
    place: str
    expected: str
    found: str
    what_to_do: str


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """What the chain is held against: the fingerprints of the keys that may sign, and the digest of a statement.

    `place` says where this is known from: given on the command line, or the file of the checkout.
    """

    keys: tuple[str, ...]
    head: str
    place: str


@dataclass
class Report:
    """The result of an audit. Counts are by part and by what was counted."""

    anchor: Anchor | None = None
    checked: dict[str, Counter[str]] = field(default_factory=lambda: {part: Counter() for part in PARTS})
    not_reachable: dict[str, Counter[str]] = field(default_factory=lambda: {part: Counter() for part in PARTS})
    target: str | None = None
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 if all is well, 1 with findings, 3 where nothing is found but nothing anchors the chain either."""
        if self.findings:
            return FOUND
        return WELL if self.anchor is not None else UNANCHORED

    def of(self, part: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.part == part]

    def as_json(self) -> dict[str, Any]:
        return {
            "anchor": asdict(self.anchor) if self.anchor else None,
            "checked": {part: dict(counts) for part, counts in self.checked.items() if counts},
            "not_reachable": {part: dict(counts) for part, counts in self.not_reachable.items() if counts},
            "notes": self.notes,
            "findings": [asdict(finding) for finding in self.findings],
            "exit_code": self.exit_code,
        }


@dataclass(frozen=True)
class Part:
    """Where one part of an audit writes what it sees."""

    name: str
    report: Report

    def count(self, what: str, n: int = 1) -> None:
        self.report.checked[self.name][what] += n

    def missed(self, what: str, n: int = 1) -> None:
        """`n` things that could not be looked at; no finding."""
        if n:
            self.report.not_reachable[self.name][what] += n

    def note(self, text: str) -> None:
        if text not in self.report.notes:
            self.report.notes.append(text)

    def find(self, place: str, *, expected: str, found: str, do: str) -> None:
        """Add a finding, once."""
        finding = Finding(part=self.name, place=place, expected=expected, found=found, what_to_do=do)
        if finding not in self.report.findings:
            self.report.findings.append(finding)

    def equal(self, place: str, expected: Any, found: Any, *, do: str, as_text: str = "{}") -> bool:
        """Count one value and add a finding if it is not the expected one; whether it is."""
        if same(expected, found):
            return True
        self.find(place, expected=as_text.format(shown(expected)), found=as_text.format(shown(found)), do=do)
        return False

    def equal_maps(self, place: str, expected: Mapping[str, Any], found: Mapping[str, Any], *, do: str) -> None:
        """`equal` key by key; a key that is missing or too many is a finding too."""
        for key in dict.fromkeys([*expected, *found]):
            self.count_of(expected, key)
            if key not in found:
                self.find(f"{place} {key}", expected=shown(expected[key]), found="nothing", do=do)
            elif key not in expected:
                self.find(f"{place} {key}", expected="nothing", found=shown(found[key]), do=do)
            else:
                self.equal(f"{place} {key}", expected[key], found[key], do=do)

    def count_of(self, expected: Mapping[str, Any], key: str) -> None:
        if key in expected:
            self.count("values")


def same(one: Any, other: Any) -> bool:
    """Equality in which True is not 1, inside lists and mappings too; 1 is 1.0, as YAML may write either."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return set(one) == set(other) and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    return bool(one == other)


def shown(value: Any, limit: int = 200) -> str:
    """A value as one line of a finding."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plural(n: int, what: str) -> str:
    """`what` is plural: "1 statement", "2 statements", "1 run cache entry"; its first word in -s is what is counted."""
    words = what.split(" ")
    counted = next((i for i, word in enumerate(words) if word.endswith("s")), None)
    if n == 1 and counted is not None:
        word = words[counted]
        words[counted] = word[:-3] + "y" if word.endswith("ies") else word[:-1]
    return f"{n:,} {' '.join(words)}"


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Names in one line, the first few."""
    every = list(names)
    return ", ".join(every[:limit]) + (f" and {len(every) - limit} more" if len(every) > limit else "")
