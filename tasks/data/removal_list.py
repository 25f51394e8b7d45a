"""The file `sources/removals.json`: its form, strictly checked. It holds digests and no text."""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.files import write_json

PATH = Path("sources") / "removals.json"
VERSION = 1
MAX_REASON_CHARS = 200
N_BANDS, BAND_BYTES = 32, 8

_HEX = re.compile(r"[0-9a-f]{64}")
_REQUIRED, _OPTIONAL = ("record", "content", "cluster", "when", "reason"), ("also", "bands")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One removed record; all but `when` (ISO date), `reason` and `bands` are SHA-256 in hex.

    record: of its 16-byte id; also: of other ids it is known by; content: of its normalised content in every form;
    cluster: the `record` of the one it was removed with, as its near-duplicate or as such a one's origin;
    bands: see `tasks.data.removals`, None for a record that draws no others with it.
    """

    record: str
    content: tuple[str, ...]
    cluster: str | None
    when: str
    reason: str
    also: tuple[str, ...] = ()
    bands: bytes | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        bands = base64.b64encode(self.bands).decode() if self.bands is not None else None
        return {
            "record": self.record,
            "also": list(self.also),
            "content": list(self.content),
            "cluster": self.cluster,
            "bands": bands,
            "when": self.when,
            "reason": self.reason,
        }


def read(root: Path) -> tuple[Entry, ...]:
    """The entries of the list below `root`, none without a list. Raises `UserError` that names what is wrong in it."""
    path = root / PATH
    try:
        tree = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_without_doubles)
    except FileNotFoundError:
        return ()
    except (ValueError, RecursionError) as error:
        raise _wrong([f"it is not JSON in UTF-8: {error}"]) from None
    if not isinstance(tree, dict) or set(tree) != {"version", "removed"}:
        raise _wrong(['it must be {"version": 1, "removed": […]}, with no other key'])
    if tree["version"] != VERSION or isinstance(tree["version"], bool):
        raise _wrong([f"version={tree['version']!r} must be {VERSION}"])
    if not isinstance(tree["removed"], list):
        raise _wrong(["removed must be a list"])
    faults = [f"removed[{i}]{fault}" for i, row in enumerate(tree["removed"]) for fault in _faults(row)]
    if faults:
        raise _wrong(faults)
    entries = tuple(_entry(row) for row in tree["removed"])
    doubled = [digest for digest, n in Counter(entry.record for entry in entries).items() if n > 1]
    if doubled:
        raise _wrong([f"record {digest} is listed twice" for digest in doubled])
    return entries


def write(root: Path, entries: Iterable[Entry]) -> None:
    """Write the list atomically, in the order of `record`."""
    rows = [entry.to_json() for entry in sorted(entries, key=lambda entry: entry.record)]
    write_json(root / PATH, {"version": VERSION, "removed": rows})


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a key stands twice among {sorted(key for key, _ in pairs)}")
    return dict(pairs)


def _wrong(faults: list[str]) -> UserError:
    listed = "\n".join(f"  - {fault}" for fault in faults[:10])
    more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
    return UserError(
        f"{PATH} is not a removal list:\n{listed}{more}\n"
        f"Restore it (git checkout {PATH}), or write it with axon forget."
    )


def _faults(row: Any) -> list[str]:
    """What is wrong with one entry, each with the place in it."""
    if not isinstance(row, dict):
        return [" must be an object"]
    found = [f" has no {key}" for key in _REQUIRED if key not in row]
    found += [f".{key} is not a known key" for key in row if key not in (*_REQUIRED, *_OPTIONAL)]
    if found:
        return found
    for key in ("record", "cluster"):
        if not _is_digest(row[key]) and not (key == "cluster" and row[key] is None):
            found.append(f".{key}={row[key]!r} must be 64 hex digits" + (" or null" if key == "cluster" else ""))
    for key in ("content", "also"):
        values = row.get(key, [])
        if not isinstance(values, list) or not all(map(_is_digest, values)):
            found.append(f".{key} must be a list of texts of 64 hex digits")
    if not _is_date(row["when"]):
        found.append(f".when={row['when']!r} must be a date like 2026-01-31")
    if not isinstance(row["reason"], str) or len(row["reason"]) > MAX_REASON_CHARS:
        found.append(f".reason must be text of at most {MAX_REASON_CHARS} characters")
    if row.get("bands") is not None and _bands(row["bands"]) is None:
        found.append(f".bands must be null or base64 of {N_BANDS * BAND_BYTES} bytes")
    return found


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _HEX.fullmatch(value) is not None


def _is_date(value: Any) -> bool:
    try:
        return isinstance(value, str) and datetime.date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def _bands(value: Any) -> bytes | None:
    try:
        bands = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError):
        return None
    return bands if len(bands) == N_BANDS * BAND_BYTES else None


def _entry(row: Mapping[str, Any]) -> Entry:
    return Entry(
        record=row["record"],
        content=tuple(row["content"]),
        cluster=row["cluster"],
        when=row["when"],
        reason=row["reason"],
        also=tuple(row.get("also", ())),
        bands=_bands(row["bands"]) if row.get("bands") is not None else None,
    )
