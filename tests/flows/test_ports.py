"""Two runs that start at the same moment, each on a port of its own, before either server listens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from flows import ports
from tests.helpers import REPOSITORY

HOLD = "import sys; from flows.ports import free_port; print(free_port(int(sys.argv[1])), flush=True); sys.stdin.read()"


def holder(port: int) -> subprocess.Popen[str]:
    """A process that was given a port and does not listen on it yet."""
    command = [sys.executable, "-c", HOLD, str(port)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def unused() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_port_is_given_to_one_process_until_that_ends():
    wanted = unused()
    with holder(wanted) as first:
        assert int(first.stdout.readline()) == wanted
        other = ports.free_port(wanted)
        assert other != wanted
        first.communicate()
    assert ports.free_port(wanted) == wanted


def test_a_port_that_somebody_listens_on_is_not_given():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        taken = server.getsockname()[1]
        assert ports.free_port(taken) != taken


def test_the_next_port_is_one_that_the_kernel_does_not_deal_out():
    with socket.socket() as server:
        taken = next(port for port in range(20000, 30000) if _listens(server, port))
        assert taken < ports.free_port(taken) <= taken + 99


def _listens(server: socket.socket, port: int) -> bool:
    try:
        server.bind(("127.0.0.1", port))
    except OSError:
        return False
    server.listen()
    return True


def test_the_same_process_may_ask_again():
    wanted = unused()
    assert ports.free_port(wanted) == ports.free_port(wanted) == wanted


def test_a_link_where_the_lock_should_be_is_not_followed(tmp_path, monkeypatch):
    wanted = unused()
    monkeypatch.setattr(ports.tempfile, "gettempdir", lambda: str(tmp_path))
    target = tmp_path / "elsewhere"
    (tmp_path / f"axon-{os.getuid()}-port-{wanted}.lock").symlink_to(target)
    assert ports.free_port(wanted) == wanted
    assert not target.exists()
