"""What lies in DVC's cache, what of it `dvc.lock` records, and taking the rest away."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.runtime import stages


@dataclass(frozen=True, kw_only=True)
class Cache:
    """folder: of the objects. unused: path and size of those that `dvc.lock` does not record. remotes: DVC's names.

    is_shared: whether it lies outside of this checkout, where other checkouts may need what this one does not.
    """

    folder: Path
    is_shared: bool
    unused: dict[Path, int]
    remotes: tuple[str, ...]


@contextmanager
def _repo(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.ERROR)
    before = os.getcwd()
    try:
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise UserError(f"DVC cannot work on its cache: {error}", exit_code=1) from None
    finally:
        os.chdir(before)


def survey(root: Path) -> Cache:
    """Look at the cache; changes nothing."""
    with _repo(root) as repo:
        folder = Path(repo.cache.local.path)
        remotes = tuple(sorted(repo.config.get("remote", {})))
    used = _used(root, folder)
    objects = [path for path in folder.glob("[0-9a-f][0-9a-f]/*") if path.is_file()]
    return Cache(
        folder=folder,
        is_shared=not folder.resolve().is_relative_to(root.resolve()),
        unused={path: path.stat().st_size for path in objects if path.parent.name + path.name not in used},
        remotes=remotes,
    )


def collect(root: Path) -> None:
    """`dvc gc --workspace`: remove every object that `dvc.lock` does not record, of other branches and experiments too.

    Raises `UserError` if something is left that should have gone.
    """
    with _repo(root) as repo:
        repo.gc(workspace=True)
    left = survey(root).unused
    if left:
        raise UserError(
            f"{len(left)} objects that dvc.lock does not record are still in {survey(root).folder}, "
            f"among them {next(iter(left))}; remove them by hand, or see who writes there.",
            exit_code=1,
        )


def holds(folder: Path, md5: str) -> bool:
    """Whether the cache has an output (or the listing of a directory) with this digest."""
    return (folder / md5[:2] / md5[2:]).is_file()


def _used(root: Path, folder: Path) -> set[str]:
    """The names of all objects that `dvc.lock` records: outputs, and the files in directories."""
    found: set[str] = set()
    for entry in stages.read_lock(root).values():
        for out in entry.get("outs", ()):
            md5 = out.get("md5")
            if not md5:
                continue
            found.add(md5)
            listing = folder / md5[:2] / md5[2:]
            if md5.endswith(".dir") and listing.is_file():
                found |= {file["md5"] for file in json.loads(listing.read_text(encoding="utf-8"))}
    return found
