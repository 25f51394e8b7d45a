"""After the rebuild: find what still holds removed records outside of `dvc.lock`, remove it, and certify that.

DVC's cache, resume checkpoints, logs, tables of the record index, logged models, and results that Prefect kept.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data import records, removals
from tasks.data.removals import Removals, content_digest, id_digest
from tasks.errors import UserError
from tasks.lineage.forgetting import certificate, dvc_cache, holders, notes, remains, versions
from tasks.lineage.forgetting.dvc_cache import Cache
from tasks.lineage.forgetting.versions import Logged
from tasks.lineage.records import tables
from tasks.lineage.store import Stored
from tasks.parameters import Parameters
from tasks.runtime import reproduction, stages
from tasks.runtime.checkout import Checkout

_TEXTS = ("text", "prompt", "answer")
# Below `.axon`: checkpoints hold tokens and signatures, logs may quote a record, the rest are caches of libraries.
_FOLDERS = {
    "resume checkpoints": "checkpoints",
    "logs of failures": "logs",
    "trials of sweeps": "sweeps",
    "caches of Hugging Face": "huggingface",
    "results kept by Prefect": "prefect/storage",
}


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Something below the root that goes as a whole."""

    what: str
    path: Path
    n_files: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the purge will remove (sizes in bytes), and what it cannot reach."""

    notes: list[dict[str, Any]]
    cache: Cache
    folders: list[Folder]
    models: list[Logged]
    remains: list[str]

    @property
    def is_empty(self) -> bool:
        return not (self.notes or self.cache.unused or self.folders or self.models)


def survey(checkout: Checkout, params: Parameters) -> Survey:
    """Find what there is to purge; changes nothing.

    Raises `UserError` if there is no removal list, or if the rebuild without the records is not done.
    """
    listed = removals.read(checkout.root)
    if not listed:
        raise UserError("there is no removal list, so that nothing is to be purged; first: axon forget … --yes")
    check_rebuilt(checkout, params, listed)
    requests = notes.read(checkout)
    cache = dvc_cache.survey(checkout.root)
    models = versions.logged(checkout, _models(checkout, requests))
    return Survey(
        notes=requests,
        cache=cache,
        folders=[*_folders(checkout), *_tables(checkout, listed)],
        models=models,
        remains=remains.find(checkout, requests, cache=cache, models=models),
    )


def check_rebuilt(checkout: Checkout, params: Parameters, listed: Removals) -> None:
    """Raise `UserError` unless every stage is current and no output in the workspace has a listed record."""
    root = checkout.root
    graph = stages.read_stages(root)
    with contextlib.chdir(root):  # DVC names stages as seen from where it is called
        stale = reproduction.plan(root, graph, [], params.model_dump(mode="json")).stale
    if stale:
        raise UserError(
            f"nothing was purged: {', '.join(stale)} must run first, since what is there now still holds the records. "
            "Run `axon run`, then `axon forget --purge` again.",
            exit_code=1,
        )
    for path in holders.parquet_files(root, graph):
        found = _listed_rows(path, listed)
        if found:
            raise UserError(
                f"nothing was purged: {path.relative_to(root)} has {found} row(s) of records that are on the removal "
                "list, although it is current. Delete it and run `axon run`; if it comes back, report this.",
                exit_code=1,
            )


def _listed_rows(path: Path, listed: Removals) -> int:
    """Rows of a Parquet file whose id or content is on the list."""
    columns = records.read(path)
    found = [id_digest(identity) in listed.ids for identity in columns["record_id"]]
    for texts in (columns[name] for name in _TEXTS if name in columns):
        for row, text in enumerate(texts):
            is_long = len(text.split()) >= removals.MIN_PART_WORDS
            found[row] = found[row] or (is_long and content_digest(text) in listed.contents)
    return sum(found)


def _models(checkout: Checkout, requests: Iterable[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """(name, MD5) of the models that held the records, as far as `dvc.lock` does not record them now."""
    recorded = _recorded(checkout)
    found = {
        (artifact["path"].removeprefix("models/"), artifact["md5"])
        for request in requests
        for artifact in request["artifacts"]
        if artifact["path"].startswith("models/")
    }
    found |= {(version["model"], version["md5"]) for request in requests for version in request["versions"]}
    return {(name, md5) for name, md5 in found if md5 not in recorded}


def _folders(checkout: Checkout) -> list[Folder]:
    paths = {what: checkout.state / below for what, below in _FOLDERS.items()}
    paths["copies that DVC made for experiments"] = checkout.state.parent / ".dvc" / "tmp" / "exps"
    return [folder for what, path in paths.items() if (folder := _folder(what, path)).n_files]


def _tables(checkout: Checkout, listed: Removals) -> list[Folder]:
    """The tables of the record index for versions of data that had a listed record."""
    found = []
    for path in sorted((checkout.state / "records").glob("*/records.parquet")):
        if any(id_digest(row.tobytes()) in listed.ids for row in tables.read(path.parent).ids):
            found.append(_folder("tables of the record index", path.parent))
    return found


def _folder(what: str, path: Path) -> Folder:
    files = [file for file in path.rglob("*") if file.is_file()]
    return Folder(what=what, path=path, n_files=len(files), size=sum(file.stat().st_size for file in files))


def purge(checkout: Checkout, found: Survey) -> tuple[dict[str, Any], Stored | None]:
    """Remove what the survey found, look again, and write the certificate; returns what it says and where it is.

    Call it while holding the run lock. Every step can be done again after an interruption. Raises `UserError` if
    something could not be removed; nothing is certified then.
    """
    started = time.time()
    if not found.cache.is_shared:
        dvc_cache.collect(checkout.root)
    for folder in found.folders:
        shutil.rmtree(folder.path)
    unreached = versions.delete(checkout, found.models)
    left = [artifact for artifact in _artifacts(found.notes) if _is_cached(checkout, found.cache, artifact)]
    if left and not found.cache.is_shared:
        raise UserError(
            f"DVC's cache still holds {left[0]['path']} with the MD5 {left[0]['md5']}; nothing is certified.",
            exit_code=1,
        )
    content = _content(checkout, found, unreached)
    stored = certificate.write(checkout, "purge", content, started=started)
    notes.clear(checkout)
    return content, stored


def _recorded(checkout: Checkout) -> set[str]:
    """The digests of all outputs that `dvc.lock` records."""
    lock = stages.read_lock(checkout.root)
    return {out["md5"] for entry in lock.values() for out in entry.get("outs", ()) if "md5" in out}


def _artifacts(requests: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [artifact for request in requests for artifact in request["artifacts"]]


def _is_cached(checkout: Checkout, cache: Cache, artifact: Mapping[str, str]) -> bool:
    """Whether an output that held the records is in the cache although `dvc.lock` does not record it any more."""
    return artifact["md5"] not in _recorded(checkout) and dvc_cache.holds(cache.folder, artifact["md5"])


def _content(checkout: Checkout, found: Survey, unreached: list[Logged]) -> dict[str, Any]:
    """What the certificate says: requests, what was removed, what was checked, what remains."""
    root = checkout.state.parent
    recorded = _recorded(checkout)
    artifacts = sorted({(artifact["path"], artifact["md5"]) for artifact in _artifacts(found.notes)})
    deleted = [model for model in found.models if model not in unreached]
    unused = {} if found.cache.is_shared else found.cache.unused
    return {
        "records": sorted({record for request in found.notes for record in request["records"]}),
        "requests": [{k: v for k, v in r.items() if k not in ("records", "artifacts")} for r in found.notes],
        "removed": {
            "artifacts": [{"path": path, "md5": md5} for path, md5 in artifacts if md5 not in recorded],
            "cache_objects": {"n": len(unused), "bytes": sum(unused.values())},
            "folders": [
                {"what": f.what, "path": str(f.path.relative_to(root)), "n_files": f.n_files, "bytes": f.size}
                for f in found.folders
            ],
            "logged_models": [{"name": model.name, "md5": model.md5} for model in deleted],
        },
        "unchanged_artifacts": [{"path": path, "md5": md5} for path, md5 in artifacts if md5 in recorded],
        "tokenizer_kept": remains.is_tokenizer_kept(checkout),
        "remains": [*found.remains, *(f"the logged model {m.name} at {m.location}: not reached" for m in unreached)],
    }
