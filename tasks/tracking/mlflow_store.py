"""Tell MLflow what the journals hold: in order, once, and when it can be reached.

Each journal becomes an MLflow run. What was told is noted beside the journal (`.sent`: the run and the byte offset).
If the note is lost in a crash the same events are sent again, which MLflow ignores: metrics carry their own time.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from tasks.errors import machine_refusal
from tasks.files import write_json
from tasks.redact import redacted
from tasks.runtime.checkout import Checkout
from tasks.runtime.stages import digest
from tasks.tracking import databases, journal

EXPERIMENT = "axon"
_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100
_LONGEST = 300  # characters of an error
_STATUSES = ("FINISHED", "FAILED", "KILLED")


def client(checkout: Checkout) -> Any:
    """An `MlflowClient` on the checkout's store, quiet about the tables it makes."""
    import mlflow
    from mlflow.tracking import MlflowClient

    # Parts of the client (versions of logged models) ask the global address, whatever this client's own is. Setting it
    # sets the variable too, by which another checkout in this process would take this store for its own.
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given is None:
        databases.provide("mlflow", checkout.state / "mlflow.db")
    mlflow.set_tracking_uri(checkout.tracking_uri)
    if given is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    for name in ("mlflow", "alembic"):  # after the import, which sets them
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # `StoreAway` tells it, without a trace
    return MlflowClient(tracking_uri=checkout.tracking_uri)


def experiment_id(mlflow: Any, checkout: Checkout) -> str:
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return str(experiment.experiment_id)
    # A server keeps artifacts where it was told to, for all who read from it.
    is_server = checkout.tracking_uri.startswith(("http:", "https:"))
    location = None if is_server else checkout.artifact_root
    return str(mlflow.create_experiment(EXPERIMENT, artifact_location=location))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted keys with JSON values, alike whatever the order of keys: statements sort theirs."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return flat


class StoreAway(Exception):
    """MLflow does not answer, or has no room; what was to be told waits in the journals."""


def fault(error: BaseException) -> str | None:
    """What to say of an error of MLflow's client or of its database, and what to do; None for any other error."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__module__.partition(".")[0] in ("mlflow", "sqlalchemy"):
            address = os.environ.get("MLFLOW_TRACKING_URI")
            return (
                f"MLflow at {redacted(address) if address else '.axon/mlflow.db'} does not answer as it must: "
                f"{_first_line(seen)}. {'Start it or mend MLFLOW_TRACKING_URI' if address else 'Mend that'}, and run "
                "this again; what it was not told is kept."
            )
        seen = seen.__cause__ or seen.__context__
    return None


def _first_line(error: BaseException) -> str:
    line = redacted((str(error).splitlines() or [type(error).__name__])[0]).rstrip(".")
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"


class Sender:
    """Delivers journals of one checkout. Not for use from two threads at once: `deliver` holds a lock."""

    def __init__(self, checkout: Checkout) -> None:
        self._checkout = checkout
        self._mlflow: Any = None
        self._experiment = ""
        self._lock = threading.Lock()

    def deliver(self) -> None:
        """Send everything that is new, oldest journal first. Raises `StoreAway` where that fails."""
        try:
            self._deliver()
        except Exception as error:
            why = machine_refusal(error) or _first_line(error)
            raise StoreAway(f"MLflow at {redacted(self._checkout.tracking_uri)}: {why}") from error

    def _deliver(self) -> None:
        with self._lock:
            if self._mlflow is None:
                self._mlflow = client(self._checkout)
                self._experiment = experiment_id(self._mlflow, self._checkout)
            for path in sorted(self._checkout.journals.glob("*.jsonl")):
                self._deliver_one(path)

    def run_of(self, execution: str) -> str | None:
        """The MLflow run of a journal's id, if it was told already."""
        for note in self._checkout.journals.glob(f"*-{execution}.sent"):
            return str(json.loads(note.read_text())["run_id"])
        return None

    def _deliver_one(self, path: Path) -> None:
        note_path = path.with_suffix(".sent")
        note = _note(path)
        if note.get("ended"):
            return
        alive = journal.is_being_written(path)
        events, offset = journal.read(path, note["offset"])
        metrics: list[Any] = []
        for event in events:
            if event["event"] == "start":
                note["run_id"] = self._start(event)
                note["stage"] = event["name"]
            elif event["event"] == "metrics":
                metrics.extend(_metrics(event))
        self._log(note["run_id"], metrics)
        last = events[-1] if events else None
        if last is not None and last["event"] == "end":
            self._end(note["run_id"], note["stage"], last)
            note["ended"] = True
        elif not alive and note["run_id"]:
            self._mlflow.set_terminated(note["run_id"], status="KILLED")
            note["ended"] = True
        if events or note.get("ended"):
            write_json(note_path, {**note, "offset": offset})

    def _start(self, event: dict[str, Any]) -> str:
        from mlflow.entities import Param, RunTag

        found = self._mlflow.search_runs(
            [self._experiment], filter_string=f"tags.`axon.execution` = '{event['id']}'", max_results=1
        )
        if found:  # with or without what follows: MLflow may have gone away in between, and takes it twice
            run_id = str(found[0].info.run_id)
        else:
            tags = {"axon.execution": event["id"], "axon.kind": event["kind"]}
            parent = self.run_of(event["parent"]) if event.get("parent") else None
            if parent:
                tags["mlflow.parentRunId"] = parent
            run = self._mlflow.create_run(
                self._experiment, start_time=int(event["time"] * 1000), run_name=event["name"], tags=tags
            )
            run_id = str(run.info.run_id)
        params = [Param(k, v[:6000]) for k, v in sorted(flatten(event.get("params") or {}).items())]
        for i in range(0, len(params), _PARAMS_PER_CALL):
            self._mlflow.log_batch(run_id, params=params[i : i + _PARAMS_PER_CALL])
        digests = [RunTag(f"input.{path}", value) for path, value in (event.get("inputs") or {}).items()]
        if digests:
            self._mlflow.log_batch(run_id, tags=digests)
            self._mlflow.log_inputs(run_id, datasets=datasets(event["inputs"]))
        return run_id

    def _log(self, run_id: str | None, metrics: list[Any]) -> None:
        for i in range(0, len(metrics), _METRICS_PER_CALL):
            self._mlflow.log_batch(run_id, metrics=metrics[i : i + _METRICS_PER_CALL])

    def _end(self, run_id: str, stage: str, event: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        outputs: dict[str, str] = event.get("outputs") or {}
        tags = [RunTag(f"output.{path}", value) for path, value in outputs.items()]
        statement: dict[str, str] = event.get("statement") or {}
        if statement:
            tags.append(RunTag("axon.statement", statement["digest"]))
            file = self._checkout.state.parent / statement["path"]
            if file.is_file():
                self._mlflow.log_artifact(run_id, str(file), artifact_path="lineage")
        if event.get("message"):
            tags.append(RunTag("axon.message", event["message"][:4000]))
        if tags:
            self._mlflow.log_batch(run_id, tags=tags)
        for path, value in outputs.items():
            if path.startswith("models/"):
                self._log_model(run_id, stage, self._checkout.root / path, value)
        status = event["status"] if event["status"] in _STATUSES else "FAILED"
        self._mlflow.set_terminated(run_id, status=status, end_time=int(event["time"] * 1000))

    def _log_model(self, run_id: str, stage: str, directory: Path, md5: str) -> None:
        """Copy a model directory into MLflow, if it still is what the stage wrote."""
        if not directory.is_dir() or digest(directory) != md5:
            return
        same = f"name = '{stage}' AND tags.`axon.digest` = '{md5}'"
        for begun in self._mlflow.search_logged_models([self._experiment], filter_string=same):
            if begun.source_run_id == run_id:
                if str(begun.status) == "READY":
                    self._say_output(run_id, begun.model_id)
                    return
                self._mlflow.delete_logged_model(begun.model_id)  # MLflow went away in the middle of it
        model = self._mlflow.create_logged_model(
            self._experiment, name=stage, source_run_id=run_id, tags={"axon.digest": md5}, model_type="llm"
        )
        self._mlflow.log_model_artifacts(model.model_id, str(directory))
        self._mlflow.finalize_logged_model(model.model_id, "READY")
        self._say_output(run_id, model.model_id)

    def _say_output(self, run_id: str, model_id: str) -> None:
        """That the run made the model, once: MLflow keeps it as often as it is told."""
        from mlflow.entities import LoggedModelOutput

        known = self._mlflow.get_run(run_id).outputs
        if known is None or model_id not in [output.model_id for output in known.model_outputs]:
            self._mlflow.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])


def is_behind(checkout: Checkout) -> bool:
    """Whether a journal holds what MLflow was not told yet, its end included."""
    return any(p.stat().st_size and not _note(p).get("ended") for p in checkout.journals.glob("*.jsonl"))


def _note(journal_path: Path) -> dict[str, Any]:
    path = journal_path.with_suffix(".sent")
    return json.loads(path.read_text()) if path.is_file() else {"offset": 0, "run_id": None}


def _metrics(event: dict[str, Any]) -> list[Any]:
    from mlflow.entities import Metric

    at = int(event["time"] * 1000)
    return [Metric(key, float(value), at, int(event["step"])) for key, value in event["values"].items()]


def datasets(inputs: dict[str, str]) -> list[Any]:
    """Inputs that are data (code and constraints are tags) as MLflow dataset inputs."""
    from mlflow.entities import Dataset, DatasetInput

    return [
        DatasetInput(Dataset(name=path, digest=md5[:36], source_type="local", source=json.dumps({"path": path})))
        for path, md5 in inputs.items()
        if not path.endswith((".py", ".txt")) and not path.startswith(("tasks/", "axon_models/"))
    ]
