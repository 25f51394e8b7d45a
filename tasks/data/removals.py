"""Drop from the candidates of the data stage what the removal list names, before anything else is done with them.

The list names a record by the digest of its id, by digests of its content, and by band hashes of its MinHash
signature, from which a near-duplicate that turns up later is known. docs/forget.md says what these reveal.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from datasketch import MinHash

from tasks.data import near_duplicates, python_docs, removal_list
from tasks.data.cleaning import normalise
from tasks.data.records import Demonstration, Record, Reject, TextRecord, record_id
from tasks.data.removal_list import BAND_BYTES, N_BANDS, Entry

if TYPE_CHECKING:
    from tasks.parameter_sections import NearDuplicates
    from tasks.steps.context import FanOut

# Bands of 4 MinHash values, hashed: a band is equal with probability s**4 for a similarity s, so that 8 equal ones
# of 32 mean about 0.7. Single values would let a reader guess the text five words at a time; four at once do not.
ROWS = 4
N_PERMUTATIONS = N_BANDS * ROWS
MIN_EQUAL_BANDS = 8

# A prompt or an answer counts as a text of its own only if it is long enough to be one.
MIN_PART_WORDS = 8

T = TypeVar("T", TextRecord, Demonstration, Reject)


@dataclass(frozen=True)
class Removals:
    """The list as read. False where it is empty: then the outputs are those without a list."""

    entries: tuple[Entry, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.entries)

    @cached_property
    def ids(self) -> frozenset[str]:
        return frozenset(digest for entry in self.entries for digest in (entry.record, *entry.also))

    @cached_property
    def contents(self) -> frozenset[str]:
        return frozenset(digest for entry in self.entries for digest in entry.content)

    @cached_property
    def _by_band(self) -> dict[tuple[int, bytes], list[int]]:
        found: dict[tuple[int, bytes], list[int]] = {}
        for number, entry in enumerate(self.entries):
            for key in _split(entry.bands) if entry.bands is not None else ():
                found.setdefault(key, []).append(number)
        return found

    def lists(self, record: Record | Reject) -> bool:
        """Whether the record's id or the digest of its content, or of a part long enough, is listed."""
        if any(id_digest(known) in self.ids for known in known_ids(record)):
            return True
        return any(content_digest(text) in self.contents for text in [*forms(record), *parts(record)])

    def is_near(self, bands: bytes) -> bool:
        """Whether a text with these bands is about as similar to a removed one as a near-duplicate."""
        equal = Counter(number for key in _split(bands) for number in self._by_band.get(key, ()))
        return any(count >= MIN_EQUAL_BANDS for count in equal.values())


def id_digest(identity: bytes) -> str:
    """What the list names a record id (16 bytes) by."""
    return hashlib.sha256(identity).hexdigest()


def content_digest(text: str) -> str:
    """What the list names a content by; the parts of a demonstration are joined by a line end."""
    return hashlib.sha256(normalise(text.replace("\x00", "\n")).encode()).hexdigest()


def known_ids(record: Record | Reject) -> set[bytes]:
    """The ids under which a record with normalised text may stand in an output or among rejects.

    A held-out text of which paragraphs were cut has another one, which only the outputs tell.
    """
    found = {record.record_id}
    if isinstance(record, Demonstration):
        found.add(record_id(record.source, record.content.replace("\x00", "\n")))
    return found | {record_id(record.source, text) for text in forms(record)[1:]}


def forms(record: Record | Reject) -> list[str]:
    """The content of a record as read, and under the heading that the text of a docstring gets."""
    if isinstance(record, Reject):
        return [record.text]
    if not isinstance(record, Demonstration) and record.source == python_docs.SOURCE:
        return [record.content, python_docs.with_heading(record).text]
    return [record.content]


def parts(record: Record | Reject) -> list[str]:
    """Prompt and answer of a demonstration, if they are long enough to be another record's text."""
    if not isinstance(record, Demonstration):
        return []
    return [part for part in (record.prompt, record.answer) if len(part.split()) >= MIN_PART_WORDS]


def bands_of(text: str, template: MinHash | None = None) -> bytes:
    """`N_BANDS` hashes of `BAND_BYTES` bytes, each of `ROWS` consecutive MinHash values."""
    values = near_duplicates.signature(text, N_PERMUTATIONS, template).astype("<u4").reshape(N_BANDS, ROWS)
    return b"".join(hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest()[:BAND_BYTES] for row in values)


def band_texts(item: Mapping[str, Any]) -> list[str]:
    """For fan-out: `{"texts": […]}` to the bands of each, in base64."""
    template = near_duplicates.template(N_PERMUTATIONS)
    return [base64.b64encode(bands_of(text, template)).decode() for text in item["texts"]]


def _split(bands: bytes) -> list[tuple[int, bytes]]:
    return [(i, bands[i * BAND_BYTES : (i + 1) * BAND_BYTES]) for i in range(N_BANDS)]


def read(root: Path) -> Removals:
    """The list below `root`; see `removal_list.read`."""
    return Removals(removal_list.read(root))


@dataclass(frozen=True, kw_only=True)
class Dropped(Generic[T]):
    """`signatures` by content are those that had to be computed; the search for near-duplicates takes them over."""

    kept: list[T]
    removed: list[T]
    signatures: Mapping[str, np.ndarray]


def drop(
    records: Sequence[T],
    name: str,
    listed: Removals,
    like: NearDuplicates | None,
    fan_out: FanOut,
    known: Mapping[str, np.ndarray] | None = None,
) -> Dropped[T]:
    """Part `records` (with normalised text) into what stays and what the list removes.

    What is near to a listed record goes, and the whole cluster of near-duplicates around whatever goes, so that none
    takes its place. Without `like` (damaged lines) there are no clusters. `known` are signatures of all contents.
    """
    if not listed or not records:
        return Dropped(kept=list(records), removed=[], signatures={})
    compared = [_compared(record) for record in records]
    near = _near([text for texts in compared for text in texts], f"{name}_bands", listed, fan_out)
    named = map(listed.lists, records)
    gone = {c[0] for c, is_named in zip(compared, named, strict=True) if is_named or not near.isdisjoint(c)}
    signatures = known or {}
    if gone and like is not None:
        contents = list(dict.fromkeys(texts[0] for texts in compared))
        if not known:
            signed = near_duplicates.sign_all(f"{name}_with_removed", contents, like.permutations, fan_out)
            signatures = dict(zip(contents, signed, strict=True))
        first = near_duplicates.clusters([signatures[content] for content in contents], like.threshold)
        clusters = {first[i] for i, content in enumerate(contents) if content in gone}
        gone |= {content for i, content in enumerate(contents) if first[i] in clusters}
    return Dropped(
        kept=[record for record in records if content_of(record) not in gone],
        removed=[record for record in records if content_of(record) in gone],
        signatures=signatures,
    )


def _near(texts: Sequence[str], name: str, listed: Removals, fan_out: FanOut) -> set[str]:
    """Those of `texts` that are near to a listed record."""
    if all(entry.bands is None for entry in listed.entries):
        return set()
    distinct = list(dict.fromkeys(texts))
    bands = near_duplicates.deal(name, f"{__name__}:band_texts", distinct, {}, fan_out)
    return {text for text, encoded in zip(distinct, bands, strict=True) if listed.is_near(base64.b64decode(encoded))}


def _compared(record: Record | Reject) -> list[str]:
    """The texts in which a record may be near to another: its content first, then its long parts."""
    return [content_of(record), *parts(record)]


def content_of(record: Record | Reject) -> str:
    return record.text if isinstance(record, Reject) else record.content
