"""The cheap look at every data source before any stage starts; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.data import removal_list
from tasks.data.packages import check_installed, read_pins
from tasks.errors import UserError

if TYPE_CHECKING:
    from tasks.parameters import Parameters


def _check_file(number: int, path: str, root: Path) -> list[str]:
    where, file = f"data.files[{number}].path={path!r}", root / path
    if not file.exists():
        return [f"{where}: there is no such file (looked for {file}); give a path relative to params.yaml"]
    if not file.is_file():
        return [f"{where}: is not a file; give the path of one JSONL file"]
    with file.open("rb") as stream:
        if not any(line.strip() for line in stream):
            return [f"{where}: the file is empty; write one JSON object per line, or take it out of params.yaml"]
    return []


def check_sources(params: Parameters, root: Path) -> None:
    """Raise one `UserError` that lists every missing or empty file, unknown package, and source with nothing in it;
    and one about the removal list, if that is not right."""
    removal_list.read(root)
    data = params.data
    wrong = []
    if data.python_docs.packages:
        wrong += check_installed(data.python_docs.packages, read_pins(root / "constraints.txt"))
    paths = [own.path for own in data.files]
    for number, path in enumerate(paths):
        wrong += _check_file(number, path, root)
        if path in paths[:number]:
            wrong.append(f"data.files[{number}].path={path!r}: is listed twice; take one out")
    if not data.python_docs.packages and not data.files:
        wrong.append(
            "data: there is no text to pretrain on; name packages in data.python_docs.packages or files in data.files"
        )
    if wrong:
        listed = "\n".join(f"  - {message}" for message in wrong)
        raise UserError(f"{len(wrong)} mistake(s) in the data sources:\n{listed}")
