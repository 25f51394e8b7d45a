"""DVC's cache and its remotes in a local folder: every object is hashed, whatever DVC's state database says.

An object's name is its MD5; that of a `.dir` object is the MD5 of the listing it holds. MD5 does not withstand an
attacker, so objects that hold outputs are held against the SHA-256 of the statements too.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tasks.lineage import hashing
from tasks.lineage.ancestry import files_of
from tasks.lineage.audit.agreement import read_yaml
from tasks.lineage.audit.findings import Part, shown
from tasks.lineage.audit.scene import Entry, Scene

_OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")
_N_THREADS = 4
_DO = "Remove it: `dvc fetch` gets a true copy from the remote, or `axon run` makes it again."


@dataclass
class Store:
    """One store of objects: where it is, how findings name it, and its objects by name (32 digits, `.dir`)."""

    folder: Path
    place: str
    objects: dict[str, Path] = field(default_factory=dict)
    true: set[str] = field(default_factory=set)

    def named(self, name: str) -> str:
        return f"{self.place}/files/md5/{name[:2]}/{name[2:]}"


def stores(scene: Scene) -> list[Store]:
    """The cache and the local remotes of `.dvc/config`, with their objects. A bad configuration is a finding."""
    folder = scene.home / ".dvc"
    if not folder.is_dir():
        return []
    from dvc.config import Config, ConfigError

    try:
        config = Config(str(folder))
    except ConfigError as error:
        scene.part("cache").find(
            ".dvc/config", expected="DVC's configuration", found=shown(error), do="git checkout .dvc/config"
        )
        return []
    cache = Path(config.get("cache", {}).get("dir") or folder / "cache")
    found = [Store(cache, _place(scene.home, cache))]
    for name, remote in config.get("remote", {}).items():
        url = str(remote.get("url", "")).removeprefix("file://")
        if "://" in url:
            scene.part("cache").missed("remotes that are not local")
        elif Path(url).is_dir():
            found.append(Store(Path(url), f"remote {name}: {_place(scene.home, Path(url))}"))
    for store in found:
        store.objects = dict(_objects(store.folder / "files" / "md5"))
    return found


def _place(root: Path, folder: Path) -> str:
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)


def _objects(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files that have the name of an object. Others are DVC's half-written ones."""
    for prefix in sorted(os.listdir(folder)) if folder.is_dir() else ():
        if len(prefix) == 2:
            for name in sorted(os.listdir(folder / prefix)):
                if _OBJECT.fullmatch(name):
                    yield prefix + name, folder / prefix / name


def check(scene: Scene, known: list[Store]) -> None:
    """Hash the objects and hold them against their names and the statements; note of which outputs there are copies."""
    part = scene.part("cache")
    files, listings = _expected(scene.asked)
    for store in known:
        _check_store(part, store, files, listings, is_all=scene.scope is None)
        if scene.scope is None:
            _check_runs(part, store)
        for entry in scene.asked:
            for out, md5 in entry.statement.outputs.items():
                if md5 in store.true and all(name in store.true for name in _members(store, md5)):
                    scene.reached.add((out, md5))


Expected = dict[str, set[tuple[str, str]]]  # MD5: the SHA-256 it must go with, and whose file it is
Listings = dict[str, list[tuple[str, Entry]]]  # MD5 of a listing: outputs and the statements that wrote them


def _expected(entries: Iterable[Entry]) -> tuple[Expected, Listings]:
    """By MD5, what the statements say of outputs that are files, and which outputs are directories."""
    files: Expected = defaultdict(set)
    listings: Listings = defaultdict(list)
    for entry in entries:
        for out, md5 in entry.statement.outputs.items():
            if md5.endswith(".dir"):
                listings[md5].append((out, entry))
            elif out in entry.statement.subjects:
                files[md5].add((entry.statement.subjects[out].sha256, out))
    return files, listings


def _check_store(part: Part, store: Store, files: Expected, listings: Listings, *, is_all: bool) -> None:
    """`is_all`: every object, or only those of the outputs asked about."""
    directories = [name for name in store.objects if name.endswith(".dir") and (is_all or name in listings)]
    _hash(part, store, directories, {})
    expected: Expected = defaultdict(set, {md5: set(pairs) for md5, pairs in files.items()})
    for name in directories:
        for out, entry in listings.get(name, ()) if name in store.true else ():
            for md5, pairs in _of_listing(part, store, name, out, entry).items():
                expected[md5] |= pairs
    wanted = [n for n in store.objects if not n.endswith(".dir") and (is_all or n in expected)]
    _hash(part, store, wanted, expected)


def _hash(part: Part, store: Store, names: list[str], expected: Mapping[str, set[tuple[str, str]]]) -> None:
    with ThreadPoolExecutor(_N_THREADS) as pool:
        hashed = list(pool.map(_digests, (store.objects[name] for name in names)))
    for name, digests in zip(names, hashed, strict=True):
        part.count("objects")
        if isinstance(digests, OSError):
            part.find(store.named(name), expected="a readable object", found=str(digests), do=_DO)
            continue
        md5, sha256, size = digests
        part.count("bytes", size)
        outs = ", ".join(sorted({out for _, out in expected.get(name, ())}))
        if md5 != name.removesuffix(".dir"):
            what = f", a part of {outs}" if outs else ""
            part.find(store.named(name), expected=f"MD5 {name.removesuffix('.dir')}{what}", found=f"MD5 {md5}", do=_DO)
        elif any(sha256 != wanted for wanted, _ in expected.get(name, ())):
            wanted = ", ".join(sorted({wanted for wanted, _ in expected[name]}))
            part.find(store.named(name), expected=f"SHA-256 {wanted} of {outs}", found=f"SHA-256 {sha256}", do=_DO)
        else:
            store.true.add(name)


def _digests(path: Path) -> tuple[str, str, int] | OSError:
    try:
        return hashing.digests(path)
    except OSError as error:
        return error


def _of_listing(part: Part, store: Store, name: str, out: str, entry: Entry) -> Expected:
    """What the files of a directory must hash to; a listing that names other files than the statement is a finding."""
    subjects = files_of(entry.statement, out)
    listed = _listing(store, name)
    if set(listed) != set(subjects):
        other = sorted(set(listed) ^ set(subjects))
        part.find(
            store.named(name),
            expected=f"the files of {out} in {entry.place}",
            found=f"it differs in {', '.join(other[:5])}",
            do=_DO,
        )
        return {}
    found: Expected = defaultdict(set)
    for relpath, md5 in listed.items():
        found[md5].add((subjects[relpath].sha256, f"{out}/{relpath}"))
    return found


def _listing(store: Store, name: str) -> dict[str, str]:
    """{relative path: MD5} of a `.dir` object whose own MD5 is right."""
    try:
        return {str(e["relpath"]): str(e["md5"]) for e in json.loads(store.objects[name].read_bytes())}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _members(store: Store, md5: str) -> list[str]:
    return list(_listing(store, md5).values()) if md5.endswith(".dir") else []


def _check_runs(part: Part, store: Store) -> None:
    """DVC's run cache, from which outputs are restored: names are digests of the contents (sizes apart)."""
    for path in sorted((store.folder / "runs").glob("??/*/*")):
        part.count("run cache entries")
        try:
            found = _run_digests(path.read_bytes())
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            found = "unreadable", shown(error)
        if found != (path.parent.name, path.name):
            part.find(
                f"{store.place}/{path.relative_to(store.folder).as_posix()}",
                expected=f"a record of an earlier execution with the digests {path.parent.name} and {path.name}",
                found=" and ".join(found),
                do="Remove it: DVC would restore outputs by it.",
            )


@lru_cache(maxsize=256)
def _run_digests(content: bytes) -> tuple[str, str]:
    """What an entry of the run cache is named by: the digest of what goes in, and that of all."""
    from dvc.utils import dict_sha256

    entry = read_yaml(content)
    whole = dict_sha256(entry, exclude=["size", "nfiles"])
    entry["outs"] = [out["path"] for out in entry.get("outs", [])]
    return dict_sha256(entry, exclude=["size", "nfiles"]), whole
