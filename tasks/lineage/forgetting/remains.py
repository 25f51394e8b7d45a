"""What a purge cannot reach, or leaves on purpose, said in sentences for the certificate."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.data import maths
from tasks.lineage.forgetting import rewriting
from tasks.lineage.forgetting.dvc_cache import Cache
from tasks.lineage.forgetting.versions import Logged
from tasks.runtime.checkout import Checkout

_GIT_LIMIT_S = 60
ALWAYS = (
    "the removal list itself: digests of ids and contents, and band hashes, by which someone who has a text can tell "
    "that it, or one much like it, was removed",
    "statements, journals, MLflow's and Prefect's runs: digests, parameters, metrics and messages of failures",
    "backups, clones of the repository, exported bundles, pages and models that were copied elsewhere",
    "what was copied to other machines (AXON_STORAGE, caches of workers)",
    "blocks of deleted files on the disk, until they are written over",
)


def find(
    checkout: Checkout, requests: Collection[Mapping[str, Any]], *, cache: Cache, models: Collection[Logged]
) -> list[str]:
    """One sentence for each place; the last ones hold for every purge."""
    found: list[str] = []
    if is_tokenizer_kept(checkout):
        found.append(
            "the tokenizer, which was learnt from the records too: its vocabulary may hold words of them (kept on "
            "request, in sources/tokenizer and in every model)"
        )
    found += _sources(checkout, requests)
    found += [
        f"the DVC remote {name!r}: remove there what dvc.lock does not record with: dvc gc --workspace --cloud "
        f"--remote {name}"
        for name in cache.remotes
    ]
    if cache.is_shared:
        found.append(
            f"DVC's cache in {cache.folder}, which other checkouts may share: nothing was removed there; where none "
            "does, run: dvc gc --workspace"
        )
    found += [f"files of the logged model {m.name} {m.md5}, gone already or moved" for m in models if _is_gone(m)]
    ray = Path(tempfile.gettempdir()) / "ray"
    if ray.is_dir():
        found.append(f"Ray's folders of past sessions in {ray}: logs, and objects if memory ran short")
    return [*found, *ALWAYS]


def is_tokenizer_kept(checkout: Checkout) -> bool:
    return rewriting.is_tokenizer_kept(checkout.root)


def _is_gone(model: Logged) -> bool:
    return model.folder is None and model.location.startswith(("file:", "/"))


def _sources(checkout: Checkout, requests: Iterable[Mapping[str, Any]]) -> list[str]:
    """Where the records came from, and the history of those places."""
    found: list[str] = []
    paths: set[str] = set()
    for request in requests:
        paths |= {source.removeprefix("files:") for source in request["sources"] if source.startswith("files:")}
        paths |= set(request["lines_cut"])
        if request["sources_kept"]:
            found += [f"{p}: its lines were left as they are, on request" for p in sorted(paths)]
        found += [f"the installed package {package}, which is public" for package in request["packages"]]
        if maths.SOURCE in request["sources"]:
            found.append("the generator of maths questions, which makes them again and has them taken out again")
    for path in sorted(paths):
        n_commits = _commits(checkout.root, path)
        if n_commits:
            found.append(
                f"git's history of {path} ({n_commits} commits): rewrite it (git filter-repo), expire the reflog and "
                "have clones replaced"
            )
    return list(dict.fromkeys(found))


def _commits(root: Path, path: str) -> int:
    """How many commits of any branch touch a path; 0 where there is no git."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "log", "--all", "--reflog", "--format=%H", "--", path],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=_GIT_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(done.stdout.split()) if done.returncode == 0 else 0
