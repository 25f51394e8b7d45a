"""What tests of audits share: alter files, and read reports."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tasks.lineage.audit import examination
from tasks.lineage.audit.findings import Report


@contextmanager
def altered(path: Path, content: bytes | None) -> Iterator[None]:
    """The file with other content, or gone."""
    before, mode = path.read_bytes(), path.stat().st_mode
    path.chmod(0o600)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)
        path.chmod(mode)


def names(report: Report, *parts: str) -> bool:
    return any(all(part in finding.place for part in parts) for finding in report.findings)


def told(report: Report) -> str:
    return "\n".join(f"{finding.place}: {finding.found}" for finding in report.findings) or "no finding"


def flipped(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


def report_of(checkout, **options):
    return examination.of_checkout(checkout, **options).report


def places(report):
    return [finding.place for finding in report.findings]


def newest_values(checkout):
    return yaml.safe_load((checkout.root / "params.yaml").read_text())
