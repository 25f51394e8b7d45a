"""SHA-256 of files and directories, read anew every time: no state database and no file time is trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

from tasks.errors import UserError

_CHUNK = 1 << 20
_N_THREADS = 4


@dataclass(frozen=True)
class FileDigest:
    """SHA-256 (64 hex digits) and size in bytes of one file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Tree:
    """A file or a directory: its digest, the bytes in it, and its files by relative path ("" for a file itself)."""

    sha256: str
    size: int
    files: Mapping[str, FileDigest]

    def named(self, path: str) -> dict[str, FileDigest]:
        """The files by the path they have below the root, where this tree is at `path`."""
        return {f"{path}/{name}" if name else path: digest for name, digest in self.files.items()}


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_ignored(path: PurePath) -> bool:
    """Whether a file is Python's own cache, which is no part of an artifact or of code."""
    return "__pycache__" in path.parts or path.suffix == ".pyc"


def listing_digest(files: Mapping[str, FileDigest]) -> str:
    """SHA-256 of the lines "HEX  relative/path\\n" in the order of the paths, as `sha256sum | sha256sum` gives it."""
    lines = "".join(f"{files[name].sha256}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def tree(path: Path) -> Tree:
    """Hash the file at `path`, or every file below it. Raises FileNotFoundError, and `UserError` for a bad name."""
    return _gather(path, {name: (sha256_file(file), file.stat().st_size) for name, file in _files(path)})


def measure(path: Path) -> tuple[Tree, str]:
    """`tree`, and the MD5 that DVC gives the same content (with `.dir` for a directory); every file is read once."""
    files = list(_files(path))
    with ThreadPoolExecutor(_N_THREADS) as pool:
        hashed = dict(zip((name for name, _ in files), pool.map(digests, (file for _, file in files)), strict=True))
    md5s = {name: md5 for name, (md5, _, _) in hashed.items()}
    measured = {name: (sha256, size) for name, (_, sha256, size) in hashed.items()}
    if not path.is_dir():
        return _gather(path, measured), md5s[""]
    listing = json.dumps([{"md5": md5s[name], "relpath": name} for name in sorted(md5s)], sort_keys=True)
    return _gather(path, measured), hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


def _gather(path: Path, measured: Mapping[str, tuple[str, int]]) -> Tree:
    files = {name: FileDigest(*measured[name]) for name in sorted(measured)}
    digest = listing_digest(files) if path.is_dir() else files[""].sha256
    return Tree(digest, sum(file.size for file in files.values()), files)


def _files(path: Path) -> Iterable[tuple[str, Path]]:
    """The files of a tree with their relative paths; a newline in a name could imitate another listing."""
    if not path.is_dir():
        yield "", path
        return
    for file in path.rglob("*"):
        relative = file.relative_to(path)
        if is_ignored(relative) or not file.is_file():
            continue
        name = relative.as_posix()
        if "\n" in name or "\r" in name:
            raise UserError(f"{str(file)!r} has a line break in its name; rename it.", exit_code=1)
        yield name, file


def digests(path: Path) -> tuple[str, str, int]:
    """MD5, SHA-256 and size of a file in one pass."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
            size += len(chunk)
    return md5.hexdigest(), sha256.hexdigest(), size
