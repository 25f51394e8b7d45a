"""What a killed run leaves of DVC's, cleared up by the next one: half a `dvc.lock`, and notes of who uses what.

DVC writes both in place. Half a `dvc.lock` stops every later run, and so does a note of a dead process whose number
another one has by now.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from tasks import yaml_text
from tasks.files import write_bytes, write_text
from tasks.runtime.checkout import Checkout

_CLOCKS_DIFFER_S = 2.0  # the start of a process is known to the second


def _kept(checkout: Checkout) -> Path:
    return checkout.state / "dvc.lock.before"


@contextmanager
def keeping_lock(checkout: Checkout) -> Iterator[None]:
    """Keep `dvc.lock` while DVC may write it; only a kill leaves the copy."""
    lock = checkout.root / "dvc.lock"
    write_bytes(_kept(checkout), lock.read_bytes() if lock.is_file() else b"")
    try:
        yield
    finally:
        _kept(checkout).unlink(missing_ok=True)


def clear(checkout: Checkout) -> list[str]:
    """Put `dvc.lock` in order and drop notes of dead processes; returns sentences about it. Hold the run lock."""
    told = []
    kept, lock = _kept(checkout), checkout.root / "dvc.lock"
    if kept.is_file():
        if lock.is_file() and not _is_whole(lock):
            before = kept.read_bytes()
            if before:
                write_bytes(lock, before)
            else:
                lock.unlink()
            told.append("dvc.lock was half written when a run was killed; it is as it was before")
        kept.unlink()
    _drop_dead(checkout.root / ".dvc" / "tmp")
    return told


def _is_whole(lock: Path) -> bool:
    """Whether DVC can read it."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml_text.parse(lock.read_text(encoding="utf-8")))
    except (Invalid, yaml.YAMLError, ValueError):
        return False
    return True


def _drop_dead(folder: Path) -> None:
    path = folder / "rwlock"
    text = path.read_text(encoding="utf-8") if path.is_file() else "{}"
    if _alive(text, path) == text:
        return
    from dvc.lock import make_lock

    with make_lock(os.fspath(folder / "rwlock.lock"), tmp_dir=os.fspath(folder)):
        write_text(path, _alive(path.read_text(encoding="utf-8"), path))


def _alive(text: str, path: Path) -> str:
    """The notes without those of processes that are gone; the same text where none is."""
    try:
        tree: dict[str, dict[str, Any]] = json.loads(text)
    except ValueError:
        return "{}"  # half written
    written_at = path.stat().st_mtime if path.is_file() else 0.0
    readers = {p: [i for i in infos if _is_alive(i, written_at)] for p, infos in tree.get("read", {}).items()}
    found = {
        "read": {p: infos for p, infos in readers.items() if infos},
        "write": {p: info for p, info in tree.get("write", {}).items() if _is_alive(info, written_at)},
    }
    return text if all(found[mode] == tree.get(mode, {}) for mode in found) else json.dumps(found)


def _is_alive(info: dict[str, Any], written_at: float) -> bool:
    """Whether the process that made the note is there still, and not another one by its number."""
    try:
        return psutil.Process(info["pid"]).create_time() <= written_at + _CLOCKS_DIFFER_S
    except psutil.NoSuchProcess:
        return False
