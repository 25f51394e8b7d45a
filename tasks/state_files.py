"""Read what a checkout has noted of itself below `.axon/`: a damaged note is named, with what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tasks.errors import UserError
from tasks.files import read_json

Note = TypeVar("Note")
# What reading JSON that is not what was written may raise; JSON may also be nested too deeply to be read.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def read_note(path: Path, take: Callable[[Any], Note], *, do: str) -> Note:
    """What `take` makes of the JSON at `path`; a `UserError` with what to `do` where it is not what was written."""
    try:
        return take(read_json(path))
    except DAMAGE as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}). {do}", exit_code=1) from None
