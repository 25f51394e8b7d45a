"""What the models of the workspace were trained on: its profile, and the lock to go back to where nothing is trained.

A retraining replaces data before it knows whether it will train. All that it needs to know of before is written first,
so that one that was killed finds the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.files import write_bytes, write_json
from tasks.retraining import snapshots
from tasks.retraining.profile import Profile
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout
from tasks.state_files import read_note

_DO = "Remove the folder it is in: what was trained on is then found out anew, or taken for new."
TABLES = ("data/text.parquet", "data/demonstrations.parquet")


def _folder(checkout: Checkout) -> Path:
    return checkout.state / "retrain"


def of(checkout: Checkout, labels: str | None) -> Profile | None:
    """The profile of the data that the models here were made from; None where there are none, or it is not known."""
    lock = stages.read_lock(checkout.root)
    if "evaluate" not in lock:
        return None
    trained = _md5(lock.get("tokenizer", {}).get("deps", ()))
    note, profile = _folder(checkout) / "data.json", _folder(checkout) / "profile.json"
    if note.is_file() and read_note(note, lambda tree: tree["md5"], do=_DO) == trained:
        return read_note(profile, Profile.taken, do=_DO)
    if trained is None or _md5(lock.get("data", {}).get("outs", ())) != trained:
        return None
    found_here = [checkout.root / path for path in TABLES]
    if not all(path.is_file() for path in found_here) or "+".join(map(stages.digest, found_here)) != trained:
        return None
    found = Profile.of(checkout.root, labels=labels)
    found.write(profile)
    write_json(note, {"md5": trained})
    return found


def _md5(entries: Iterable[Mapping[str, Any]]) -> str | None:
    """The digests of the tables of records, in the dependencies or outputs of a stage."""
    listed = {entry["path"]: str(entry["md5"]) for entry in entries}
    return "+".join(listed[path] for path in TABLES) if all(path in listed for path in TABLES) else None


def keep_lock(checkout: Checkout) -> None:
    """Keep `dvc.lock` as it is; where its data is newer than its models, a retraining was cut short and has kept it."""
    kept, lock = _folder(checkout) / "dvc.lock", stages.read_lock(checkout.root)
    is_whole = _md5(lock.get("tokenizer", {}).get("deps", ())) == _md5(lock.get("data", {}).get("outs", ()))
    if lock and (is_whole or not kept.is_file()):
        write_bytes(kept, (checkout.root / "dvc.lock").read_bytes())


def put_back(checkout: Checkout) -> None:
    """Bring back the data that the models here were made from, so that the workspace is one run's again."""
    kept = _folder(checkout) / "dvc.lock"
    if kept.is_file():
        write_bytes(checkout.root / "dvc.lock", kept.read_bytes())
        snapshots.check_out(checkout.root)
        kept.unlink()


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A training that has begun: why, and on which occasion."""

    why: str
    occasion: str | None = None


def begin(checkout: Checkout, why: str, occasion: str) -> None:
    """Note that training has begun: from here on nothing is put back."""
    write_json(_folder(checkout) / "begun.json", {"why": why, "occasion": occasion})
    (_folder(checkout) / "dvc.lock").unlink(missing_ok=True)


def _taken(tree: Any) -> Begun:
    occasion = tree.get("occasion")
    return Begun(why=str(tree["why"]), occasion=None if occasion is None else str(occasion))


def begun(checkout: Checkout) -> Begun | None:
    """The training that has begun and not come to its decision; None if there is none."""
    note = _folder(checkout) / "begun.json"
    return read_note(note, _taken, do=_DO) if note.is_file() else None


def end(checkout: Checkout) -> None:
    (_folder(checkout) / "begun.json").unlink(missing_ok=True)
