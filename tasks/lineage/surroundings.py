"""Where and by whom a stage was run: libraries, processor, commit, person. Read cheaply; no engine is imported."""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_FLAGS = re.compile(r"(amx|avx|fma|f16c|sse4|sve|asimd|bf16|i8mm)\w*|sme(2|_\w+)?")
_DIST_INFO = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)\.dist-info")
_GIT_LIMIT_S = 10


def environment(root: Path, device: str | None) -> dict[str, Any]:
    """Python, the libraries that `constraints.txt` pins and their versions, the processor, the accelerator."""
    processor, flags = _processor()
    return {
        "python": platform.python_version(),
        "libraries": libraries(root / "constraints.txt"),
        "machine": platform.machine(),
        "processor": processor,
        "flags": flags,
        "accelerator": _accelerator() if device == "cuda" else None,
        "system": f"{platform.system()} {platform.release()}",
    }


def libraries(constraints: Path) -> dict[str, str]:
    """The installed version of every library pinned in `constraints`, by the name it has there.

    The versions stand in the names of the `.dist-info` folders; reading every METADATA file takes 0.2 s.
    """
    lines = constraints.read_text(encoding="utf-8", errors="replace").splitlines() if constraints.is_file() else []
    pinned = [line.partition("==")[0].strip() for line in lines if "==" in line and not line.startswith("#")]
    installed: dict[str, str] = {}
    for folder in sys.path:
        for entry in _entries(folder or "."):
            match = _DIST_INFO.fullmatch(entry)
            if match:
                installed.setdefault(_normal(match["name"]), match["version"])
    versions = {}
    for name in pinned:
        version = installed.get(_normal(name)) or _slow_version(name)
        if version:
            versions[name] = version
    return versions


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _slow_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> tuple[str, list[str]]:
    """The processor's name, and those of its instruction sets that change how numbers are computed."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor(), []
    name, flags = platform.processor(), ""
    for line in text.partition("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = value
    return name, sorted({flag for flag in flags.split() if _FLAGS.fullmatch(flag)})


def _accelerator() -> str | None:
    """The names of the graphics cards that the driver shows."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        names.append(match[1].strip() if match else "unknown")
    return ", ".join(names) or None


def who(root: Path) -> dict[str, str]:
    """User and host, and the address git signs commits with if it has one."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    email = _git(root, "config", "user.email")
    return {"user": user, "host": socket.gethostname(), **({"email": email.strip()} if email else {})}


def commit(root: Path) -> str | None:
    """The commit that is checked out at `root`; None where git knows none."""
    found = _git(root, "rev-parse", "--verify", "HEAD")
    return found.strip() if found else None


def is_dirty(root: Path, paths: Sequence[str]) -> bool:
    """Whether a file at or below `paths` differs from the commit or is not in it; True where git cannot tell."""
    status = _git(root, "status", "--porcelain", "-z", "--ignored", "--untracked-files=all", "--", *paths)
    if status is None:
        return True
    entries = [entry[3:] for entry in status.split("\0") if entry]
    return any("__pycache__" not in entry and not entry.endswith(".pyc") for entry in entries)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=root,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=_GIT_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
