"""The folder for an outside auditor: what is in it, and the checks on it that need nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tasks.errors import UserError
from tasks.lineage import hashing
from tasks.lineage.ancestry import files_of
from tasks.lineage.audit.artifacts import check_tree
from tasks.lineage.audit.findings import Part
from tasks.lineage.audit.scene import Entry, Scene

SUMS, DIGESTS, ANCHOR, REPORT, README = "SHA256SUMS", "artifacts.sha256", "anchor.json", "audit.json", "README.md"
REGISTERED = "registered"
_DO = "Ask whoever exported it for the folder anew."


def recognise(folder: Path) -> None:
    """Raise `UserError` unless the folder is one that was exported."""
    missing = [name for name in (SUMS, ANCHOR, "lineage/statements") if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"{folder} is not a folder that `axon audit --export` wrote: {', '.join(missing)} is missing in it."
        )


def digests(entries: Iterable[Entry]) -> str:
    """What every output of these executions must hash to, as `sha256sum` writes it."""
    found = {path: digest.sha256 for entry in entries for path, digest in entry.statement.subjects.items()}
    return "".join(f"{found[path]}  {path}\n" for path in sorted(found))


def sums(folder: Path) -> str:
    """The digests of all files of the folder but this list, as `sha256sum` writes them."""
    files = {name: digest for name, digest in hashing.tree(folder).files.items() if name != SUMS}
    return "".join(f"{files[name].sha256}  {name}\n" for name in sorted(files))


def check(scene: Scene) -> None:
    """The files against the list of them, the digests of artifacts and the registered models against the statements."""
    part = scene.part("artifacts")
    _check_sums(scene.root, part)
    if scene.report.anchor is None:
        part.note("The folder's own anchor.json proves nothing: give the --key and --head that you were told.")
    path = scene.root / DIGESTS
    found = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    expected = digests(scene.current.values())
    for line in sorted({*expected.splitlines()} ^ {*found.splitlines()}):
        is_wanted = line in expected.splitlines()
        part.find(
            f"{DIGESTS} {line[66:]}",
            expected=line[:64] if is_wanted else "no such line in the statements",
            found="no such line" if is_wanted else line[:64],
            do=_DO,
        )
    part.count("digests", len(expected.splitlines()))
    for entry in scene.entries:
        if entry.statement.kind == "register":
            _check_model(scene, part, entry)


def _check_sums(root: Path, part: Part) -> None:
    path = root / SUMS
    listed = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        listed[line[66:]] = line[:64]
    try:
        found = {name: digest.sha256 for name, digest in hashing.tree(root).files.items() if name != SUMS}
    except (OSError, UserError) as error:
        part.find(str(root), expected="readable files", found=str(error), do=_DO)
        return
    part.count("files", len(found))
    for name in sorted({*listed, *found}):
        if listed.get(name) != found.get(name):
            expected = f"SHA-256 {listed[name]}" if name in listed else f"no file that {SUMS} does not list"
            told = f"SHA-256 {found[name]}" if name in found else "no such file"
            part.find(name, expected=expected, found=told, do=_DO)


def _check_model(scene: Scene, part: Part, entry: Entry) -> None:
    facts = entry.statement.parameters
    place = f"{REGISTERED}/{facts.get('name')}-{facts.get('version')}"
    if not (scene.root / place).is_dir():
        part.missed("registered versions without their files")
        return
    out = str(facts.get("model"))
    expected = {f"{place}/{name}": digest for name, digest in files_of(entry.statement, out).items()}
    check_tree(part, scene.root / place, place, str(facts.get("md5")), expected, entry.place, do=_DO)
