"""Which tables of records stand behind an artifact, and how to read exactly those."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError
from tasks.lineage.contamination import Row
from tasks.lineage.hashing import FileDigest, listing_digest, tree
from tasks.lineage.statement import Statement
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout

TABLES = {"data/text.parquet": ("text",), "data/demonstrations.parquet": ("prompt", "answer")}
_COMMON = ("record_id", "split", "source", "license", "package", "version")


@dataclass(frozen=True, kw_only=True)
class DataVersion:
    """The tables of records that one execution of the data stage wrote: {path: digest}, {path: MD5 where known}."""

    files: Mapping[str, FileDigest]
    md5s: Mapping[str, str]

    @property
    def digest(self) -> str:
        return listing_digest(self.files)


def versions(ancestors: Sequence[Statement]) -> list[DataVersion]:
    """The data versions that the statements wrote, and tables that they read from a version without a statement."""
    found: dict[str, DataVersion] = {}
    stated: set[tuple[str, str]] = set()
    for statement in ancestors:
        files = {path: statement.subjects[path] for path in TABLES if path in statement.subjects}
        if files:
            version = DataVersion(files=files, md5s={path: statement.outputs.get(path, "") for path in files})
            found[version.digest] = version
            stated |= {(path, digest.sha256) for path, digest in files.items()}
    for statement in ancestors:
        read = {path: statement.inputs[path] for path in TABLES if path in statement.inputs}
        left = {path: digests for path, digests in read.items() if (path, digests["sha256"]) not in stated}
        if left:
            version = DataVersion(
                files={path: FileDigest(digests["sha256"], 0) for path, digests in left.items()},
                md5s={path: digests["md5"] for path, digests in left.items()},
            )
            found[version.digest] = version
    return [found[digest] for digest in sorted(found)]


def workspace_version(checkout: Checkout) -> DataVersion:
    """The records that lie in the workspace, whoever made them."""
    missing = [path for path in TABLES if not (checkout.root / path).is_file()]
    if missing:
        raise UserError(f"{', '.join(missing)} is missing in {checkout.root}: run `axon run data`.", exit_code=1)
    files = {path: tree(checkout.root / path).files[""] for path in TABLES}
    return DataVersion(files=files, md5s={path: stages.digest(checkout.root / path) for path in TABLES})


def rows(contents: Mapping[str, bytes]) -> Iterator[Row]:
    """The records of the tables, in batches, so that a large table is never a list of objects."""
    import pyarrow.parquet as parquet

    for path, content in sorted(contents.items()):
        table = Path(path).stem
        file = parquet.ParquetFile(io.BytesIO(content))
        for batch in file.iter_batches(columns=[*_COMMON, *TABLES[path]]):
            columns = batch.to_pydict()
            for i, record in enumerate(columns["record_id"]):
                yield Row(
                    record=record.hex(),
                    table=table,
                    fields={name: columns[name][i] for name in TABLES[path]},
                    **{name: columns[name][i] for name in _COMMON[1:]},
                )


def read_table(checkout: Checkout, version: DataVersion, path: str) -> bytes:
    """The bytes of a table, hashed as read: from the workspace, or from DVC's cache."""
    md5 = version.md5s[path]
    places = [checkout.root / path]
    if md5:
        places += [
            root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
            for root in dict.fromkeys((checkout.root, checkout.state.parent))
        ]
    for place in places:
        if place.is_file():
            content = place.read_bytes()
            if hashlib.sha256(content).hexdigest() == version.files[path].sha256:
                return content
    raise UserError(
        f"{path} with SHA-256 {version.files[path].sha256}, an ancestor, is neither in the workspace nor in DVC's "
        f"cache, so that nothing can be said of its licences and findings. Fetch it with `dvc pull`, or check out the "
        f"dvc.lock of that run and run `dvc checkout`.",
        exit_code=1,
    )
