"""Ports of loopback, each claimed by one process of Axon: servers take seconds from choosing a port to listening."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path

from tasks.errors import UserError

PREFECT_PORT = 4200
MLFLOW_PORT = 5000
_NEAR = 100
_ATTEMPTS = 20

_claims: dict[int, int] = {}  # open lock files by port, until this process ends


def free_port(preferred: int) -> int:
    """`preferred` or one after it on which nothing listens and that no other process of Axon was given.

    Any other port only after those: the kernel deals out the same ones to Ray and to whatever connects meanwhile.
    """
    for port in (*range(preferred, min(preferred + _NEAR, 65536)), *[0] * _ATTEMPTS):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found = int(probe.getsockname()[1])
        if _claim(found):
            return found
    raise UserError("no free port on 127.0.0.1; close some programs and run again.", exit_code=1)


def _claim(port: int) -> bool:
    """Whether `port` is this process's until it ends; where nothing can be locked, nobody is asked."""
    if port in _claims:
        return True
    path = Path(tempfile.gettempdir()) / f"axon-{os.getuid()}-port-{port}.lock"
    try:
        # Others may write to the folder of temporary files: a link that they left there is not followed.
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    _claims[port] = descriptor
    return True
