"""Write the folder for an outside auditor: everything that public tools need, and how to use them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from tasks import registry
from tasks.errors import UserError
from tasks.files import new_directory, write_json, write_text
from tasks.lineage import hashing, registrations
from tasks.lineage.audit import bundle, registered
from tasks.lineage.audit.agreement import FILES
from tasks.lineage.audit.findings import plural
from tasks.lineage.audit.scene import KEYS, MODELS, STATEMENTS, Scene

_HERE = Path(__file__).parent
_PUBLISHED = tuple(f"{name}.SNAPSHOT.schema.json" for name in ("bom-1.6", "jsf-0.82", "spdx"))


def check_place(folder: Path) -> None:
    """Raise `UserError` if something else than an earlier export is at `folder`: it would be replaced."""
    if not folder.exists():
        return
    try:
        bundle.recognise(folder)
    except UserError:
        if not folder.is_dir() or any(folder.iterdir()):
            message = f"--export {folder}: it is there already and is no earlier export; name a new folder."
            raise UserError(message) from None


def write(scene: Scene, folder: Path) -> str:
    """Write the folder as a whole, or leave what is there; what to tell of it. `scene` has been audited."""
    check_place(folder)
    models = models_in_use(scene)
    if not scene.entries:
        raise UserError("there is no statement to export: `axon run` writes them.", exit_code=1)
    with new_directory(folder.resolve()) as scratch:
        for name in (STATEMENTS, KEYS, MODELS):
            for source in _visible(scene.home / name):
                _copy(source, scratch / name / source.relative_to(scene.home / name))
        for name in FILES:
            if (scene.root / name).is_file():
                _copy(scene.root / name, scratch / name)
        for name, source in models.items():
            shutil.copytree(source, scratch / bundle.REGISTERED / name, copy_function=shutil.copyfile)
        _copy_schemas(scratch / "schemas")
        anchor = _anchor(scene)
        write_json(scratch / bundle.ANCHOR, anchor)
        write_json(scratch / bundle.REPORT, scene.report.as_json())
        write_text(scratch / bundle.DIGESTS, bundle.digests(scene.current.values()))
        readme = (_HERE / "templates" / "README.md").read_text(encoding="utf-8")
        readme = readme.replace("@KEYS@", " ".join(anchor["keys"])).replace("@HEAD@", anchor["head"])
        write_text(scratch / bundle.README, readme)
        write_text(scratch / bundle.SUMS, bundle.sums(scratch))
    return _told(scene, folder, models)


def models_in_use(scene: Scene) -> dict[str, Path]:
    """By NAME-VERSION, a copy of every registered version that has an alias, and of the newest, where one is true."""
    every = [entry for entry in scene.entries if entry.statement.kind == "register"]
    known = (entry.statement for entry in scene.entries)
    named = set(registrations.aliases(known, registry.NAME).values())
    found = {}
    for entry in every:
        facts = entry.statement.parameters
        if str(facts.get("version")) in named or entry is every[-1]:
            out = str(facts.get("model"))
            places = [scene.root / out, *scene.copies.get(str(facts.get("version")), [])]
            place = next((path for path in places if registered.holds(path, out, entry)), None)
            if place is not None:
                found[f"{facts.get('name')}-{facts.get('version')}"] = place
    return found


def _anchor(scene: Scene) -> dict[str, Any]:
    """The anchor as this side has it; without one, what the chain itself says."""
    newest = scene.entries[-1]
    keys = scene.report.anchor.keys if scene.report.anchor else tuple(sorted({e.signer for e in scene.entries}))
    return {"keys": list(keys), "head": newest.statement.digest, "sequence": newest.statement.sequence}


def _visible(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _copy_schemas(folder: Path) -> None:
    for source in sorted((_HERE / "schemas").glob("*.json")):
        _copy(source, folder / source.name)
    published = resources.files("cyclonedx.schema._res")
    for name in _PUBLISHED:
        write_text(folder / name, (published / name).read_text(encoding="utf-8"))


def _told(scene: Scene, folder: Path, models: dict[str, Path]) -> str:
    files = hashing.tree(folder).files
    size = sum(file.size for file in files.values())
    what = f"{plural(len(scene.entries), 'statements')} and {plural(len(models), 'registered models')}"
    return f"exported {what} to {folder}: {plural(len(files), 'files')}, {size / 1e6:.1f} MB; its README.md says more"
