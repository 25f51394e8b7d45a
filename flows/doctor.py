"""`axon doctor`: is this machine fit for a run, and which parameters suit it?"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows import processor
from flows.ports import MLFLOW_PORT, PREFECT_PORT
from flows.processor import Finding
from tasks.runtime.checkout import Checkout

_MIN_FREE_GIB = 5
_MIN_MEMORY_GIB = 6


def examine(checkout: Checkout) -> int:
    """Print one line a check; 0 if nothing would stop a run, 1 otherwise."""
    console = Console(highlight=False)
    problems = 0
    for good, line in (
        _python(),
        *_versions(checkout.root / "constraints.txt"),
        _memory(),
        _disk(checkout.root),
        *_ports(),
        *processor.findings(checkout.root),
    ):
        problems += good is False
        mark = {True: "[green]ok   [/green]", False: "[red]fail [/red]", None: "[dim]note [/dim]"}[good]
        console.print(mark, escape(line))
    console.print("Fit for a run." if not problems else f"{problems} problem(s) to mend before a run.")
    return 1 if problems else 0


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return sys.version_info[:2] == (3, 11), f"Python {version} (3.11 is needed)"


def _versions(constraints: Path) -> list[Finding]:
    wrong, n_checked = [], 0
    try:
        text = constraints.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        return [(False, f"constraints.txt cannot be read ({error}): git checkout constraints.txt")]
    for line in text.splitlines():
        match = re.match(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", line)
        if not match:
            continue
        name, wanted = match.groups()
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        n_checked += 1
        if installed.split("+")[0] != wanted.split("+")[0]:
            wrong.append((False, f"{name} {installed} is installed, constraints.txt asks for {wanted}: make install"))
    return [
        *wrong,
        (not wrong, f"{n_checked - len(wrong)} of {n_checked} installed packages as in constraints.txt"),
    ]


def _memory() -> Finding:
    n_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gib = n_bytes / 2**30
    return gib >= _MIN_MEMORY_GIB, f"{gib:.0f} GiB of memory (at least {_MIN_MEMORY_GIB})"


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free / 2**30
    return (
        free >= _MIN_FREE_GIB,
        f"{free:.0f} GiB free on the disk of this checkout (at least {_MIN_FREE_GIB})",
    )


def _ports() -> list[Finding]:
    found: list[Finding] = []
    for port, what in ((PREFECT_PORT, "Prefect"), (MLFLOW_PORT, "MLflow")):
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if taken:
            found.append((None, f"port {port} is taken; {what} will take another"))
        else:
            found.append((True, f"port {port} is free for {what}"))
    return found
