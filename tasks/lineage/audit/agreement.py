"""Whether `dvc.lock`, `params.yaml` and `dvc.yaml` are those of the newest run, and say what the statements say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml

from tasks.errors import UserError
from tasks.lineage.audit.findings import Part, listed, shown
from tasks.lineage.audit.scene import Entry, Scene, recorded, recorded_md5s, recorded_parameters
from tasks.runtime import stages

FILES = ("dvc.lock", "dvc.yaml", "params.yaml")
_DO = {
    "dvc.lock": "Restore it with: git checkout dvc.lock. If DVC changed it on purpose, `axon run` states it anew.",
    "dvc.yaml": "Restore it with: git checkout dvc.yaml. If you are editing it: `axon run` makes it the newest run's.",
    "params.yaml": "If you are editing it: `axon run` makes it the newest run's. If not: git checkout params.yaml.",
}
_RERUN = "Restore it with: git checkout dvc.lock. If the stage ran with AXON_LINEAGE=off, run it again without."


def read_pipeline(scene: Scene) -> None:
    """Read `dvc.lock` and the names in `dvc.yaml` into the scene; a damaged lock file is a finding."""
    with suppress(UserError):  # what is wrong with dvc.yaml is found when its bytes are compared
        scene.graph = frozenset(stages.read_stages(scene.root))
    path = scene.root / "dvc.lock"
    if not path.is_file():
        return
    try:
        tree = read_yaml(path.read_bytes()) or {}
        scene.lock = dict(tree["stages"] or {})
    except (OSError, ValueError, TypeError, KeyError) as error:
        scene.part("agreement").find("dvc.lock", expected="DVC's lock file", found=shown(error), do=_DO["dvc.lock"])


def read_yaml(content: bytes) -> Any:
    """YAML as DVC writes and reads it (1.2: 1e-05 is a number); raises a ValueError that says what is wrong."""
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml

    try:
        return parse_yaml(content.decode("utf-8"), "it")
    except (YAMLFileCorruptedError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not readable YAML: {error.__cause__ or error}") from None


def check(scene: Scene) -> None:
    part = scene.part("agreement")
    run = scene.newest_run
    by_value = list(FILES)
    if run is None:
        part.note("No statement of a whole run yet: dvc.lock, dvc.yaml and params.yaml are compared by what they say.")
    else:
        later = [e for e in scene.entries if e.statement.stage and e.statement.sequence > run.statement.sequence]
        is_strict = not later and scene.scope is None
        by_value = [name for name in FILES if not _is_of_run(scene, part, run, name, is_strict=is_strict)]
        if later and by_value:
            stages_later = listed(dict.fromkeys(str(e.statement.stage) for e in later))
            part.note(f"{stages_later} ran after the newest whole run: the files are compared by value.")
    for stage in dict.fromkeys([*scene.lock, *scene.current_asked]):
        _check_entry(scene, part, stage)
    if "params.yaml" in by_value:
        _check_parameters(scene, part)
    if "dvc.yaml" in by_value:
        _check_graph(scene, part)


def _is_of_run(scene: Scene, part: Part, run: Entry, name: str, *, is_strict: bool) -> bool:
    """Whether the bytes of the file settle it: they are those of the newest run, or that they are not is a finding."""
    expected = run.statement.subjects.get(name)
    path = scene.root / name
    content = path.read_bytes() if path.is_file() else None
    if expected is None:
        return False
    if content is not None and hashlib.sha256(content).hexdigest() == expected.sha256:
        part.count("files")
        return True
    if is_strict:
        found = "it is missing" if content is None else f"SHA-256 {hashlib.sha256(content).hexdigest()}"
        part.find(
            name,
            expected=f"{name} of the newest run, SHA-256 {expected.sha256} ({run.place})",
            found=f"{name} is not that of the newest run: {found}{_changes(run, name, content)}",
            do=_DO[name],
        )
    return is_strict


def _changes(run: Entry, name: str, content: bytes | None) -> str:
    """Which parameters differ from the run's, where the file can still be read."""
    if name != "params.yaml" or content is None:
        return ""
    try:
        tree = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError):
        return "; it is not readable YAML"
    changed = differing(run.statement.parameters, tree)
    differences = [f"{key} is {shown(now, 40)}, was {shown(then, 40)}" for key, then, now in changed]
    return f"; {listed(differences)}" if differences else "; its values are the same"


def differing(then: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted key, earlier and later value of every difference between two trees."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*then, *now])
        pairs = [(f"{key}.{k}" if key else str(k), then.get(k), now.get(k)) for k in keys]
        return [found for k, a, b in pairs for found in differing(a, b, k)]
    return [] if then == now else [(key, then, now)]


def _check_entry(scene: Scene, part: Part, stage: str) -> None:
    """One stage of `dvc.lock` against the statement of the execution that it records."""
    entry, locked = scene.current.get(stage), scene.lock.get(stage)
    place = f"dvc.lock {stage}"
    if entry is not None and scene.scope is not None and entry.statement.digest not in scene.scope:
        return
    if entry is None or not isinstance(locked, Mapping):
        if entry is None and scene.scope is None:
            part.find(place, expected="a statement of this execution", found="none", do=_RERUN)
        elif entry is not None:
            part.find(place, expected=f"the execution of {entry.place}", found="no entry of this stage", do=_RERUN)
        return
    part.count("entries")
    statement = entry.statement
    where = f"({entry.place})"
    part.equal(f"{place} cmd", statement.external["command"], locked.get("cmd"), do=_RERUN)
    inputs = {path: digests["md5"] for path, digests in statement.inputs.items()}
    part.equal_maps(f"{place} deps", inputs, recorded_md5s(locked, "deps"), do=f"{_RERUN} {where}")
    part.equal_maps(f"{place} outs", statement.outputs, recorded_md5s(locked, "outs"), do=f"{_RERUN} {where}")
    params = recorded_parameters(locked)
    part.equal_maps(f"{place} params", statement.parameters, params, do=f"{_RERUN} {where}")
    _check_sizes(part, place, entry, locked)


def _check_sizes(part: Part, place: str, entry: Entry, locked: Mapping[str, Any]) -> None:
    """Sizes and numbers of files in `dvc.lock`, and that its digests are MD5s."""
    definition = entry.statement.body["predicate"]["buildDefinition"]
    made = definition["internalParameters"]["outputs"]
    read = {m["name"]: m["annotations"].get("size") for m in definition["resolvedDependencies"]}
    for what in ("deps", "outs"):
        for facts in recorded(locked, what):
            path = str(facts.get("path"))
            size = made.get(path, {}).get("size") if what == "outs" else read.get(path)
            if size is not None and "size" in facts:
                part.equal(f"{place} {what} {path} size", size, facts["size"], do=_RERUN)
            if what == "outs" and path in made and "nfiles" in facts:
                part.equal(f"{place} {what} {path} nfiles", made[path]["n_files"], facts["nfiles"], do=_RERUN)
            part.equal(f"{place} {what} {path} hash", "md5", facts.get("hash", "md5"), do=_RERUN)


def _check_parameters(scene: Scene, part: Part) -> None:
    """`params.yaml` by value: what each stage ran with last."""
    try:
        tree = yaml.safe_load((scene.root / "params.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:
        part.find("params.yaml", expected="readable YAML", found=shown(error), do=_DO["params.yaml"])
        return
    for stage, entry in scene.current_asked.items():
        for key, then in entry.statement.parameters.items():
            for name, was, now in differing(then, stages.value_at(tree, key), key):
                part.find(
                    f"params.yaml {name}",
                    expected=f"{shown(was)}, as stage {stage} ran with last ({entry.place})",
                    found=f"params.yaml is not that of the newest run: {shown(now)}",
                    do=_DO["params.yaml"],
                )
            part.count("parameters")


def _check_graph(scene: Scene, part: Part) -> None:
    """`dvc.yaml` by value: the command, inputs, outputs and parameters of each stage."""
    try:
        graph = stages.read_stages(scene.root)
    except UserError as error:
        part.find("dvc.yaml", expected="a readable stage graph", found=str(error), do=_DO["dvc.yaml"])
        return
    for name, entry in scene.current_asked.items():
        statement, stage = entry.statement, graph.get(name)
        part.count("stages")
        if stage is None:
            part.find(f"dvc.yaml {name}", expected=f"the stage of {entry.place}", found="none", do=_DO["dvc.yaml"])
            continue
        pairs = {
            "cmd": (statement.external["command"], stage.cmd),
            "deps": (sorted(statement.inputs), sorted(stage.deps)),
            "outs": (sorted(statement.outputs), sorted(stage.outs)),
            "params": (sorted(statement.parameters), sorted(stage.params)),
        }
        for what, (expected, found) in pairs.items():
            part.equal(f"dvc.yaml {name} {what}", expected, found, do=_DO["dvc.yaml"])
