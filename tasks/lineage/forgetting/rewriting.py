"""Take removed records out of people's own files, and keep a tokenizer or let go of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.data import removals
from tasks.data.own_files import BYTE_ORDER_MARK
from tasks.data.removals import Removals, content_digest
from tasks.errors import UserError
from tasks.files import write_bytes
from tasks.parameters import Parameters
from tasks.runtime import stages
from tasks.steps.tokenizer import KEPT as KEPT_TOKENIZER
from tasks.tokenizers.bytelevel import FILES


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Lines (from 1) to be taken out of a file; `is_all` if nothing is left then. sha256: of the file as read."""

    path: str
    lines: tuple[int, ...]
    is_all: bool
    sha256: str


def plan(root: Path, places: Collection[tuple[str, int]], n_lines: Mapping[str, int]) -> list[Cut]:
    """The cuts for records that stand in these (file, line); `n_lines` counts the lines of each that hold anything."""
    found = []
    for path in sorted({path for path, _ in places}):
        lines = tuple(sorted({line for p, line in places if p == path}))
        found.append(Cut(path=path, lines=lines, is_all=len(lines) == n_lines[path], sha256=_sha256(root / path)))
    return found


def plan_rankings(root: Path, params: Parameters, listed: Removals) -> list[Cut]:
    """The lines of human rankings whose prompt or one of whose answers is a removed record."""
    path = params.preferences.judge
    if path == "programmatic" or not (root / path).is_file():
        return []
    lines = _lines((root / path).read_bytes())
    gone = tuple(number for number, line in enumerate(lines, start=1) if _ranks_removed(line, listed))
    full = sum(bool(line.strip()) for line in lines)
    if not gone:
        return []
    return [Cut(path=path, lines=gone, is_all=len(gone) == full, sha256=_sha256(root / path))]


def _ranks_removed(line: bytes, listed: Removals) -> bool:
    try:
        row = json.loads(line)
        prompt, answers = str(row["prompt"]), [str(answer) for answer in row["answers"]]
    except (ValueError, KeyError, TypeError):
        return False
    texts = [prompt, *answers, *(f"{prompt}\n{answer}" for answer in answers)]
    if any(content_digest(text) in listed.contents for text in texts):
        return True
    long = [text for text in texts if len(text.split()) >= removals.MIN_PART_WORDS]
    return any(listed.is_near(removals.bands_of(text)) for text in long)


def cut(root: Path, cuts: Collection[Cut]) -> None:
    """Rewrite the files atomically, every other byte as it was; a file of which nothing is left is removed.

    Raises `UserError` before anything is written if a file is no longer what was read.
    """
    for one in cuts:
        if _sha256(root / one.path) != one.sha256:
            raise UserError(f"{one.path} was changed while this was running; run the command again.", exit_code=1)
    for one in cuts:
        path = (root / one.path).resolve()  # a link stays one, and the text goes from where it is
        if one.is_all:
            path.unlink()
            (root / one.path).unlink(missing_ok=True)
            continue
        gone = set(one.lines)
        content = path.read_bytes()
        mark = BYTE_ORDER_MARK if content.startswith(BYTE_ORDER_MARK) else b""
        left = [line for number, line in enumerate(_lines(content), start=1) if number not in gone]
        write_bytes(path, mark + b"\n".join(left))


def _lines(content: bytes) -> list[bytes]:
    return content.removeprefix(BYTE_ORDER_MARK).split(b"\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_tokenizer(root: Path) -> None:
    """Raise `UserError` unless the tokenizer in the workspace is the one that `dvc.lock` records."""
    recorded = {
        out["path"]: out.get("md5") for entry in stages.read_lock(root).values() for out in entry.get("outs", ())
    }
    folder = root / "tokenizer"
    if not folder.is_dir() or "tokenizer" not in recorded:
        raise UserError("--keep-tokenizer: there is no tokenizer yet; run `axon run tokenizer`, or leave it out.")
    if stages.digest(folder) != recorded["tokenizer"]:
        raise UserError(
            "--keep-tokenizer: tokenizer/ is not what dvc.lock records; bring it back with: dvc checkout tokenizer",
            exit_code=1,
        )


def keep_tokenizer(root: Path) -> None:
    """Put the tokenizer where the next run takes it as it is; see `check_tokenizer`."""
    check_tokenizer(root)
    for name in FILES:
        write_bytes(root / KEPT_TOKENIZER / name, (root / "tokenizer" / name).read_bytes())


def is_tokenizer_kept(root: Path) -> bool:
    return (root / KEPT_TOKENIZER / FILES[0]).is_file()


def let_tokenizer_go(root: Path) -> None:
    """Have the next run train a tokenizer."""
    for name in FILES:
        (root / KEPT_TOKENIZER / name).unlink(missing_ok=True)
