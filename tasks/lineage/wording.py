"""How a digest, a time, a size or a setting is written for a person."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tasks.lineage.statement import Statement

# What people tune or ask for first, in this order; the rest follows by name.
_FIRST = (
    "learning_rate",
    "n_steps",
    "n_epochs",
    "n_iterations",
    "batch_size",
    "seq_len",
    "kl_coef",
    "beta",
    "vocab_size",
    "d_model",
    "n_layers",
    "n_prompts",
    "temperature",
)


def short(digest: str) -> str:
    """The first 8 characters: enough to name it on the command line."""
    return digest[:8]


def when(time: str) -> str:
    """An RFC 3339 time in UTC, to the minute."""
    return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M UTC")


def seconds(statement: Statement) -> float:
    return (datetime.fromisoformat(statement.finished) - datetime.fromisoformat(statement.started)).total_seconds()


def duration(length_s: float) -> str:
    """72 as "1 min 12 s"."""
    if length_s < 60:
        return f"{length_s:.0f} s"
    minutes, rest = divmod(round(length_s), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(n_bytes: int) -> str:
    """Bytes with a decimal prefix."""
    amount, unit = float(n_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.5 else f"{amount:.2g} {unit}"


def value(setting: Any) -> str:
    """A setting as it stands in params.yaml, more or less: text bare, the rest as JSON."""
    return setting if isinstance(setting, str) else json.dumps(setting, ensure_ascii=False)


def flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, entry in parameters.items():
        if isinstance(entry, Mapping) and entry:
            found.update(flat(entry, f"{prefix}{key}."))
        else:
            found[prefix + key] = entry
    return found


def key_settings(statement: Statement, limit: int = 5) -> list[tuple[str, str]]:
    """The settings of the stage's own section that say most, without the section's name; what is null says little."""
    section = f"{statement.stage}."
    own = {k.removeprefix(section): v for k, v in flat(statement.parameters).items() if k.startswith(section)}
    own = {key: setting for key, setting in own.items() if not isinstance(setting, list | dict | None)}
    ranked = sorted(own, key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key))
    return [(key, value(own[key])) for key in ranked[:limit]]


def many(n: int, one: str, more: str | None = None) -> str:
    """1 "record", 2 "records", with separators of thousands."""
    return f"{n:,} {one if n == 1 else more or one + 's'}"
