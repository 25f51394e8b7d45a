"""New data and new human labels: what DVC imported from elsewhere is updated; files of one's own are simply there."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tasks.errors import UserError
from tasks.parameters import Parameters
from tasks.runtime.checkout import Checkout
from tasks.runtime.stages import digest

SOURCES = "sources"


def pull(checkout: Checkout) -> list[str]:
    """Update every import below `sources/` (`dvc import`, `dvc import-url`); returns those that changed.

    Raises `UserError` where one cannot be reached: a retraining on what was there before would look like a new one.
    """
    files = sorted((checkout.root / SOURCES).rglob("*.dvc"))
    if not files:
        return []
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage.exceptions import StageUpdateError

    changed = []
    with contextlib.chdir(checkout.root), Repo(str(checkout.root)) as repo:
        for file in files:
            name = file.relative_to(checkout.root).as_posix()
            before = file.read_bytes()
            try:
                repo.update([name])
            except StageUpdateError:
                continue  # tracked, but not from elsewhere
            except DvcException as error:
                raise UserError(f"{name} cannot be updated: {error}. Nothing was trained.", exit_code=1) from None
            if file.read_bytes() != before:
                changed.append(name.removesuffix(".dvc"))
    return changed


def labels(checkout: Checkout, params: Parameters) -> str | None:
    """The digest of the file with human rankings; None where the judge is a program."""
    if params.preferences.judge == "programmatic":
        return None
    path = checkout.root / Path(params.preferences.judge)
    return digest(path) if path.is_file() else None
