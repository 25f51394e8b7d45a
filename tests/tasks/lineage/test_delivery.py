"""MLflow holds the statement of every run: as an artifact, and its digest as a tag."""

from pathlib import Path

import pytest

from tasks.tracking.journal import Journal
from tasks.tracking.mlflow_store import Sender, client, experiment_id, flatten
from tests.tasks.lineage.workspace import make_checkout, record


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return make_checkout(tmp_path)


def test_the_statement_is_an_artifact_of_its_run(checkout, tmp_path_factory):
    with Journal(checkout.journals, "make") as journal:
        journal.start("make", kind="stage", params={}, inputs={})
        written = record(checkout, "make", execution=journal.id)
        journal.end("FINISHED", outputs={}, used=[], statement=written.reference)
    with Journal(checkout.journals, "use") as other:
        other.start("use", kind="stage", params={}, inputs={})
        other.end("FINISHED", outputs={}, used=[], statement=None)
    sender = Sender(checkout)
    sender.deliver()
    mlflow = client(checkout)
    run_id = sender.run_of(journal.id)
    assert mlflow.get_run(run_id).data.tags["axon.statement"] == written.statement.digest
    copy = mlflow.download_artifacts(run_id, "lineage/000001-make.json", str(tmp_path_factory.mktemp("copy")))
    assert Path(copy).read_bytes() == written.path.read_bytes()
    without = mlflow.get_run(sender.run_of(other.id))
    assert "axon.statement" not in without.data.tags
    assert mlflow.list_artifacts(without.info.run_id) == []


def test_parameters_read_alike_whatever_the_order_of_their_keys():
    # Statements sort the keys of mappings in lists too: an audit compares them with what MLflow was told.
    ours = flatten({"data": {"files": [{"path": "a.jsonl", "license": "MIT"}]}})
    assert ours == flatten({"data": {"files": [{"license": "MIT", "path": "a.jsonl"}]}})
    assert ours == {"data.files": '[{"license": "MIT", "path": "a.jsonl"}]'}


def test_what_a_run_lacks_that_mlflow_began_and_did_not_end_is_told_later(checkout):
    with Journal(checkout.journals, "make") as journal:
        journal.start("make", kind="stage", params={"sft": {"n_steps": 3}}, inputs={"data/text.parquet": "0" * 32})
        journal.end("FINISHED", outputs={})
    mlflow = client(checkout)
    begun = mlflow.create_run(
        experiment_id(mlflow, checkout), tags={"axon.execution": journal.id}
    )  # and MLflow went away
    Sender(checkout).deliver()
    told = mlflow.get_run(begun.info.run_id)
    assert told.data.params == {"sft.n_steps": "3"}
    assert told.data.tags["input.data/text.parquet"] == "0" * 32
    assert [one.dataset.name for one in told.inputs.dataset_inputs] == ["data/text.parquet"]
    assert told.info.status == "FINISHED"
    assert len(mlflow.search_runs([experiment_id(mlflow, checkout)])) == 1
