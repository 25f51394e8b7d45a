"""Where the files of a step are for the process that works on it: in the checkout, or in a folder of its node.

With `AXON_STORAGE` a node needs no checkout. Its code comes by Ray's `runtime_env`; inputs come by digest into a cache
of the node and from there into a folder of this execution; outputs and checkpoints go back to the store.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import logging
import os
import secrets
import shutil
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tasks.files import write_text
from tasks.runtime import stages, storage
from tasks.runtime.checkout import Checkout
from tasks.runtime.storage import Store

log = logging.getLogger(__name__)

CACHE = "AXON_CACHE"
# Steps hold many objects for long and make few cycles: without collections reading docstrings takes a quarter less.
_COLLECT_AFTER = (100_000, 50, 50)
_MIRROR_EVERY_S = 1.0
_CODE = ("flows", "tasks", "axon_models")
_held: list[IO[str]] = []  # locks that last as long as their process


@dataclass(frozen=True, kw_only=True)
class Place:
    """`root` is the same path on every node: the checkout, or with a `store` (its address) a folder below `cache`."""

    root: str
    store: str = ""
    cache: str = ""

    @classmethod
    def of(cls, checkout: Checkout, step: str) -> Place:
        """Where `step` works: as `AXON_STORAGE` and `AXON_CACHE` say."""
        store = storage.address()
        if not store:
            return cls(root=str(checkout.root))
        cache = os.environ.get(CACHE) or f"/var/tmp/axon-{os.getuid()}"
        return cls(root=f"{cache}/work/{step}-{secrets.token_hex(6)}", store=store, cache=cache)


@dataclass(frozen=True, kw_only=True)
class Files:
    """What an execution reads and writes: `inputs` by digest, `outs`, and where its checkpoints are.

    `checkpoints` is a folder of the checkout. `key` names them in the store.
    """

    checkpoints: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    outs: tuple[str, ...] = ()
    key: str = ""

    @classmethod
    def of(cls, checkout: Checkout, stage: stages.Stage, inputs: Mapping[str, str], identity: str) -> Files:
        """The files of a stage; its code is not among them. `identity`: `stages.execution_digest`."""
        name = f"{stage.name}-{identity[:16]}"
        owner = hashlib.sha256(f"{socket.gethostname()}:{checkout.root}".encode()).hexdigest()[:12]
        return cls(
            checkpoints=str(checkout.checkpoints / name),
            inputs={path: digest for path, digest in inputs.items() if path.split("/")[0] not in _CODE},
            outs=stage.outs,
            key=f"checkpoints/{owner}/{name}",
        )


def enter(place: Place) -> None:
    """Work in the folder of `place` and import from it; Ray starts workers elsewhere."""
    gc.set_threshold(*_COLLECT_AFTER)
    if place.store:
        _sweep(Path(place.cache) / "work", keep=Path(place.root))
        Path(place.root).mkdir(parents=True, exist_ok=True)
        _held.append(_locked(Path(f"{place.root}.lock"), fcntl.LOCK_SH))
    elif place.root not in sys.path:
        sys.path.insert(0, place.root)
    os.chdir(place.root)


def _locked(path: Path, how: int) -> IO[str]:
    file = path.open("w")
    fcntl.flock(file, how)
    return file


def _sweep(folder: Path, *, keep: Path) -> None:
    """Remove what executions have left that nobody works on any more: their processes hold a lock."""
    for left in folder.glob("*.lock"):
        root = left.with_suffix("")
        if root == keep:
            continue
        try:
            with _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(root, ignore_errors=True)
                left.unlink(missing_ok=True)
        except OSError:
            continue


def fetch(place: Place, files: Files) -> None:
    """Bring the inputs to this node, once for all processes on it."""
    if not place.store:
        return
    done = Path(place.root) / ".inputs"
    with _locked(Path(f"{place.root}.fetching"), fcntl.LOCK_EX):
        if done.is_file():
            return
        Store(place.store).pull(Path(place.root), files.inputs, Path(place.cache) / "objects")
        write_text(done, "\n".join(sorted(files.inputs)))


@contextmanager
def saving(place: Place, files: Files, *, is_first_here: bool = True, is_first: bool = True) -> Iterator[Path]:
    """The folder for checkpoints: what it held when a process died is there again, and what is saved is kept.

    is_first_here: of the processes on this node, the one that brings and copies; is_first: of all, the one that
    removes from the store.
    """
    if not place.store:
        yield Path(files.checkpoints)
        return
    folder = Path(place.root) / ".checkpoints"
    if not is_first_here:
        yield folder
        return
    mirror = Mirror(Store(place.store), folder, files.key, removes=is_first)
    mirror.pull()
    with mirror:
        yield folder


def leave(place: Place, paths: Iterable[str]) -> dict[str, str]:
    """Copy what stands at `paths` to the store; returns the digests by path."""
    if not place.store:
        return {}
    root = Path(place.root)
    digests = {path: stages.digest(root / path) for path in paths if (root / path).exists()}
    Store(place.store).push(root, digests)
    return digests


def bring(place: Place, digests: Mapping[str, str]) -> None:
    """Read them from the store, where the node does not have them."""
    root = Path(place.root)
    missing = {p: d for p, d in digests.items() if not (root / p).exists() or stages.digest(root / p) != d}
    if missing:
        Store(place.store).pull(root, missing, Path(place.cache) / "objects")


class Mirror:
    """Copies what a step saves in `folder` to the store in a thread, and takes away there what the step removes.

    It takes away only what it has brought or copied itself: another process may have gone on in the meantime.
    """

    def __init__(self, store: Store, folder: Path, key: str, *, removes: bool) -> None:
        self._store, self._folder, self._key, self._removes = store, folder, key, removes
        self._known: dict[str, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoint-mirror", daemon=True)

    def pull(self) -> None:
        """Make the folder what the store holds."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        with self._store.errors("read from"):
            for name in self._store.keys(self._key):
                self._store.get(f"{self._key}/{name}", self._folder / name)
        self._known = self._found()

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(self, *_error: Any) -> None:
        self._stop.set()
        self._thread.join()
        with self._store.errors("written to"):
            self._copy()

    def _run(self) -> None:
        while not self._stop.wait(_MIRROR_EVERY_S):
            try:
                self._copy()
            except OSError as error:
                log.warning("checkpoints are not in the store yet: %s", error)

    def _found(self) -> dict[str, tuple[int, int]]:
        """Whole files by name, each with its size and time; what is being written has a name that starts with a dot."""
        found = {}
        for path in self._folder.rglob("*"):
            name = path.relative_to(self._folder)
            try:
                if path.is_file() and not any(part.startswith(".") for part in name.parts):
                    status = path.stat()
                    found[name.as_posix()] = (status.st_size, status.st_mtime_ns)
            except FileNotFoundError:  # removed a moment ago
                continue
        return found

    def _copy(self) -> None:
        found = self._found()
        # A checkpoint's state names its tensors, so it follows them.
        for name in sorted((n for n, mark in found.items() if self._known.get(n) != mark), key=_state_last):
            try:
                self._store.put(self._folder / name, f"{self._key}/{name}")
                self._known[name] = found[name]
            except FileNotFoundError:
                continue
        for name in set(self._known) - set(found):
            del self._known[name]
            if self._removes:
                self._store.remove(f"{self._key}/{name}")


def _state_last(name: str) -> tuple[bool, str]:
    return name.endswith("state.json"), name
