"""The store of `AXON_STORAGE`: files by the MD5 of their content, in the layout of a DVC 3 remote.

Nodes that do not see the checkout read a step's inputs from here and leave its outputs and checkpoints here. The bucket
or folder may be the DVC remote too: both keep one object under one name.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

from tasks.errors import UserError
from tasks.files import file_md5, new_directory
from tasks.runtime import stages

log = logging.getLogger(__name__)

ADDRESS = "AXON_STORAGE"
_CHUNK = 8 * 2**20
_TRIES_AFTER_S = (1, 4, 15, 30)
_HOPELESS = ("ACCESS_DENIED", "AccessDenied", "NO_SUCH_BUCKET", "NoSuchBucket", "InvalidAccessKeyId", "SIGNATURE")

P = ParamSpec("P")
R = TypeVar("R")


def address() -> str:
    """The value of `AXON_STORAGE`, or "" where workers share the checkout; a `UserError` if it cannot be one."""
    given = os.environ.get(ADDRESS, "").rstrip("/")
    if not given:
        return ""
    parts = urllib.parse.urlsplit(given)
    if parts.username or parts.password or parts.query:
        raise UserError(
            f"{ADDRESS} names a user, a password or options, which nodes and logs would see. Give {parts.scheme}://"
            "BUCKET/FOLDER, and the keys by AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL."
        )
    if parts.scheme == "s3" and parts.netloc:
        return given
    if parts.scheme == "file" and not parts.netloc and parts.path:
        return given
    if not parts.scheme and given.startswith("/"):
        return Path(given).as_uri()
    raise UserError(
        f"{ADDRESS}={given!r} is no address of a store; give s3://BUCKET/FOLDER, or file:///FOLDER for a folder that "
        "every node sees."
    )


def _patiently(function: Callable[P, R]) -> Callable[P, R]:
    """Try again where the store does not answer: work of hours is not lost for a minute of it."""

    @wraps(function)
    def tried(*args: P.args, **kwargs: P.kwargs) -> R:
        for wait_s in _TRIES_AFTER_S:
            try:
                return function(*args, **kwargs)
            except FileNotFoundError:
                raise
            except OSError as error:
                if any(word in str(error) for word in _HOPELESS):
                    raise
                log.warning("the store did not do it (%s); again in %d s", error, wait_s)
                time.sleep(wait_s)
        return function(*args, **kwargs)

    return tried


class Store:
    """Objects at `address`; every error of it is a `UserError` with exit code 1 that names the address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._fs, self._base = _file_system(address)

    def push(self, root: Path, digests: Mapping[str, str]) -> None:
        """Copy the files and directories `digests` (MD5 by path below `root`) there, where they are missing."""
        with self.errors("written to"):
            for path, digest in digests.items():
                self._push(root / path, digest)

    def pull(self, root: Path, digests: Mapping[str, str], cache: Path | None = None) -> None:
        """Write them below `root`, whole or not at all, by way of `cache` if given; bytes are checked on the way."""
        with self.errors("read from"):
            for path, digest in digests.items():
                self._pull(root / path, digest, cache)

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """What the store refuses as one message that says where it is and what to do."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{ADDRESS}={self.address} could not be {doing}: {' '.join(str(error).split())[:300]}. Check that it "
                "answers, and the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; then `axon run` again.",
                exit_code=1,
            ) from None

    def keys(self, prefix: str) -> list[str]:
        """The names of the plain files below `prefix`, relative to it."""
        from pyarrow import fs

        base = f"{self._base}/{prefix}"
        selector = fs.FileSelector(base, allow_not_found=True, recursive=True)
        found = [info.path for info in self._fs.get_file_info(selector) if info.type == fs.FileType.File]
        return sorted(path[len(base) + 1 :] for path in found if not path.endswith(".tmp"))

    def put(self, path: Path, key: str) -> None:
        """Copy a file to `key`; there it is whole or not at all."""
        self._put(lambda: path.open("rb"), key)

    @_patiently
    def _put(self, opened: Callable[[], BinaryIO], key: str) -> None:
        from pyarrow import fs

        target = f"{self._base}/{key}"
        is_local = isinstance(self._fs, fs.LocalFileSystem)
        writing = f"{target}.{os.getpid()}.tmp" if is_local else target  # S3 shows an object when it is whole
        if is_local:
            self._fs.create_dir(os.path.dirname(target), recursive=True)
        with opened() as source, self._fs.open_output_stream(writing) as sink:
            shutil.copyfileobj(source, sink, _CHUNK)
        if is_local:
            self._fs.move(writing, target)

    @_patiently
    def get(self, key: str, path: Path) -> None:
        """Copy `key` to the file `path`, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with self._fs.open_input_stream(f"{self._base}/{key}") as source, temporary.open("wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
                sink.flush()
                os.fsync(sink.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @_patiently
    def remove(self, key: str) -> None:
        try:
            self._fs.delete_file(f"{self._base}/{key}")
        except FileNotFoundError:
            return

    def _has(self, key: str) -> bool:
        from pyarrow import fs

        found = self._fs.get_file_info(f"{self._base}/{key}")
        return bool(found.type == fs.FileType.File)

    def _push(self, path: Path, digest: str) -> None:
        if self._has(_key(digest)):  # a directory's listing is written last, so its files are there as well
            return
        if not digest.endswith(".dir"):
            self.put(path, _key(digest))
            return
        listing = stages.listing(path)
        for entry in listing:
            self._push(path / entry["relpath"], entry["md5"])
        text = json.dumps(listing, sort_keys=True)
        if hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir" != digest:
            raise UserError(f"{path} changed while it was copied to {self.address}; run again.", exit_code=1)
        self._put(lambda: io.BytesIO(text.encode()), _key(digest))

    def _pull(self, path: Path, digest: str, cache: Path | None) -> None:
        if not digest.endswith(".dir"):
            self._pull_file(path, digest, cache)
            return
        with new_directory(path) as scratch:
            listing_file = scratch / ".listing"
            self._pull_file(listing_file, digest.removesuffix(".dir"), cache, key=_key(digest))
            listing = json.loads(listing_file.read_text(encoding="utf-8"))
            listing_file.unlink()
            for entry in listing:
                if Path(entry["relpath"]).is_absolute() or ".." in Path(entry["relpath"]).parts:
                    raise UserError(f"{self.address}: {digest} lists {entry['relpath']!r}, which leads out of it.")
                self._pull_file(scratch / entry["relpath"], entry["md5"], cache)

    def _pull_file(self, path: Path, digest: str, cache: Path | None, key: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = cache / digest[:2] / digest[2:] if cache else path
        for _ in range(2):
            if not kept.is_file():
                try:
                    self.get(key or _key(digest), kept)
                except FileNotFoundError:
                    raise UserError(
                        f"{self.address} does not hold {path.name} (MD5 {digest}) any more; it was removed while a "
                        "stage needed it. Run again.",
                        exit_code=1,
                    ) from None
            if file_md5(kept) == digest:
                break
            kept.unlink()  # damaged in the cache: once more from the store
        else:
            raise UserError(
                f"{self.address}: the object {key or _key(digest)} does not have the bytes of its name. Delete it "
                "there and run again.",
                exit_code=1,
            )
        if kept != path:
            path.unlink(missing_ok=True)
            shutil.copyfile(kept, path)


def _file_system(address: str) -> tuple[Any, str]:
    from pyarrow import fs

    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "s3":
        return fs.LocalFileSystem(), parts.path
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    files = fs.S3FileSystem(
        endpoint_override=endpoint,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        connect_timeout=10,
        request_timeout=60,
    )
    return files, parts.netloc + parts.path


def _key(digest: str) -> str:
    """The name that DVC 3 gives an object."""
    return f"files/md5/{digest[:2]}/{digest[2:]}"
