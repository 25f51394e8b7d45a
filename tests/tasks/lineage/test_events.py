"""OpenLineage is told of every stage, once, in order; and no endpoint can fail anything."""

import base64
import hashlib
import http.server
import json
import os
import threading
import uuid
from urllib.parse import urlparse

import pytest

from tasks.lineage import events
from tasks.lineage.events import Emitter
from tasks.runtime import stages
from tasks.tracking.journal import Journal
from tests.tasks.lineage.workspace import make_checkout, record


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # openlineage reads ~/.openlineage
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "checkout")


def start(checkout, journal: Journal, name: str, parent: str | None = None) -> None:
    stage = stages.read_stages(checkout.root)[name]
    inputs = {dep: stages.digest(checkout.root / dep) for dep in stage.deps}
    journal.start(name, kind="stage", parent=parent, params={}, inputs=inputs)


def run_stage(checkout, name: str, parent: str | None = None) -> Journal:
    """The journal of a stage that ended well, with its statement."""
    with Journal(checkout.journals, name) as journal:
        start(checkout, journal, name, parent)
        written = record(checkout, name, execution=journal.id)
        journal.end("FINISHED", outputs=written.statement.outputs, used=[], statement=written.reference)
    return journal


def emitted(checkout) -> list[dict]:
    path = checkout.state / "openlineage.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def states(checkout) -> list[tuple[str, str]]:
    return [(event["job"]["name"], event["eventType"]) for event in emitted(checkout)]


def check_against_the_specification(event: dict) -> None:
    """The required fields of OpenLineage 2-0-2's RunEvent and of its facets."""
    assert {"eventTime", "producer", "schemaURL", "run", "job"} <= set(event)
    assert event["schemaURL"].endswith("OpenLineage.json#/$defs/RunEvent")
    assert event["eventTime"].endswith("Z")
    assert urlparse(event["producer"]).scheme == "https"
    uuid.UUID(event["run"]["runId"])
    facets = [event["run"]["facets"], event["job"]["facets"]]
    for dataset in event["inputs"] + event["outputs"]:
        assert dataset["namespace"] == "axon"
        facets += [dataset["facets"], dataset.get("outputFacets") or {}, dataset.get("inputFacets") or {}]
    for facet in (facet for named in facets for facet in named.values()):
        assert {"_producer", "_schemaURL"} <= set(facet)


def test_a_stage_that_ends_well_is_a_start_and_a_complete(checkout):
    parent = uuid.uuid4().hex
    run_stage(checkout, "make")
    journal = run_stage(checkout, "use", parent)
    assert Emitter(checkout).deliver()
    assert states(checkout) == [("make", "START"), ("make", "COMPLETE"), ("use", "START"), ("use", "COMPLETE")]
    for event in emitted(checkout):
        check_against_the_specification(event)
    first, last = emitted(checkout)[2:]
    assert first["run"]["runId"] == last["run"]["runId"] == str(uuid.UUID(journal.id))
    assert first["run"]["facets"]["parent"]["run"]["runId"] == str(uuid.UUID(parent))
    assert [dataset["name"] for dataset in last["inputs"]] == ["models/small"]
    assert [dataset["name"] for dataset in last["outputs"]] == ["metrics/use.json"]
    assert first["outputs"] == []


def test_data_sets_have_their_digests(checkout):
    run_stage(checkout, "make")
    run_stage(checkout, "use")
    Emitter(checkout).deliver()
    made, used = emitted(checkout)[1], emitted(checkout)[3]
    output = next(dataset for dataset in made["outputs"] if dataset["name"] == "models/small")
    material = used["inputs"][0]
    assert output["facets"]["version"]["datasetVersion"] == stages.digest(checkout.root / "models" / "small")
    assert output["facets"]["axon_digest"]["sha256"] == material["facets"]["axon_digest"]["sha256"]
    assert output["facets"]["axon_digest"]["md5"] == material["facets"]["version"]["datasetVersion"]
    statistics = output["outputFacets"]["outputStatistics"]
    assert (statistics["size"], statistics["fileCount"]) == (9, 2)
    facet = made["run"]["facets"]["axon_statement"]
    assert facet["path"] == "lineage/statements/000001-make.json"
    payload = json.loads((checkout.root / facet["path"]).read_text())["payload"]
    assert facet["digest"] == hashlib.sha256(base64.b64decode(payload)).hexdigest()


def test_delivering_again_sends_only_what_is_new(checkout):
    emitter = Emitter(checkout)
    with Journal(checkout.journals, "make") as journal:
        start(checkout, journal, "make")
        emitter.deliver()
        emitter.deliver()
        assert states(checkout) == [("make", "START")]
    emitter.deliver()
    Emitter(checkout).deliver()
    assert states(checkout) == [("make", "START"), ("make", "COMPLETE")]


def test_a_failed_stage_says_why(checkout):
    def fail() -> None:
        with Journal(checkout.journals, "use") as journal:
            start(checkout, journal, "use")
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        fail()
    Emitter(checkout).deliver()
    assert states(checkout) == [("use", "START"), ("use", "FAIL")]
    assert emitted(checkout)[1]["run"]["facets"]["errorMessage"]["message"] == "out of memory"


def test_a_killed_stage_is_aborted_once(checkout):
    journal = Journal(checkout.journals, "use")
    start(checkout, journal, "use")
    Emitter(checkout).deliver()
    assert states(checkout) == [("use", "START")]
    journal._file.close()  # as the kernel does for a killed process
    Emitter(checkout).deliver()
    Emitter(checkout).deliver()
    assert states(checkout) == [("use", "START"), ("use", "ABORT")]


def test_without_a_statement_the_md5_is_known(checkout):
    with Journal(checkout.journals, "use") as journal:
        start(checkout, journal, "use")
        journal.end("FINISHED", outputs={"metrics/use.json": "0" * 32}, used=[], statement=None)
    Emitter(checkout).deliver()
    facets = emitted(checkout)[1]["outputs"][0]["facets"]
    assert facets["version"]["datasetVersion"] == facets["axon_digest"]["md5"] == "0" * 32
    assert "sha256" not in facets["axon_digest"]


@pytest.fixture
def endpoint():
    """A server that takes OpenLineage events, while `received` is a list."""
    received: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()


def test_openlineage_s_own_configuration_names_another_place(checkout, endpoint, monkeypatch):
    url, received = endpoint
    monkeypatch.setenv("OPENLINEAGE_URL", url)
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "team")
    before = dict(os.environ)
    run_stage(checkout, "make")
    try:
        with events.emitting(checkout):
            pass
    finally:  # openlineage copies the address into variables of its own
        for name in set(os.environ) - set(before):
            del os.environ[name]
    assert [event["eventType"] for event in received] == ["START", "COMPLETE"]
    assert received[0]["job"]["namespace"] == "team"
    assert emitted(checkout) == []


def test_an_endpoint_that_cannot_be_reached_fails_nothing_and_is_told_later(checkout, tmp_path, endpoint, caplog):
    url, received = endpoint
    file = tmp_path / "openlineage.yml"
    text = "transport: {{type: http, url: '{}', timeout: 1, retry: {{total: 0, connect: 0}}}}\n"
    file.write_text(text.format("http://127.0.0.1:9"))
    run_stage(checkout, "make")
    assert not Emitter(checkout).deliver()
    with events.emitting(checkout):
        pass
    assert "OpenLineage was not reached" in caplog.text
    file.write_text(text.format(url))
    assert Emitter(checkout).deliver()
    assert [event["eventType"] for event in received] == ["START", "COMPLETE"]


def test_a_configuration_that_makes_no_sense_fails_nothing(checkout, tmp_path):
    (tmp_path / "openlineage.yml").write_text("transport: {type: pigeon}\n")
    run_stage(checkout, "make")
    assert not Emitter(checkout).deliver()


def test_it_can_be_switched_off(checkout, monkeypatch):
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    run_stage(checkout, "make")
    assert Emitter(checkout).deliver()
    assert emitted(checkout) == []
