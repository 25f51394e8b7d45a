"""Faults of the machine are named, wherever in a chain of errors they are, and nothing else is taken for one."""

import errno
import sqlite3

import pytest

from tasks.errors import machine_fault


def chained(cause: BaseException) -> BaseException:
    try:
        try:
            raise cause
        except Exception as error:
            raise RuntimeError("the statement cannot be written") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "models/x"), "no space left on the disk (models/x)"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (PermissionError(errno.EACCES, "Permission denied", "metrics"), "permission is denied (metrics)"),
        (OSError(errno.EROFS, "Read-only file system", "metrics"), "permission is denied"),
        (RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"), "no space left"),
        (sqlite3.OperationalError("database or disk is full"), "no space left"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "permission is denied"),
    ],
)
def test_it_is_named_with_what_to_do(error, said):
    for found in (machine_fault(error), machine_fault(chained(error))):
        assert found is not None
        assert said in found
        assert "run again" in found


def test_other_errors_are_none():
    assert machine_fault(ValueError("the disk of the plot")) is None
    assert machine_fault(FileNotFoundError(errno.ENOENT, "No such file", "params.yaml")) is None
