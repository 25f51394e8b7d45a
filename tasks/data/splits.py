"""Assign groups to splits by a hash of their name, so that a group keeps its split when others come and go.

The hash is not seeded: a new seed must not move what was held out into training text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tasks.data.records import PREFERENCE, TEST, TRAIN, VALIDATION

if TYPE_CHECKING:
    from tasks.parameter_sections import Splits


def unit_hash(*parts: str) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    digest = hashlib.sha256("\x00".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign(groups: Iterable[str], shares: Splits) -> dict[str, str]:
    """Map each group to test, validation or train by its hash.

    With three groups or more no split stays empty: it gets the group of the lowest hash of the fullest split.
    This happens only for very small data, and there the splits of groups may change when others come.
    """
    hashes = {group: unit_hash("split", group) for group in set(groups)}
    members: dict[str, list[str]] = {TRAIN: [], VALIDATION: [], TEST: []}
    for group in sorted(hashes, key=lambda g: (hashes[g], g)):
        value = hashes[group]
        split = TEST if value < shares.test else VALIDATION if value < shares.test + shares.validation else TRAIN
        members[split].append(group)
    for empty in [split for split, of in members.items() if not of]:
        fullest = max(members.values(), key=len)
        if len(fullest) > 1:
            members[empty].append(fullest.pop(0))
    return {group: split for split, of in members.items() for group in of}


def split_of_demonstration(key: str, group_split: str, shares: Splits) -> str:
    """The split of its group, but for the demonstrations of training groups that preferences keep for themselves;
    `shares.preference` is a share of the whole, held-out groups included."""
    if group_split != TRAIN:
        return group_split
    of_training = shares.preference / (1 - shares.validation - shares.test)
    return PREFERENCE if unit_hash("preference", key) < of_training else TRAIN
