"""Requests whose records are listed but not purged yet: `.axon/forget.json`. It holds digests and no text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.files import read_json, write_json
from tasks.runtime.checkout import Checkout


def _path(checkout: Checkout) -> Path:
    return checkout.state / "forget.json"


def read(checkout: Checkout) -> list[dict[str, Any]]:
    """The requests, oldest first. Raises `UserError` if the file is damaged."""
    path = _path(checkout)
    if not path.is_file():
        return []
    try:
        return [dict(note) for note in read_json(path)]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it: the purge then goes by what dvc.lock does not record.",
            exit_code=1,
        ) from None


def add(checkout: Checkout, note: Mapping[str, Any]) -> None:
    write_json(_path(checkout), [*read(checkout), note])


def clear(checkout: Checkout) -> None:
    _path(checkout).unlink(missing_ok=True)
