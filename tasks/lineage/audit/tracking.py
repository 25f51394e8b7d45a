"""MLflow against the statements: runs, their parameters and tags, data sets, logged models and statement artifacts.

Covered rows: of each run its name, status, life cycle, parent, parameters, data set inputs, model outputs, place of
artifacts, and the tags `axon.*`, `input.*`, `output.*`; of each logged model its name, status, digest, source run and
place. Metrics and times are not covered: metric files and statements have them. All is read through MLflow's client.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.lineage.ancestry import files_of
from tasks.lineage.audit.artifacts import check_tree
from tasks.lineage.audit.findings import Part
from tasks.lineage.audit.scene import Entry, Scene
from tasks.lineage.audit.snapshot import Snapshot, local_path
from tasks.lineage.statement import Statement
from tasks.tracking import mlflow_store

_DO = "MLflow's store was altered. Restore it from a copy; the statements have what is true."
_OURS = ("axon.", "input.", "output.")
_N_PARAM_CHARS = 6000  # what the sender keeps of a value


def check(scene: Scene, known: Snapshot) -> None:
    """Every statement of a stage or a run against its MLflow run, and every logged model against its statement."""
    part = scene.part("tracking")
    part.equal("MLflow experiment", "active", known.lifecycle, do=_DO)
    current = {entry.statement.digest for entry in scene.current.values()}
    run = scene.newest_run
    current |= {run.statement.digest} if run else set()
    for entry in scene.asked:
        if entry.statement.kind in ("stage", "run") and entry.statement.execution:
            _check_run(part, known, entry, is_current=entry.statement.digest in current)
    for entry in scene.asked:
        _check_models(scene, part, known, entry, is_current=entry.statement.digest in current)
    if scene.scope is None:
        _check_strangers(scene, part, known)


def _check_run(part: Part, known: Snapshot, entry: Entry, *, is_current: bool) -> None:
    statement = entry.statement
    name = statement.stage or "pipeline"
    runs = known.runs.get(str(statement.execution), [])
    place = f"MLflow run {name} {str(statement.execution)[:12]}"
    if not runs:
        if known.is_pending(str(statement.execution)):
            part.missed("runs that MLflow was not told of yet")
        elif is_current or known.covers(statement):
            part.find(place, expected=f"the run of {entry.place}", found="no such run", do=_DO)
        else:
            part.missed("runs of before this MLflow store")
        return
    if len(runs) > 1:
        part.find(place, expected="one run of this execution", found=f"{len(runs)} runs", do=_DO)
    for run in runs:
        _check_rows(part, known, entry, run, place, name)


def _check_rows(part: Part, known: Snapshot, entry: Entry, run: Any, place: str, name: str) -> None:
    statement = entry.statement
    part.count("runs")
    if run.info.status == "RUNNING" and known.is_pending(str(statement.execution)):
        part.missed("runs that MLflow was not told of yet")
        return
    part.equal(f"{place} name", name, run.info.run_name, do=_DO)
    part.equal(f"{place} status", "FINISHED", run.info.status, do=_DO)
    part.equal(f"{place} lifecycle_stage", "active", run.info.lifecycle_stage, do=_DO)
    artifacts = f"{known.artifact_root}/{run.info.run_id}/artifacts"
    part.equal(f"{place} artifact_uri", artifacts, run.info.artifact_uri, do=_DO)
    params = {k: v[:_N_PARAM_CHARS] for k, v in mlflow_store.flatten(dict(statement.parameters)).items()}
    part.equal_maps(f"{place} params", params, dict(run.data.params), do=_DO)
    tags = dict(run.data.tags)
    ours = {key: value for key, value in tags.items() if key.startswith(_OURS)}
    part.equal_maps(f"{place} tags", _tags(statement), ours, do=_DO)
    part.equal(f"{place} tags mlflow.runName", name, tags.get("mlflow.runName"), do=_DO)
    parent = known.execution_of.get(tags.get("mlflow.parentRunId", "")) if statement.stage else None
    expected = statement.pipeline if statement.stage else None
    part.equal(f"{place} parent", expected, parent, do=_DO)
    _check_datasets(part, statement, run, place)
    _check_artifact(part, entry, run, place)


def _tags(statement: Statement) -> dict[str, str]:
    kind = "stage" if statement.stage else "pipeline"
    tags = {"axon.execution": str(statement.execution), "axon.kind": kind, "axon.statement": statement.digest}
    tags |= {f"input.{path}": digests["md5"] for path, digests in statement.inputs.items()}
    return tags | {f"output.{path}": md5 for path, md5 in statement.outputs.items()}


def _check_datasets(part: Part, statement: Statement, run: Any, place: str) -> None:
    md5s = {path: digests["md5"] for path, digests in statement.inputs.items()}
    expected = {d.dataset.name: _dataset(d.dataset) for d in mlflow_store.datasets(md5s)}
    inputs = run.inputs.dataset_inputs if run.inputs else []
    found = {d.dataset.name: _dataset(d.dataset) for d in inputs}
    part.equal_maps(f"{place} data set", expected, found, do=_DO)


def _dataset(dataset: Any) -> str:
    return f"{dataset.digest} {dataset.source_type} {dataset.source}"


def _check_artifact(part: Part, entry: Entry, run: Any, place: str) -> None:
    """The copy of the statement that the run carries."""
    folder = local_path(run.info.artifact_uri)
    if folder is None:
        part.missed("statements in a store elsewhere")
        return
    path = folder / "lineage" / Path(entry.place).name
    part.count("statement artifacts")
    try:
        content = path.read_bytes()
    except OSError as error:
        content, found = b"", str(error)
    else:
        found = "other bytes"
    if content != entry.content:
        place = f"{place} artifact lineage/{path.name}"
        part.find(place, expected=f"a copy of {entry.place}", found=found, do=f"Copy the statement there: {path}")


def _check_models(scene: Scene, part: Part, known: Snapshot, entry: Entry, *, is_current: bool) -> None:
    """MLflow's copies of the model that an execution wrote; the newest must have one."""
    statement = entry.statement
    outs = [out for out in statement.outputs if out.startswith("models/")]
    runs = known.runs.get(str(statement.execution), []) if statement.stage and len(outs) == 1 else []
    for run in runs[:1]:
        linked = {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}
        own = [m for m in known.models if m.model_id in linked or m.source_run_id == run.info.run_id]
        # A copy that was cut off is neither ready nor linked; the sender has made another.
        own = [m for m in own if m.model_id in linked or _status(m) != "PENDING"] or own
        is_true = [_check_model(part, known, model, run, linked, outs[0], entry, is_current) for model in own]
        if any(is_true):
            scene.reached.add((outs[0], statement.outputs[outs[0]]))
        elif not own and is_current and run.info.status == "FINISHED":
            place = f"MLflow logged model {statement.stage} {str(statement.execution)[:12]}"
            part.find(place, expected=f"a copy of {outs[0]} of {entry.place}", found="no such model", do=_DO)


def _status(model: Any) -> str:
    return str(getattr(model.status, "value", model.status))


def _check_model(
    part: Part, known: Snapshot, model: Any, run: Any, linked: set[str], out: str, entry: Entry, is_current: bool
) -> bool:
    """The rows and the files of one logged model; whether all is as it must be."""
    place, statement = f"MLflow logged model {model.model_id}", entry.statement
    part.count("logged models")
    location = f"{known.artifact_root}/models/{model.model_id}/artifacts"
    facts = {
        "name": (statement.stage, model.name),
        "status": ("READY", _status(model)),
        "source_run_id": (run.info.run_id, model.source_run_id),
        "artifact_location": (location, model.artifact_location),
        "tags axon.digest": (statement.outputs[out], dict(model.tags).get("axon.digest")),
        "output of its run": (True, model.model_id in linked),
    }
    is_right = [part.equal(f"{place} {what}", *pair, do=_DO) for what, pair in facts.items()]
    folder = local_path(model.artifact_location)
    if folder is None:
        part.missed("models in a store elsewhere")
        return False
    if not folder.is_dir() and not is_current:
        part.missed("models of earlier executions")
        return False
    return check_copy(part, folder, place, entry, out) and all(is_right)


def check_copy(part: Part, folder: Path, place: str, entry: Entry, out: str, md5: str | None = None) -> bool:
    """The files of MLflow's copy of the output `out`; findings name them PLACE/FILE."""
    expected = {f"{place}/{name}" if name else place: d for name, d in files_of(entry.statement, out).items()}
    md5 = md5 or entry.statement.outputs[out]
    return check_tree(part, folder, place, md5, expected, entry.place, do=f"Restore it from {out}: {folder}")


def _check_strangers(scene: Scene, part: Part, known: Snapshot) -> None:
    """Rows that no statement speaks for but that look as if one did."""
    executions = {entry.statement.execution for entry in scene.entries}
    digests = set(scene.by_digest)
    for execution, runs in known.runs.items():
        for run in runs:
            named = dict(run.data.tags).get("axon.statement")
            if named is not None and (execution not in executions or named not in digests):
                place = f"MLflow run {run.info.run_name} {execution[:12]} tags axon.statement"
                part.find(place, expected="the digest of a statement of this execution", found=named, do=_DO)
            elif named is None and execution not in executions and run.info.status == "FINISHED":
                part.missed("runs without a statement")
