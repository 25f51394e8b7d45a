"""Ports of loopback."""

from __future__ import annotations

import socket

from tasks.errors import UserError

PREFECT_PORT = 4200
MLFLOW_PORT = 5000


def free_port(preferred: int) -> int:
    """`preferred` if nothing listens there on loopback, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UserError("no free port on 127.0.0.1; close some programs and run again.", exit_code=1)
