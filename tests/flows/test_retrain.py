"""Retraining with the real engines: nothing new is left alone, something new is trained on and gated, and undone."""

import json
from pathlib import Path

import pytest
import yaml

from tests.flows.test_promotion import champion, decisions
from tests.flows.workspace import TINY, Workspace

pytestmark = [pytest.mark.engines, pytest.mark.slow]


def lines(n: int) -> str:
    return "".join(
        json.dumps({"text": f"Entry {i} of the ledger: the harbour master counted {i * 7} crates of oranges."}) + "\n"
        for i in range(n)
    )


def test_new_data_is_trained_on_gated_and_the_run_before_can_be_brought_back(tmp_path: Path):
    workspace = Workspace.create(tmp_path / "checkout")
    own = workspace.root / "sources" / "own.jsonl"
    own.write_text(lines(20))
    changes = {"data.files": [{"path": "sources/own.jsonl", "license": "MIT"}], "retrain.min_new_records": 100}
    workspace.set_parameters(TINY | changes)
    first = workspace.axon("run")
    assert first.returncode == 0, first.stdout + first.stderr
    lock, parameters = workspace.lock, (workspace.root / "params.yaml").read_bytes()

    own.write_text(lines(25))
    few = workspace.axon("retrain")
    assert few.returncode == 0, few.stdout + few.stderr
    assert "not retrained: not enough is new: new 5" in " ".join(few.stdout.split())
    assert workspace.lock == lock, "the workspace is that of the models again"
    assert champion(workspace) == "1"
    (left,) = decisions(workspace)
    assert (left["action"], left["new"]["n_new"]) == ("not retrained", 5)

    own.write_text(lines(400))
    enough = workspace.axon("retrain")
    assert enough.returncode == 0, enough.stdout + enough.stderr
    assert "380 new records (at least 100)" in " ".join(enough.stdout.split())
    assert workspace.lock != lock
    (_, decided) = decisions(workspace)
    assert decided["version"] == "2"
    assert decided["action"] in ("promoted", "kept")
    assert champion(workspace) == ("2" if decided["action"] == "promoted" else "1")

    again = workspace.axon("retrain")
    assert "not retrained" in again.stdout, "what was trained on is not new any more"

    back = workspace.axon("restore", "run~1")
    assert back.returncode == 0, back.stdout + back.stderr
    assert workspace.lock == lock
    assert (workspace.root / "params.yaml").read_bytes() == parameters
    for entry in yaml.safe_load(lock)["stages"].values():
        for out in entry["outs"]:
            assert (workspace.root / out["path"]).exists()
    sources = workspace.axon("audit")
    assert sources.returncode == 1, "a source of one's own is not the run's: it is not brought back"
    assert sources.stdout.count("expected  sources as stage") == 2
    own.write_text(lines(20))
    audit = workspace.axon("audit")
    assert audit.returncode == 0, audit.stdout
    assert workspace.axon("restore", "run~99").returncode != 0
