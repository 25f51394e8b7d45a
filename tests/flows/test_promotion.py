"""The gate with the real engines: what it decides is what the registry, the statements and the audit say."""

import hashlib
import json
import subprocess
import sys

import pytest
from mlflow.tracking import MlflowClient

from tests.flows.conftest import FinishedRun
from tests.flows.workspace import Workspace

pytestmark = pytest.mark.engines
REGISTER = """
from rich.console import Console
from flows import registration
from tasks.runtime import checkout, environment
found = checkout.find()
environment.prepare(found)
print(registration.register(found, Console(), pipeline=None, model="sft").version)
"""


def register_sft(workspace: Workspace) -> str:
    """Register the SFT model as a new version, as the challenger."""
    environment = {**workspace.environment(), "PYTHONPATH": str(workspace.root)}
    done = subprocess.run(
        [sys.executable, "-c", REGISTER], cwd=workspace.root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def champion(workspace: Workspace) -> str:
    client = MlflowClient(tracking_uri=f"sqlite:///{workspace.root}/.axon/mlflow.db")
    return str(client.get_registered_model("axon-chat").aliases["champion"])


def decisions(workspace: Workspace) -> list[dict]:
    return json.loads(workspace.axon("history", "--format", "json").stdout)


def test_a_decision_is_measured_stated_done_and_can_be_taken_back(finished: FinishedRun):
    workspace = finished.workspace
    first, second = champion(workspace), register_sft(workspace)
    assert decisions(workspace) == []

    asked = workspace.axon("promote")
    (decided,) = decisions(workspace)
    assert asked.returncode == (0 if decided["action"] == "promoted" else 1), asked.stdout + asked.stderr
    assert decided["reason"] in " ".join(asked.stdout.split()) or decided["action"] == "promoted"
    assert champion(workspace) == (second if decided["action"] == "promoted" else first)
    items = workspace.root / "lineage" / "evaluation-sets" / f"{decided['evaluation_set']}.json"
    assert hashlib.sha256(items.read_bytes()).hexdigest() == decided["evaluation_set"]
    assert set(decided["guards"]) == {"bits_per_byte", "exact_match", "kl_to_sft", "length"}
    # SFT is no distance from itself; the other is as far as its evaluation says.
    evaluation = json.loads((workspace.root / "metrics" / "evaluate.json").read_text())
    assert decided["figures"]["kl_to_sft"]["challenger"] == 0
    assert decided["figures"]["kl_to_sft"]["champion"] in [evaluation[m]["kl_to_sft"] for m in ("ppo", "dpo")]

    again = workspace.axon("promote", second)
    assert again.returncode == 0 or decided["action"] == "kept"
    if decided["action"] == "kept":
        same = decisions(workspace)[-1]
        assert {k: same[k] for k in ("evaluation_set", "improvement", "guards")} == {
            k: decided[k] for k in ("evaluation_set", "improvement", "guards")
        }

    assert workspace.axon("promote", second, "--force").returncode == 2
    if champion(workspace) == first:
        forced = workspace.axon("promote", second, "--force", "--reason", "a test of the way past the gate")
        assert forced.returncode == 0, forced.stderr
    assert champion(workspace) == second
    back = workspace.axon("rollback", "--reason", "a test of the way back")
    assert back.returncode == 0, back.stderr
    assert champion(workspace) == first
    assert decisions(workspace)[-1]["action"] == "rolled back"
    shown = workspace.axon("history").stdout
    assert "a test of the way back" in " ".join(shown.split())
    audit = workspace.axon("audit")
    assert audit.returncode == 0, audit.stdout


def test_a_version_that_there_is_not_is_named(finished: FinishedRun):
    asked = finished.workspace.axon("promote", "99")
    assert asked.returncode == 2
    assert "axon-chat has no version 99; registered: 1" in asked.stderr


def test_a_decision_that_was_cut_before_the_registry_is_carried_out_by_the_next_command(finished: FinishedRun):
    workspace = finished.workspace
    first = champion(workspace)
    other = next(v for v in ("1", "2") if v != first)
    if not (workspace.root / "lineage" / "models" / f"axon-chat-{other}").is_dir():
        other = register_sft(workspace)
    client = MlflowClient(tracking_uri=f"sqlite:///{workspace.root}/.axon/mlflow.db")
    assert workspace.axon("promote", other, "--force", "--reason", "cut").returncode == 0
    client.set_registered_model_alias("axon-chat", "champion", first)  # as if the process had ended before
    note = workspace.root / ".axon" / "promotion" / "pending.json"
    note.write_text(json.dumps({"aliases": {"champion": other}}))
    assert workspace.axon("promote", other).returncode == 0
    assert champion(workspace) == other
    assert not note.exists()
    assert workspace.axon("rollback", "--reason", "as it was").returncode == 0
