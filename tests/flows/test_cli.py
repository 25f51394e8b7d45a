"""Mistakes on the command line end in one message and the right exit code, and nothing is written."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.flows.fuzzing import Commands
from tests.flows.workspace import Workspace
from tests.helpers import make_tree


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.create(tmp_path_factory.mktemp("cli") / "checkout")


@pytest.fixture(scope="module")
def commands(workspace: Workspace) -> Iterator[Commands]:
    """Commands in one process, which imports once: a second less for each. The other tests start a process each."""
    server = Commands(workspace)
    yield server
    server.close()


@pytest.fixture
def untouched(workspace: Workspace):
    """Assert that a test's commands wrote nothing below the root but the state of locks and DVC's own."""

    def content() -> dict[str, bytes]:
        kept = {}
        for path in workspace.root.rglob("*"):
            relative = path.relative_to(workspace.root)
            if (
                path.is_file()
                and relative.parts[0] not in (".axon", ".dvc", ".git")
                and "__pycache__" not in path.parts
            ):
                kept[str(relative)] = path.read_bytes()
        return kept

    before = content()
    yield
    assert content() == before
    assert not (workspace.root / ".axon" / "services").exists(), "no server may have been started"


def failed(result: subprocess.CompletedProcess[str], code: int = 2) -> str:
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--set", "dpo.betta=0.2"], "dpo.betta is not a parameter; did you mean dpo.beta?"),
        (["run", "--set", "dop.beta=0.2"], "dop is not a section of params.yaml; did you mean dpo?"),
        (["run", "--set", "dpo.beta"], "must be key=value"),
        (["run", "--set", "dpo.beta=[1"], "the value is not YAML"),
        (["run", "--set", "dpo.beta=-1"], "dpo.beta=-1: input should be greater than 0"),
        (["run", "--set", "seed.x=1"], "seed is a value, not a section"),
        (["run", "--set", "preferences.answers_per_prompt=1"], "preferences.answers_per_prompt=1"),
        (["run", "--set", "model.d_model=50"], "model.d_model=50 must be divisible by model.heads=4"),
        (["run", "--set", "tokenizer.vocab_size=100"], "tokenizer.vocab_size=100 must be at least 262"),
        (["run", "pretrian"], "pretrian is not a stage; did you mean pretrain?"),
        (["sweep", "pretrian", "--over", "seed=choice(1)"], "pretrian is not a stage; did you mean pretrain?"),
        (["sweep", "pretrain", "--over", "pretrain.lr=uniform(0, 1)"], "pretrain.lr is not a parameter of params.yaml"),
        (["sweep", "pretrain", "--over", "pretrain.n_steps=choice(0)"], "pretrain.n_steps=0: input should be greater"),
        (["sweep"], "which stage?"),
        (["run", "pretrian", "--set", "dpo.beta=0.3"], "pretrian is not a stage"),
        (["run", "--set", "data.files=[{path: sources/no.jsonl, license: MIT}]"], "sources/no.jsonl"),
        (["run", "--set", "data.python_docs.packages=[numpi]"], "numpi"),
        (["generate", "x", "--model", "gpt"], "--model 'gpt' is not a model; allowed: champion"),
        (["generate", "x", "--temperature", "-1"], "--temperature"),
    ],
)
def test_a_mistake_is_named_before_anything_starts(commands: Commands, untouched: None, arguments, expected):
    commands(*arguments).refuses(expected)


def test_a_mistake_ends_a_process_of_its_own_alike(workspace: Workspace, untouched: None):
    message = failed(workspace.axon("run", "--set", "dpo.betta=0.2"))
    assert "dpo.betta is not a parameter; did you mean dpo.beta?" in " ".join(message.split())


def test_an_empty_source_is_refused_before_anything_starts(workspace: Workspace):
    source = workspace.root / "sources" / "empty.jsonl"
    source.write_text("")
    try:
        message = failed(
            workspace.axon("run", "--set", "data.files=[{path: sources/empty.jsonl, license: MIT}]", "--dry-run")
        )
        assert "sources/empty.jsonl" in message
        assert "empty" in message
    finally:
        source.unlink()


def test_a_dry_run_with_set_shows_the_difference_and_writes_nothing(workspace: Workspace, untouched: None):
    result = workspace.axon("run", "--dry-run", "--set", "dpo.beta=0.25", "--set", "seed=9")
    assert result.returncode == 0, result.stderr
    assert "-  beta: 0.1" in result.stdout
    assert "+  beta: 0.25" in result.stdout
    assert "+seed: 9" in result.stdout
    assert "11 stale, 0 follow, 0 current; nothing was run." in result.stdout


def test_damaged_files_are_named(workspace: Workspace):
    for name in ("params.yaml", "dvc.yaml"):
        path = workspace.root / name
        before = path.read_bytes()
        try:
            path.write_bytes(before[: len(before) // 2] + b"\n: [")
            assert name in failed(workspace.axon("run"))
        finally:
            path.write_bytes(before)
    lock = workspace.root / "dvc.lock"
    lock.write_text("stages: [")
    try:
        assert "dvc.lock" in failed(workspace.axon("run", "--dry-run"))
    finally:
        lock.unlink()


def test_outside_a_checkout_it_says_what_it_looked_for(tmp_path: Path, workspace: Workspace):
    import sys

    env = {**workspace.environment(), "PYTHONPATH": str(workspace.root)}
    result = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert "no Axon checkout" in failed(result)


def test_before_the_first_run_there_is_no_model_and_no_report(workspace: Workspace):
    assert "axon run sft" in failed(workspace.axon("generate", "x", "--model", "sft"), code=1)
    assert "axon run" in failed(workspace.axon("report"), code=1)


def test_set_keeps_the_comments_of_params_yaml(tmp_path: Path):
    from flows import settings
    from tests.helpers import REPOSITORY

    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    params, text, difference = settings.apply(tmp_path, ["dpo.beta=0.25"])
    assert params.dpo.beta == 0.25
    old = (tmp_path / "params.yaml").read_text()
    changed = [(a, b) for a, b in zip(old.splitlines(), text.splitlines(), strict=True) if a != b]
    assert changed == [("  beta: 0.1", "  beta: 0.25")]
    assert len([line for line in difference.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]) == 2
    expected = make_tree({"dpo.beta": 0.25})
    assert yaml.safe_load(text) == expected


def test_clean_removes_outputs_and_asks_first(workspace: Workspace):
    assert workspace.axon("clean", "--yes").stdout == "Nothing to remove.\n"
    made = workspace.root / "models" / "sft"
    made.mkdir(parents=True)
    (made / "x").write_text("x")
    refused = subprocess.run(
        ["bash", "-c", "echo n | $0 -m flows.cli clean", sys.executable],
        cwd=workspace.root,
        env=workspace.environment(),
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1
    assert made.exists()
    assert workspace.axon("clean", "--yes").returncode == 0
    assert not made.exists()
    assert (workspace.root / "params.yaml").exists()


def test_clean_all_keeps_the_key_and_the_head_of_the_chain(workspace: Workspace):
    fingerprint = workspace.axon("keys").stdout.split()[1]
    state = workspace.root / ".axon"
    (state / "lineage-head.json").write_text("{}")
    (state / "mlflow.db").write_text("x")
    result = workspace.axon("clean", "--all", "--yes")
    assert result.returncode == 0
    assert "key that signs" in result.stdout
    assert not (state / "mlflow.db").exists()
    assert (state / "lineage-head.json").read_text() == "{}"
    (state / "lineage-head.json").unlink()
    assert workspace.axon("keys").stdout.split()[1] == fingerprint


def test_doctor_finds_a_version_that_differs_from_the_constraints(workspace: Workspace):
    constraints = workspace.root / "constraints.txt"
    before = constraints.read_text()
    try:
        constraints.write_text(before.replace("rich==", "rich==0.0.0+was"))
        result = workspace.axon("doctor")
        assert result.returncode == 1
        assert "constraints.txt asks for 0.0.0" in result.stdout
    finally:
        constraints.write_text(before)
