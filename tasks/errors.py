"""The exceptions that mean something outside the place that raises them, and faults of the machine in words."""

from __future__ import annotations

import errno


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where, the value, what is allowed, what to do.

    The command line prints the message without a traceback and leaves with `exit_code`:
    2 for usage and configuration, 1 for a run that failed.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(Exception):
    """The work was asked to stop, and did where it can go on later."""


_FULL = "there is no space left on the disk"
_OPEN = "too many files are open"
_DENIED = "permission is denied"
_BY_NUMBER = {
    errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EFBIG: _FULL,
    errno.EMFILE: _OPEN, errno.ENFILE: _OPEN,
    errno.EACCES: _DENIED, errno.EPERM: _DENIED, errno.EROFS: _DENIED,
}  # fmt: skip
# What libraries that are not written in Python say instead of raising OSError.
_BY_TEXT = {
    "no space left on device": _FULL,
    "database or disk is full": _FULL,
    "too many open files": _OPEN,
    "permission denied": _DENIED,
    "attempt to write a readonly database": _DENIED,
}
_WHAT_TO_DO = {
    _FULL: "Free some (`axon clean`, `dvc gc -w`)",
    _OPEN: "Raise the limit (`ulimit -n 65536`)",
    _DENIED: "Give this user the right to write there",
}


def machine_fault(error: BaseException) -> str | None:
    """What the machine refused, where, and what to do, if that is behind `error`; None for any other error."""
    found, where = _refused(error)
    if found is None:
        return None
    place = f" ({where})" if where else ""
    return f"{found}{place}. {_WHAT_TO_DO[found]} and run again: it goes on from what was saved."


def machine_refusal(error: BaseException) -> str | None:
    """What the machine refused, in a few words, if that is behind `error`; None for any other error."""
    return _refused(error)[0]


def _refused(error: BaseException) -> tuple[str | None, str | None]:
    """(what the machine refused, the file), both None for an error of another kind."""
    seen: BaseException | None = error
    while seen is not None:
        found = _BY_NUMBER.get(seen.errno or 0) if isinstance(seen, OSError) else None
        found = found or next((what for text, what in _BY_TEXT.items() if text in str(seen).lower()), None)
        if found:
            return found, getattr(seen, "filename", None)
        seen = seen.__cause__ or seen.__context__
    return None, None
