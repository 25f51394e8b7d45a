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

from flows.ports import MLFLOW_PORT, PREFECT_PORT
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
        *_processor(),
    ):
        problems += good is False
        mark = {True: "[green]ok   [/green]", False: "[red]fail [/red]", None: "[dim]note [/dim]"}[good]
        console.print(mark, line)
    console.print("Fit for a run." if not problems else f"{problems} problem(s) to mend before a run.")
    return 1 if problems else 0


Finding = tuple[bool | None, str]


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


def _processor() -> list[Finding]:
    """Cores, and where bfloat16 pays: a GPU, or a processor with AMX or AVX512-BF16."""
    found: list[Finding] = [(None, f"{os.cpu_count()} cores; `threads` in params.yaml should be at most that")]
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    if "amx_bf16" in flags:
        found.append((None, "the processor has AMX: precision: bfloat16 pays"))
    elif "avx512_bf16" in flags:
        found.append((None, "the processor has AVX512-BF16: precision: bfloat16 pays a little"))
    else:
        found.append((None, "no AMX and no AVX512-BF16: precision: float32 is likely faster on this processor"))
    import torch

    if torch.cuda.is_available():
        found.append((None, f"GPU {torch.cuda.get_device_name(0)}: device: cuda and precision: bfloat16 pay"))
    else:
        found.append((None, "no GPU that torch can use; device: cpu"))
    return found
