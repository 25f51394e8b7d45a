"""Registered versions: their rows in MLflow, their aliases, their files, signature and bill of materials."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from tasks import registry
from tasks.errors import UserError
from tasks.lineage import hashing, registrations
from tasks.lineage.ancestry import digest_of, files_of
from tasks.lineage.audit.findings import Part, shown
from tasks.lineage.audit.scene import KEYS, MODELS, Entry, Scene
from tasks.lineage.audit.snapshot import Snapshot, local_path
from tasks.lineage.audit.tracking import check_copy

SIGNATURE, BOM = "model.sig", "bom.cdx.json"
REMOVED = "contains-removed-data"
_DO = "MLflow's registry was altered. Restore it from a copy; the statements have what is true."
_DO_ALIAS = "Set it back in MLflow, or register or promote with `axon`, which states it."
_RESTORE = f"Restore it with: git checkout {MODELS}"
SETS = Path("lineage/evaluation-sets")
_RESTORE_SET = f"Restore it with: git checkout {SETS}"


def check(scene: Scene, known: Snapshot | None) -> None:
    """Every statement of a registration against MLflow and the files beside it. `known`: None where MLflow is away."""
    part = scene.part("registered")
    every = _newest(scene.entries)
    removed = registrations.with_removed_data(entry.statement for entry in scene.entries)
    asked = {entry.statement.digest for entry in scene.asked}
    for (name, version), entry in every.items():
        if entry.statement.digest in asked:
            part.count("versions")
            folder = _check_rows(part, known, entry, version, removed.get(version)) if known else None
            scene.copies[version] = [folder] if folder else []
            _check_files(scene, part, entry, f"{name}-{version}", folder)
    _check_evaluation_sets(scene, part)
    if scene.scope is None:
        _check_strangers(scene, part, known, {f"{name}-{version}" for name, version in every}, set(every))
        if known is not None and (every or known.versions):
            _check_aliases(part, known, scene.entries)


def _newest(entries: Iterable[Entry]) -> dict[tuple[str, str], Entry]:
    """The newest registration of each (name, version)."""
    return {
        (str(e.statement.parameters.get("name")), str(e.statement.parameters.get("version"))): e
        for e in entries
        if e.statement.kind == "register"
    }


def _check_aliases(part: Part, known: Snapshot, entries: list[Entry]) -> None:
    expected = registrations.aliases((entry.statement for entry in entries), registry.NAME)
    part.count("aliases", len(expected))
    for alias in dict.fromkeys([*expected, *known.aliases]):
        part.equal(
            f"MLflow {registry.NAME} alias {alias}",
            f"version {expected[alias]}" if alias in expected else "none",
            f"version {known.aliases[alias]}" if alias in known.aliases else "none",
            do=_DO_ALIAS,
        )


def _check_rows(part: Part, known: Snapshot, entry: Entry, version: str, removed: str | None) -> Path | None:
    """The rows of a version and its copy of the model; the folder of that copy if it is on this machine."""
    facts = entry.statement.parameters
    place = f"MLflow {facts['name']} version {version}"
    row = known.versions.get(version)
    if row is None:
        if known.covers(entry.statement):
            part.find(place, expected=f"the version of {entry.place}", found="no such version", do=_DO)
        else:
            part.missed("versions of before this MLflow store")
        return None
    model = next((m for m in known.models if m.artifact_location == row.source), None)
    tags = {"axon.digest": facts["md5"], "axon.stage": str(facts["model"]).removeprefix("models/")}
    tags |= {REMOVED: removed} if removed else {}
    ours = {key: value for key, value in dict(row.tags).items() if key.startswith("axon.") or key == REMOVED}
    part.equal_maps(f"{place} tags", tags, ours, do=_DO)
    part.equal(f"{place} status", "READY", row.status, do=_DO)
    part.equal(f"{place} download", row.source, known.downloads.get(version), do=_DO)
    folder = local_path(str(row.source))
    if model is None:
        if not removed or (folder is not None and folder.is_dir()):
            part.find(f"{place} source", expected="the place of a logged model", found=shown(row.source), do=_DO)
    else:
        part.equal(f"{place} run_id", model.source_run_id or "", row.run_id or "", do=_DO)
    if folder is None:
        part.missed("models in a store elsewhere")
        return None
    if removed and not folder.is_dir():
        part.missed("models that were purged")
        return None
    part.count("copies of models")
    check_copy(part, folder, place, entry, str(facts["model"]), str(facts["md5"]))
    return folder if folder.is_dir() else None


def _check_files(scene: Scene, part: Part, entry: Entry, folder: str, copy: Path | None) -> None:
    """Signature and bill of materials: their bytes, then what they say of the model."""
    statement = entry.statement
    out = str(statement.parameters["model"])
    is_true = {}
    for name in (SIGNATURE, BOM):
        place = f"{MODELS}/{folder}/{name}"
        expected = statement.subjects.get(place)
        path = scene.home / place
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        part.count("signatures" if name == SIGNATURE else "bills of materials")
        if expected is None:
            part.find(place, expected=f"a file that {entry.place} speaks for", found="it names none", do="Register it "
                      "anew: `axon run` signs what it registers.")  # fmt: skip
            continue
        told = f"SHA-256 {found}" if found else "it is missing"
        is_true[name] = found == expected.sha256
        if not is_true[name]:
            part.find(place, expected=f"SHA-256 {expected.sha256} ({entry.place})", found=told, do=_RESTORE)
    if is_true.get(SIGNATURE):
        model = copy or _elsewhere(scene, folder, out, entry)
        if model is None:
            part.missed("models of signatures")
        else:
            _check_signature(part, model, scene.home, f"{MODELS}/{folder}/{SIGNATURE}", entry.signer)
    if is_true.get(BOM):
        _check_bom(part, scene.home / MODELS / folder / BOM, f"{MODELS}/{folder}/{BOM}", entry, out)


def _check_evaluation_sets(scene: Scene, part: Part) -> None:
    """What decisions were made on: the lists of items, which an exported folder may leave out."""
    folder = scene.home / SETS
    for entry in scene.entries:
        if entry.statement.kind != "decide":
            continue
        part.count("decisions")
        for name, expected in entry.statement.subjects.items():
            if not name.startswith(SETS.as_posix() + "/"):
                continue
            path = scene.home / name
            if not folder.is_dir():
                part.missed("evaluation sets of decisions")
            elif not path.is_file():
                part.find(name, expected=f"the items of {entry.place}", found="it is missing", do=_RESTORE_SET)
            else:
                found = hashlib.sha256(path.read_bytes()).hexdigest()
                part.equal(name, f"SHA-256 {expected.sha256}", f"SHA-256 {found}", do=_RESTORE_SET)


def _elsewhere(scene: Scene, folder: str, out: str, entry: Entry) -> Path | None:
    """The model in an exported folder, or in the workspace if it is still that one."""
    exported = scene.home / "registered" / folder
    if exported.is_dir():
        return exported
    return scene.root / out if holds(scene.root / out, out, entry) else None


def holds(path: Path, out: str, entry: Entry) -> bool:
    """Whether a folder has the files of the output `out` as the statement has them, and no other."""
    try:
        return hashing.tree(path).files == files_of(entry.statement, out)
    except (OSError, UserError):
        return False


def _check_signature(part: Part, model: Path, home: Path, place: str, signer: str) -> None:
    from tasks.lineage import model_signing

    try:
        model_signing.verify(model, home / KEYS / f"{signer}.pem", home / place)
    except model_signing.BadSignature as error:
        part.find(place, expected=f"a signature by {signer} over {model}", found=error.reason, do=_RESTORE)


def _check_bom(part: Part, path: Path, place: str, entry: Entry, out: str) -> None:
    """The bill keeps to the published schema, and describes the very model that was registered."""
    content = path.read_bytes()
    for problem in _schema_problems(content):
        part.find(place, expected="CycloneDX 1.6", found=shown(problem), do=_RESTORE)
    try:
        component = json.loads(content)["metadata"]["component"]
        hashes = {entry["alg"]: entry["content"] for entry in component["hashes"]}
    except (ValueError, KeyError, TypeError) as error:
        part.find(place, expected="a component with hashes", found=shown(error), do=_RESTORE)
        return
    expected = {
        "name": entry.statement.parameters["name"],
        "version": entry.statement.parameters["version"],
        "sha256": digest_of(entry.statement, out),
    }
    found = {"name": component.get("name"), "version": component.get("version"), "sha256": hashes.get("SHA-256")}
    part.equal_maps(f"{place} component", expected, found, do=_RESTORE)


@lru_cache(maxsize=64)
def _schema_problems(content: bytes) -> tuple[str, ...]:
    """Reading the schema takes longer than all the rest, and the same bytes are the same problem."""
    from tasks.lineage import bom

    return tuple(bom.validate(content))


def _check_strangers(
    scene: Scene, part: Part, known: Snapshot | None, folders: set[str], stated: set[tuple[str, str]]
) -> None:
    """Versions and folders that no statement registers."""
    home = scene.home / MODELS
    for path in sorted(home.iterdir()) if home.is_dir() else ():
        if path.name not in folders and not path.name.startswith("."):
            part.find(f"{MODELS}/{path.name}", expected="a statement that registers it", found="none", do="Remove it.")
    for version in known.versions if known else ():
        if (registry.NAME, version) not in stated:
            part.find(
                f"MLflow {registry.NAME} version {version}",
                expected="a statement that registers it",
                found="none",
                do="Nothing says how it was made: delete it in MLflow, or register what `axon run` makes.",
            )
