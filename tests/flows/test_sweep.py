"""`axon sweep` with the real Ray Tune and MLflow: what ASHA stops, what is left behind, and that it ends when asked."""

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tasks.sweeping import space
from tests.flows.conftest import FinishedRun
from tests.flows.workspace import TINY, Workspace, listening, wait_until

pytestmark = pytest.mark.engines
N_STEPS = 40
PRETRAIN = TINY | {"pretrain.n_steps": N_STEPS, "pretrain.evaluate_every": 10, "pretrain.n_validation_batches": 4}
BAD, WORSE = 1e-7, 1e9  # nothing is learnt; nothing is finite
OVER = f"pretrain.learning_rate=choice({BAD!r}, {WORSE!r}, 1e-2, 3e-3)"
N_TRIALS = 4
ENDS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def a_telling_seed() -> int:
    """One with the trial that fails first, since ASHA never stops the first, and the bad one behind a good one."""
    for seed in range(100):
        rates = [one["pretrain.learning_rate"] for one in space.sample([space.parse(OVER)], N_TRIALS, seed=seed)]
        if rates.index(WORSE) == 0 and rates.index(BAD) == 2:
            return seed
    raise AssertionError("no seed gives this order")


SEED = a_telling_seed()
CALL = ("sweep", "pretrain", "--over", OVER, "--trials", str(N_TRIALS), "--seed", str(SEED))


def result_of(workspace: Workspace) -> dict:
    """What the newest sweep has left; and it is the newest that has a result."""
    folder = max((workspace.root / ".axon" / "sweeps").iterdir())
    return json.loads((folder / "sweep.json").read_text())


def runs_of(workspace: Workspace) -> tuple[MlflowClient, list[Run]]:
    """MLflow's runs, oldest first."""
    client = MlflowClient(tracking_uri=f"sqlite:///{workspace.root}/.axon/mlflow.db")
    experiment = client.get_experiment_by_name("axon")
    return client, client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])


def content(root: Path) -> dict[str, bytes]:
    """Every file of the checkout but state of Axon, DVC and git, and what Python compiles."""
    hidden = (".axon", ".dvc", ".git")
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != "axon.log"]
    named = {str(path.relative_to(root)): path for path in paths if "__pycache__" not in path.parts}
    return {name: path.read_bytes() for name, path in named.items() if not name.startswith(hidden)}


def run_watched(workspace: Workspace, *arguments: str) -> tuple[str, set[tuple[str, int, str]]]:
    """Run `axon ARGUMENTS` to its end; returns what it printed and the sockets that were seen to listen."""
    process = workspace.start(*arguments)
    sockets = set()
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        sockets |= listening(workspace.processes())
        time.sleep(0.5)
    output = (workspace.root / "axon.log").read_text()
    assert process.wait(timeout=5) == 0, output[-4000:]
    return output, sockets


def test_a_sweep_stops_the_bad_trial_and_leaves_nothing_but_its_record(finished: FinishedRun, tmp_path: Path):
    workspace = Workspace.behind(tmp_path / "checkout", finished.workspace, PRETRAIN)
    before = content(workspace.root)

    output, sockets = run_watched(workspace, *CALL)

    assert content(workspace.root) == before, "a trial is outside DVC"
    assert {s for s in sockets if s[0] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")} == set()
    assert workspace.left_running() == []
    result = result_of(workspace)
    trials = {one["values"]["pretrain.learning_rate"]: one for one in result["trials"]}
    assert trials[BAD]["state"] == "stopped"
    assert 0 < trials[BAD]["step"] < N_STEPS
    assert trials[WORSE]["state"] == "failed"
    assert "the loss is nan" in trials[WORSE]["message"]
    whole = [one for one in trials.values() if one["state"] == "finished"]
    assert whole
    assert {one["step"] for one in whole} == {N_STEPS}
    assert result["best"]["value"] == min(one["value"] for one in whole)
    chosen = result["best"]["values"]["pretrain.learning_rate"]
    assert f"dvc exp run -S pretrain.learning_rate={chosen!r}" in output
    assert "stopped by ASHA" in output
    check_folders(workspace, result)
    check_mlflow(workspace, result)


def check_folders(workspace: Workspace, result: dict) -> None:
    """A trial's folder holds parameters, metrics and curve; no weights, no link, nothing that is pickled."""
    folder = workspace.root / ".axon" / "sweeps" / result["id"]
    for one in result["trials"]:
        own = folder / f"{one['number']:03d}"
        left = {str(path.relative_to(own)) for path in own.rglob("*") if path.is_file()}
        made = {"metrics/pretrain.json", "metrics/curves/pretrain.csv"} if one["state"] == "finished" else set()
        assert left == {"params.yaml"} | made
        if made:
            assert json.loads((own / "metrics" / "pretrain.json").read_text())["bits_per_byte"] == one["value"]
    assert [path for path in folder.rglob("*") if path.is_symlink()] == []
    assert [path for path in workspace.root.rglob("*.pkl") if path.is_file()] == []
    assert list(Path("/tmp/ray").glob(f"session_*/artifacts/*/{result['id']}")) == []


def check_mlflow(workspace: Workspace, result: dict) -> None:
    """One parent, a child a trial, with parameters, curve and how it ended."""
    client, runs = runs_of(workspace)
    parent, *children = runs
    assert parent.info.run_name == "sweep pretrain"
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/validation_bits_per_byte"] == result["best"]["value"]
    assert [run.info.run_name for run in children] == [f"trial {n}" for n in range(1, N_TRIALS + 1)]
    for run, one in zip(children, result["trials"], strict=True):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == ENDS[one["state"]]
        assert float(run.data.params["pretrain.learning_rate"]) == one["values"]["pretrain.learning_rate"]
        assert run.data.params["pretrain.batch_size"] == str(PRETRAIN["pretrain.batch_size"])
        if one["state"] == "failed":
            continue
        losses = client.get_metric_history(run.info.run_id, "loss")
        validation = client.get_metric_history(run.info.run_id, "validation_bits_per_byte")
        assert [point.step for point in losses] == list(range(1, one["step"] + 1)), (
            "a stopped trial takes no more steps"
        )
        assert [point.step for point in validation] == list(range(0, one["step"] + 1, 10))
        assert validation[-1].value == one["value"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_trials_and_what_waited_for_the_sweep_then_runs(
    number: signal.Signals, finished: FinishedRun, tmp_path: Path
):
    long = PRETRAIN | {"pretrain.n_steps": 3000, "pretrain.evaluate_every": 20}
    workspace = Workspace.behind(tmp_path / "checkout", finished.workspace, long)
    first = workspace.start("sweep", "pretrain", "--over", "pretrain.weight_decay=choice(0.1, 0.2)")
    log = workspace.root / "axon.log"
    wait_until(lambda: "step    20/3000" in log.read_text())
    workspace.set_parameters(PRETRAIN)
    second = workspace.start("sweep", "pretrain", "--over", "pretrain.weight_decay=choice(0.3)")
    wait_until(lambda: "waiting for axon sweep (process" in log.read_text())

    started = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(first.pid, number)  # what a terminal does
    else:
        first.terminate()
    assert first.wait(timeout=60) == 130, log.read_text()[-4000:]
    assert time.monotonic() - started <= 10.0
    assert "starts anew" in log.read_text()
    assert "received at time" not in log.read_text(), "a trace of Ray's"
    _, runs = runs_of(workspace)
    told = [(run.info.run_name, run.info.status) for run in runs if run.info.end_time]
    assert told == [("sweep pretrain", "KILLED"), ("trial 1", "KILLED")]

    assert second.wait(timeout=300) == 0, log.read_text()[-4000:]
    (one,) = result_of(workspace)["trials"]
    assert one["state"] == "finished"
    assert workspace.left_running() == []
    _, runs = runs_of(workspace)
    assert [(run.info.run_name, run.info.status) for run in runs] == [
        ("sweep pretrain", "KILLED"),
        ("trial 1", "KILLED"),
        ("sweep pretrain", "FINISHED"),
        ("trial 1", "FINISHED"),
    ]


def commit(workspace: Workspace) -> None:
    """Everything of the workspace in git, as a user's checkout has it."""
    name = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["add", "-A"], [*name, "commit", "-q", "-m", "start"]):
        subprocess.run(["git", *arguments], cwd=workspace.root, check=True)


def last_of_curve(workspace: Workspace) -> float:
    """The last validation value that the stage itself wrote."""
    with (workspace.root / "metrics" / "curves" / "pretrain.csv").open() as file:
        values = [row["validation_bits_per_byte"] for row in csv.DictReader(file)]
    return float([value for value in values if value][-1])


def experiments(workspace: Workspace) -> dict[str, dict]:
    """What `dvc exp show` knows of each experiment, by name."""
    shown = workspace.dvc("exp", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    found = {}
    for baseline in json.loads(shown.stdout):
        for entry in baseline["experiments"] or ():
            found[entry["name"]] = entry["revs"][0]["data"]
    return found


def bits_per_byte(experiment: dict) -> float:
    return experiment["metrics"]["metrics/pretrain.json"]["data"]["bits_per_byte"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_chosen_trial_is_the_same_again_as_an_experiment_of_dvc(finished: FinishedRun, tmp_path: Path):
    workspace = Workspace.behind(tmp_path / "checkout", finished.workspace, PRETRAIN)
    refused = workspace.axon(*CALL, "--run-best")
    assert refused.returncode == 2
    assert "needs a git repository with a commit" in refused.stderr
    assert not (workspace.root / ".axon" / "sweeps").exists(), "nothing was started"
    commit(workspace)
    searched = workspace.axon(*CALL)
    assert searched.returncode == 0, searched.stdout[-4000:] + searched.stderr[-4000:]

    ran = workspace.axon("sweep", "--run-best")

    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    result = result_of(workspace)
    best = result["best"]
    assert (workspace.root / "models" / "ppo").is_dir(), "everything that follows from it ran too"
    metrics = json.loads((workspace.root / "metrics" / "pretrain.json").read_text())
    assert metrics["bits_per_byte"] == best["value"] == last_of_curve(workspace)
    (whole,) = experiments(workspace).values()
    assert bits_per_byte(whole) == best["value"]
    planned = workspace.axon("run", "--dry-run")
    assert "0 stale, 0 follow" in planned.stdout, planned.stdout

    # In a copy that DVC makes below .dvc/tmp, by the printed command, for the trial that ASHA stopped.
    one = next(one for one in result["trials"] if one["state"] == "stopped")
    ((key, value),) = one["values"].items()
    told = workspace.dvc("exp", "run", "--temp", "--name", "elsewhere", "-S", f"{key}={value!r}", "pretrain")
    assert told.returncode == 0, told.stdout[-4000:] + told.stderr[-4000:]
    elsewhere = experiments(workspace)["elsewhere"]
    assert bits_per_byte(elsewhere) > best["value"], "it was rightly stopped"
    assert json.loads((workspace.root / "metrics" / "pretrain.json").read_text()) == metrics, "a copy is a copy"
    _, runs = runs_of(workspace)
    assert [run.info.status for run in runs if run.info.run_name == "pretrain"] == ["FINISHED", "FINISHED"]
    assert workspace.left_running() == []


@pytest.mark.slow
def test_a_trial_runs_the_stages_before_it_that_its_parameters_change(finished: FinishedRun, tmp_path: Path):
    """An earlier stage in the trials: what they find is what a run finds with the same parameters."""
    workspace = Workspace.behind(tmp_path / "checkout", finished.workspace, PRETRAIN | {"sft.n_steps": 40})
    before = content(workspace.root)
    ran = workspace.axon("sweep", "sft", "--over", "pretrain.learning_rate=choice(3e-3)", "--trials", "1")
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    (one,) = result_of(workspace)["trials"]
    assert content(workspace.root) == before, "what a trial makes is not the pipeline's"
    again = workspace.axon("run", "sft", "--set", "pretrain.learning_rate=3e-3")
    assert again.returncode == 0, again.stdout[-4000:] + again.stderr[-4000:]
    assert json.loads((workspace.root / "metrics" / "sft.json").read_text())["validation_loss"] == one["value"]
    client, runs = runs_of(workspace)
    trial = next(run for run in runs if run.info.run_name == "trial 1")
    assert len(client.get_metric_history(trial.info.run_id, "pretrain/loss")) == N_STEPS
    assert len(client.get_metric_history(trial.info.run_id, "loss")) == 40


@pytest.mark.slow
def test_trials_of_two_workers(finished: FinishedRun, tmp_path: Path):
    several = PRETRAIN | {"workers": 2, "threads": 1}
    workspace = Workspace.behind(tmp_path / "checkout", finished.workspace, several)
    ran = workspace.axon(*CALL)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    result = result_of(workspace)
    trials = {one["values"]["pretrain.learning_rate"]: one for one in result["trials"]}
    assert trials[BAD]["state"] == "stopped"
    chosen = result["best"]["values"]["pretrain.learning_rate"]
    again = workspace.axon("run", "pretrain", "--set", f"pretrain.learning_rate={chosen!r}")
    assert again.returncode == 0, again.stdout[-4000:] + again.stderr[-4000:]
    metrics = json.loads((workspace.root / "metrics" / "pretrain.json").read_text())
    assert metrics["bits_per_byte"] == pytest.approx(result["best"]["value"], rel=1e-3)


@pytest.mark.slow
def test_two_trials_at_once_and_an_end_by_the_clock(finished: FinishedRun, tmp_path: Path):
    one_thread = PRETRAIN | {"threads": 1, "pretrain.n_steps": 400}
    workspace = Workspace.behind(tmp_path / "checkout", finished.workspace, one_thread)
    call = ("sweep", "pretrain", "--over", "pretrain.weight_decay=choice(0.1, 0.2)", "--trials", "2", "--grace", "90")
    ran = workspace.axon(*call, "--concurrent", "2")
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    _, (_, first, second) = runs_of(workspace)
    assert second.info.start_time < first.info.end_time, "they ran at the same time"

    workspace.set_parameters(one_thread | {"pretrain.n_steps": 100000})
    started = time.monotonic()
    cut = workspace.axon(*call, "--budget", "8s")
    assert time.monotonic() - started < 60
    assert cut.returncode == 1
    assert "no trial ran to its end" in cut.stderr
    states = [one["state"] for one in result_of(workspace)["trials"]]
    assert states == ["cut short", "waiting"]
    assert workspace.left_running() == []
