"""What the models of the workspace were trained on: its profile, and the lock to go back to where nothing is trained.

A retraining replaces data before it knows whether it will train. All that it needs to know of before is written first,
so that one that was killed finds the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.files import read_json, write_bytes, write_json
from tasks.retraining import snapshots
from tasks.retraining.profile import Profile
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout

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
    if note.is_file() and read_json(note)["md5"] == trained:
        return Profile.read(profile)
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
    """Keep `dvc.lock` as it is, unless a retraining that was cut short has kept the one before."""
    kept, lock = _folder(checkout) / "dvc.lock", checkout.root / "dvc.lock"
    if lock.is_file() and not kept.is_file():
        write_bytes(kept, lock.read_bytes())


def put_back(checkout: Checkout) -> None:
    """Bring back the data that the models here were made from, so that the workspace is one run's again."""
    kept = _folder(checkout) / "dvc.lock"
    if kept.is_file():
        write_bytes(checkout.root / "dvc.lock", kept.read_bytes())
        snapshots.check_out(checkout.root)
        kept.unlink()


def drop_lock(checkout: Checkout) -> None:
    (_folder(checkout) / "dvc.lock").unlink(missing_ok=True)
