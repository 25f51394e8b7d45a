"""The chosen trial as `dvc exp run -S …`: what its values look like there, and what DVC needs for it."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import UserError


def arguments(values: Mapping[str, Any]) -> list[str]:
    """`exp run -S KEY=VALUE …`, as DVC takes them."""
    return ["exp", "run", *(part for key, value in values.items() for part in ("-S", f"{key}={_literal(value)}"))]


def command(values: Mapping[str, Any]) -> str:
    """The same as it is typed into a shell."""
    return shlex.join(["dvc", *arguments(values)])


def _literal(value: Any) -> str:
    """A value in the grammar of Hydra, by which DVC reads `-S`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        is_plain = re.fullmatch(r"[A-Za-z_][\w./-]*", value) and value.lower() not in ("true", "false", "null", "nan")
        return value if is_plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_literal(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_literal(part) for part in value) + "]"
    return repr(value)


def check_repository(root: Path) -> None:
    """DVC keeps experiments in git. Raises `UserError` where there is no commit to start one from."""
    found = subprocess.run(["git", "rev-parse", "--verify", "-q", "HEAD"], cwd=root, capture_output=True)
    if found.returncode:
        raise UserError(
            f"`dvc exp run` needs a git repository with a commit, and {root} has none. "
            'Make one: git init && git add -A && git commit -m "start"'
        )
