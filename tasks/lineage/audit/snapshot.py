"""What MLflow's store says now, read once through its client."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from tasks import registry
from tasks.lineage.audit.findings import shown
from tasks.lineage.audit.scene import Scene
from tasks.lineage.statement import Statement
from tasks.redact import redacted
from tasks.runtime.checkout import Checkout
from tasks.tracking import mlflow_store

_SQLITE = "sqlite:///"
_ALL = 3  # mlflow.entities.ViewType.ALL: deleted runs too
_PAGE = 1000


@dataclass
class Snapshot:
    """Runs by the execution they are of, logged models, registered versions, and the aliases of `axon-chat`.

    `created`: when the experiment was made, seconds since 1970. `downloads`: where MLflow fetches each version from.
    """

    checkout: Checkout
    artifact_root: str = ""
    lifecycle: str = "no such experiment"
    created: float = 0.0
    runs: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    execution_of: dict[str, str] = field(default_factory=dict)
    models: list[Any] = field(default_factory=list)
    versions: dict[str, Any] = field(default_factory=dict)
    downloads: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def covers(self, statement: Statement) -> bool:
        """Whether the store must know of the statement: it was there when that was written, or was told of it later."""
        was_there = datetime.fromisoformat(statement.finished).timestamp() >= self.created
        return was_there or self._was_told(str(statement.execution)) is True

    def is_pending(self, execution: str) -> bool:
        """Whether the journal of an execution is here and MLflow was not told its end."""
        return self._was_told(execution) is False

    def _was_told(self, execution: str) -> bool | None:
        """What the sender's note beside the journal says; None where there is no journal of the execution."""
        for path in self.checkout.journals.glob(f"*-{execution}.jsonl"):
            try:
                return bool(json.loads(path.with_suffix(".sent").read_text()).get("ended"))
            except (OSError, ValueError):
                return False
        return None


def load(scene: Scene) -> Snapshot | None:
    """The store's content; None where there is none, or where it cannot be asked (said in a note or a finding)."""
    checkout, part = scene.checkout, scene.part("tracking")
    uri = checkout.tracking_uri
    is_file = uri.startswith(_SQLITE)
    if is_file and not Path(uri.removeprefix(_SQLITE)).is_file():
        part.missed("MLflow store")
        part.note("There is no MLflow store here: its runs, models and registered versions were not looked at.")
        return None
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        return _load(checkout)
    except Exception as error:  # noqa: BLE001 a store can be damaged or away in as many ways as databases and networks have
        told = shown(redacted(repr(error)))
        if is_file:
            part.find(
                ".axon/mlflow.db",
                expected="MLflow's store",
                found=f"it cannot be read: {told}",
                do="Restore it from a copy; the statements have what is true.",
            )
        else:
            part.missed("MLflow store")
            part.note(f"MLflow's store at {redacted(uri)} could not be asked ({told}): it was not looked at.")
        return None


def _load(checkout: Checkout) -> Snapshot:
    client = mlflow_store.client(checkout)
    known = Snapshot(checkout)
    experiment = client.get_experiment_by_name(mlflow_store.EXPERIMENT)
    if experiment is not None:
        known.artifact_root = str(experiment.artifact_location).rstrip("/")
        known.lifecycle = experiment.lifecycle_stage
        known.created = (experiment.creation_time or 0) / 1000
        ids = [experiment.experiment_id]
        for run in _pages(client.search_runs, ids, run_view_type=_ALL, max_results=_PAGE):
            execution = dict(run.data.tags).get("axon.execution", "")
            known.runs[execution].append(run)
            known.execution_of[run.info.run_id] = execution
        known.models = _pages(client.search_logged_models, ids, max_results=100)
    for version in _pages(client.search_model_versions, f"name = '{registry.NAME}'", max_results=_PAGE):
        known.versions[str(version.version)] = version
        known.downloads[str(version.version)] = client.get_model_version_download_uri(registry.NAME, version.version)
    if known.versions:
        aliases = dict(client.get_registered_model(registry.NAME).aliases)
        known.aliases = {alias: str(version) for alias, version in aliases.items()}
    return known


def _pages(search: Any, *arguments: Any, **options: Any) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(*arguments, **options, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def local_path(uri: str) -> Path | None:
    """A place in a store as a path; None if it is not on this machine."""
    parsed = urlparse(uri)
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None
