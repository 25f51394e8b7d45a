"""Two machines on one: network namespaces with a link that can be cut, and mount namespaces without the checkout."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Machine:
    """A network namespace with one address; what is started in it ends with it."""

    def __init__(self, name: str, address: str, interface: str, hidden: Sequence[Path] = ()) -> None:
        self.name, self.address, self.interface = name, address, interface
        self._hidden = hidden
        self._processes: list[subprocess.Popen[bytes]] = []

    def command(self, arguments: Sequence[str]) -> list[str]:
        """`arguments` as they run here: where folders are hidden, empty ones stand in their place."""
        inside = list(arguments)
        if self._hidden:
            mounts = " && ".join(f"mount -t tmpfs none {shlex.quote(str(folder))}" for folder in self._hidden)
            inside = ["unshare", "--mount", "sh", "-c", f"cd / && {mounts} && exec {shlex.join(arguments)}"]
        return ["ip", "netns", "exec", self.name, *inside]

    def start(
        self, arguments: Sequence[str], *, log: IO[bytes], env: Mapping[str, str], cwd: Path | str = "/"
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self.command(arguments), stdout=log, stderr=subprocess.STDOUT, env=dict(env), cwd=cwd, process_group=0
        )
        self._processes.append(process)
        return process

    def run(self, arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(arguments), env=dict(env), cwd=cwd, capture_output=True, text=True, timeout=1500
        )

    def pids(self) -> list[int]:
        """Every process in this namespace."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout
        return [int(pid) for pid in listed.split()]

    def kill_all(self) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self._processes:
            process.wait()
        psutil.wait_procs([psutil.Process(pid) for pid in self.pids() if psutil.pid_exists(pid)], timeout=10)


class Network:
    """The machines `first` and `second` and the link between them. `hidden`: folders that `second` does not see."""

    def __init__(self, hidden: Sequence[Path]) -> None:
        token = secrets.token_hex(2)
        names = [f"axon-{token}-{i}" for i in (1, 2)]
        links = [f"ax{token}{i}" for i in (1, 2)]
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for i, (name, link) in enumerate(zip(names, links, strict=True), 1):
            _ip("link", "set", link, "netns", name)
            _ip("-n", name, "address", "add", f"10.79.0.{i}/24", "dev", link)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", link, "up")
        self.first = Machine(names[0], "10.79.0.1", links[0])
        self.second = Machine(names[1], "10.79.0.2", links[1], hidden)

    def cut(self) -> None:
        _ip("-n", self.second.name, "link", "set", self.second.interface, "down")

    def mend(self) -> None:
        _ip("-n", self.second.name, "link", "set", self.second.interface, "up")

    def close(self) -> None:
        for machine in (self.second, self.first):
            machine.kill_all()
            _ip("netns", "delete", machine.name)
