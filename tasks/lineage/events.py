"""OpenLineage events (https://openlineage.io/spec/2-0-2/OpenLineage.json) of every stage, through openlineage-python.

They are made from the journals, as MLflow's runs are, by whoever delivers those: so no endpoint can hold up or fail a
stage, and what could not be sent is sent later. By default they go to `.axon/openlineage.jsonl`; openlineage's own
configuration (OPENLINEAGE_URL, OPENLINEAGE_CONFIG, OPENLINEAGE__…, openlineage.yml) names another place, and
OPENLINEAGE_NAMESPACE another namespace than "axon".
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tasks.errors import UserError
from tasks.files import write_json
from tasks.lineage import recording
from tasks.lineage.hashing import FileDigest, listing_digest
from tasks.lineage.statement import DATA, Statement, utc
from tasks.lineage.store import StatementStore
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout
from tasks.tracking import journal

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent

PRODUCER = "https://axon.invalid/openlineage/v1"
_NICENESS = 10
_OUTSIDE = ("sweep", "trial")  # kinds of journals that leave no data behind
_STATES = {"FINISHED": "COMPLETE", "FAILED": "FAIL", "KILLED": "ABORT"}


class Emitter:
    """Sends the events of one checkout's journals. Not for use from two threads at once."""

    def __init__(self, checkout: Checkout) -> None:
        self._checkout = checkout
        self._client: OpenLineageClient | None = None

    def deliver(self) -> bool:
        """Send what is new, oldest first, up to the first that cannot be sent; whether everything was. Never raises."""
        for path in sorted(self._checkout.journals.glob("*.jsonl")):
            try:
                self._deliver_one(path)
            except Exception as error:  # noqa: BLE001 whatever an endpoint or its configuration does, runs go on
                logging.getLogger(__name__).warning("OpenLineage was not reached, trying again later: %s", error)
                return False
        return True

    def _deliver_one(self, path: Path) -> None:
        note_path = path.with_suffix(".openlineage")
        note: dict[str, Any] = json.loads(note_path.read_text()) if note_path.is_file() else {"offset": 0}
        if note.get("ended"):
            return
        is_alive = journal.is_being_written(path)
        found, offset = journal.read(path, note["offset"])
        for event in found:
            if event["event"] == "start" and event["kind"] not in _OUTSIDE:
                note["start"] = event
                self._emit("START", event, event)
        last = found[-1] if found and found[-1]["event"] == "end" else None
        if last is None and not is_alive:
            last = {"status": "KILLED", "time": path.stat().st_mtime, "message": "the process was killed"}
        if last is not None and "start" in note:
            self._emit(_STATES.get(last["status"], "FAIL"), note["start"], last)
        if found or last is not None:
            write_json(note_path, {"ended": True} if last is not None else {**note, "offset": offset})

    def _emit(self, state: str, start: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        if self._client is None:
            self._client = client(self._checkout)
        self._client.emit(run_event(self._checkout, state, start, event))


@contextmanager
def emitting(checkout: Checkout, *, every_s: float = 10.0, patience_s: float = 5.0) -> Iterator[None]:
    """Deliver in a thread while the block runs, and once more behind it, for which it waits `patience_s` at most."""
    # Imported here and not in the thread: two threads that import at once can see half a module.
    import openlineage.client
    import openlineage.client.event_v2
    import openlineage.client.facet_v2  # noqa: F401

    emitter, stop = Emitter(checkout), threading.Event()

    def deliver() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not stop.wait(every_s):
            emitter.deliver()
        emitter.deliver()

    thread = threading.Thread(target=deliver, name="openlineage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(patience_s)


def client(checkout: Checkout) -> OpenLineageClient:
    """A client as openlineage's own configuration says; without one, to the checkout's file."""
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.file import FileConfig, FileTransport

    file = checkout.state / "openlineage.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    to_file = OpenLineageClient(transport=FileTransport(FileConfig(log_file_path=str(file), append=True)))
    is_disabled = os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true"
    if is_disabled or os.environ.get("OPENLINEAGE_URL") or (to_file.config.transport or {}).get("type"):
        return OpenLineageClient()
    return to_file


def run_event(checkout: Checkout, state: str, start: Mapping[str, Any], event: Mapping[str, Any]) -> RunEvent:
    """The OpenLineage event of a journal's `start`, and of `event`, which is that or its end.

    Inputs and outputs are data sets named by their path, with DVC's MD5 as their version and the SHA-256 of the
    statement, where there is one.
    """
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import BaseFacet, error_message_run, job_type_job, parent_run

    namespace = _namespace()
    written = _statement(checkout, event)
    run_facets: dict[str, Any] = {}
    if start.get("parent"):
        run_facets["parent"] = parent_run.ParentRunFacet(
            run=parent_run.Run(runId=str(UUID(start["parent"]))),
            job=parent_run.Job(namespace=namespace, name="pipeline"),
            producer=PRODUCER,
        )
    if event.get("message"):
        run_facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
            message=str(event["message"]), programmingLanguage="python", producer=PRODUCER
        )
    if written is not None:
        run_facets["axon_statement"] = BaseFacet(producer=PRODUCER).with_additional_properties(
            digest=written.digest, path=event["statement"]["path"]
        )
    job_type = job_type_job.JobTypeJobFacet(
        processingType="BATCH",
        integration="AXON",
        jobType="PIPELINE" if start["kind"] == "pipeline" else "STAGE",
        producer=PRODUCER,
    )
    return RunEvent(
        eventType=RunState[state],
        eventTime=utc(event["time"]),
        run=Run(runId=str(UUID(start["id"])), facets=run_facets),
        job=Job(namespace=namespace, name=start["name"], facets={"jobType": job_type}),
        inputs=_input_datasets(checkout, namespace, start.get("inputs") or {}, written),
        outputs=_output_datasets(namespace, event.get("outputs") or {}, written),
        producer=PRODUCER,
    )


def _namespace() -> str:
    return os.environ.get("OPENLINEAGE_NAMESPACE") or "axon"


def _statement(checkout: Checkout, event: Mapping[str, Any]) -> Statement | None:
    """The statement that an end event names, if it is there and still that one."""
    named = event.get("statement")
    if not named:
        return None
    try:
        stored = StatementStore.of(checkout).read(checkout.state.parent / named["path"])
    except UserError:
        return None
    return stored.statement if stored.statement.digest == named["digest"] else None


def _input_datasets(
    checkout: Checkout, namespace: str, inputs: Mapping[str, str], written: Statement | None
) -> list[InputDataset]:
    from openlineage.client.event_v2 import InputDataset

    graph = stages.read_stages(checkout.root)
    sha256 = {path: facts["sha256"] for path, facts in written.inputs.items()} if written else {}
    return [
        InputDataset(namespace=namespace, name=path, facets=_digests(md5, sha256.get(path)))
        for path, md5 in inputs.items()
        if recording.kind_of(path, graph) == DATA
    ]


def _output_datasets(namespace: str, outputs: Mapping[str, str], written: Statement | None) -> list[OutputDataset]:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

    datasets = []
    for path, md5 in outputs.items():
        files = {}
        if written:
            files = {n: f for n, f in written.subjects.items() if n == path or n.startswith(path + "/")}
        size = statistics.OutputStatisticsOutputDatasetFacet(
            size=sum(file.size for file in files.values()), fileCount=len(files), producer=PRODUCER
        )
        datasets.append(
            OutputDataset(
                namespace=namespace,
                name=path,
                facets=_digests(md5, _tree_digest(path, files) if files else None),
                outputFacets={"outputStatistics": size} if files else {},
            )
        )
    return datasets


def _tree_digest(path: str, files: Mapping[str, FileDigest]) -> str:
    """What `hashing.tree(path)` gave when these were its files."""
    if path in files:
        return files[path].sha256
    return listing_digest({name.removeprefix(path + "/"): digest for name, digest in files.items()})


def _digests(md5: str, sha256: str | None) -> dict[str, Any]:
    """A data set's version, and its digests by algorithm."""
    from openlineage.client.facet_v2 import DatasetFacet, dataset_version_dataset

    known = {"md5": md5, **({"sha256": sha256} if sha256 else {})}
    return {
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=md5, producer=PRODUCER),
        "axon_digest": DatasetFacet(producer=PRODUCER).with_additional_properties(**known),
    }
