"""The whole pipeline at a tiny size with the real DVC, Prefect, Ray and MLflow."""

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tasks.lineage.audit.comparing import NOT
from tasks.runtime import stages
from tests.flows.conftest import FinishedRun
from tests.flows.workspace import TINY, Workspace

pytestmark = pytest.mark.engines

MODELS = ("base", "sft", "sft_continued", "ppo", "dpo", "best_of_n")
# Code that cannot change a result: the schema, errors, the worker itself.
NEUTRAL = (
    "tasks/parameters.py",
    "tasks/parameter_mistakes.py",
    "tasks/parameter_sections.py",
    "tasks/redact.py",
    "tasks/yaml_text.py",
    "tasks/errors.py",
    "tasks/steps/context.py",
    "tasks/runtime/",
    ".axon/",
)


def test_every_stage_ran_and_the_end_says_what_came_of_it(finished: FinishedRun):
    graph = stages.read_stages(finished.workspace.root)
    assert list(yaml.safe_load(finished.workspace.lock)["stages"]) == list(graph)
    for name in graph:
        assert f"✓ {name}" in finished.output
    for expected in ("Sample conversations", "axon-chat version 1", "challenger, champion", "axon chat", "report.html"):
        assert expected in finished.output
    assert "Traceback" not in finished.output


def test_metrics_have_the_agreed_names(finished: FinishedRun):
    evaluation = json.loads((finished.workspace.root / "metrics" / "evaluate.json").read_text())
    assert set(evaluation) == set(MODELS)
    for model in MODELS:
        figures = evaluation[model]
        assert figures["win_rate_low"] <= figures["win_rate_vs_sft"] <= figures["win_rate_high"]
        assert figures["bits_per_byte"] > 0
        assert 0 <= figures["exact_match"] <= 1
        assert figures["kl_to_sft"] >= 0
    reward = json.loads((finished.workspace.root / "metrics" / "reward_model.json").read_text())
    assert 0 <= reward["pairwise_accuracy"] <= 1


def test_every_listener_is_on_loopback(finished: FinishedRun):
    assert len(finished.sockets) >= 4, "Prefect's server and Ray's processes listen somewhere"
    assert {s for s in finished.sockets if s[0] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")} == set()


def test_no_process_outlives_the_run(finished: FinishedRun):
    assert finished.orphans == []
    assert list((finished.workspace.root / ".axon" / "runs").glob("*.open")) == []


def test_a_stage_s_deps_cover_the_code_it_imports_and_the_files_it_opens(finished: FinishedRun):
    """Code that cannot change a result is no dependency, and neither are empty packages."""
    root = finished.workspace.root
    for name, stage in stages.read_stages(root).items():
        (execution,) = finished.workspace.executions(name)
        used = [path for path in execution[-1]["used"] if (root / path).is_file() and not path.startswith(NEUTRAL)]
        used = [path for path in used if not is_empty_package(root / path)]
        assert f"tasks/steps/{name}.py" in used
        known = (*stage.deps, *stage.outs)
        missing = [path for path in used if not any(path == one or path.startswith(one + "/") for one in known)]
        assert missing == [], f"stage {name} uses files that are not among its deps"


def is_empty_package(path: Path) -> bool:
    """Whether a file is an `__init__.py` without code, or the lazy exports of axon_models."""
    if path.name != "__init__.py":
        return False
    statements = ast.parse(path.read_text()).body
    return all(isinstance(s, ast.Expr) for s in statements) or path.parent.name == "axon_models"


def test_mlflow_holds_a_run_a_stage_under_the_pipeline_s_with_digests_and_models(finished: FinishedRun):
    from mlflow.tracking import MlflowClient

    root = finished.workspace.root
    client = MlflowClient(f"sqlite:///{root / '.axon' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("axon")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    graph = stages.read_stages(root)
    assert set(runs) == {"pipeline", *graph}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    lock = yaml.safe_load(finished.workspace.lock)["stages"]
    for name in graph:
        assert runs[name].data.tags["mlflow.parentRunId"] == runs["pipeline"].info.run_id
        for out in lock[name]["outs"]:
            assert runs[name].data.tags[f"output.{out['path']}"] == out["md5"]
        for dep in lock[name]["deps"]:
            assert runs[name].data.tags[f"input.{dep['path']}"] == dep["md5"]
    curve = client.get_metric_history(runs["pretrain"].info.run_id, "loss")
    assert max(point.step for point in curve) == TINY["pretrain.n_steps"]
    champion = client.get_model_version_by_alias("axon-chat", "champion")
    assert champion.tags["axon.digest"] == stages.digest(root / "models" / champion.tags["axon.stage"])


def test_registration_is_idempotent_by_digest(finished: FinishedRun):
    from mlflow.tracking import MlflowClient

    root = finished.workspace.root
    (root / ".axon" / "registered.json").unlink()
    result = finished.workspace.axon("run")
    assert result.returncode == 0, result.stderr
    assert "already registered" in result.stdout
    client = MlflowClient(f"sqlite:///{root / '.axon' / 'mlflow.db'}")
    assert len(client.search_model_versions("name = 'axon-chat'")) == 1


def test_with_nothing_to_do_no_engine_is_imported_and_no_server_started(finished: FinishedRun):
    code = (
        "import sys; sys.argv = ['axon', 'run']\n"
        "from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit as left: print('code', left.code)\n"
        "print([m for m in ('prefect', 'mlflow', 'torch', 'ray') if m in sys.modules])\n"
        "import psutil; print(psutil.Process().children(recursive=True))\n"
    )
    import subprocess

    workspace = finished.workspace
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=workspace.root, env=workspace.environment(), capture_output=True, text=True
    )
    assert result.stdout.splitlines() == [
        "Nothing to do: every stage is current, the model is registered.",
        "code 0",
        "[]",
        "[]",
    ]


def kinds(output: str) -> dict[str, str]:
    """Stage to stale, follows or current, from the output of a dry run."""
    words = [line.split() for line in output.splitlines() if line.startswith(("stale ", "follows ", "current "))]
    return {name: kind for kind, name in words}


def test_a_changed_parameter_makes_its_stage_stale_and_what_depends_on_it_follow(finished: FinishedRun):
    workspace = finished.workspace
    before = (workspace.root / "params.yaml").read_bytes()
    result = workspace.axon("run", "--dry-run", "--set", "dpo.beta=0.2")
    assert result.returncode == 0, result.stderr
    assert "parameter dpo.beta changed from 0.1 to 0.2" in result.stdout
    found = kinds(result.stdout)
    # The report shows the parameters, so it is stale for itself.
    assert [n for n, k in found.items() if k == "stale"] == ["dpo", "report"]
    assert [n for n, k in found.items() if k == "follows"] == ["sft_continued", "evaluate"]
    assert (workspace.root / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "path", ["docs/pipeline.md", "flows/pretrain.py", "tasks/tracking/mlflow_store.py", "tasks/lineage/recording.py"]
)
def test_docs_flows_tracking_and_lineage_make_no_stage_stale(finished: FinishedRun, path: str):
    stale = stale_after_editing(finished.workspace, path)
    assert stale == {}


@pytest.mark.parametrize("folder", [".", "docs"])
def test_an_objective_makes_only_its_own_stages_stale(finished: FinishedRun, folder: str):
    """Also asked from a folder below the root: DVC takes paths from the working directory."""
    stale = stale_after_editing(finished.workspace, "axon_models/objectives/dpo.py", folder)
    assert [n for n, k in stale.items() if k == "stale"] == ["dpo"]
    assert not {"pretrain", "sft", "preferences", "reward_model", "ppo"} & set(stale)


def stale_after_editing(workspace: Workspace, path: str, folder: str = ".") -> dict[str, str]:
    """Stages that are not current after a comment was added to `path`; the file is put back."""
    file = workspace.root / path
    before = file.read_bytes()
    try:
        file.write_bytes(before + b"\n# edited\n")
        result = workspace.axon("run", "--dry-run", folder=folder)
        assert result.returncode == 0, result.stderr
        return {n: k for n, k in kinds(result.stdout).items() if k != "current"}
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "sft_continued", "ppo", "dpo", "reward_model"])
def test_model_directories_load_in_transformers_with_equal_logits(finished: FinishedRun, stage: str):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import axon_models
    from tasks.tokenizers import bytelevel

    directory = finished.workspace.root / "models" / stage
    tokens = torch.randint(6, 512, (3, 37), generator=torch.Generator().manual_seed(1))
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ours = axon_models.load(directory).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)
    text = "37 + 48 = ? naïve café 日本 \U0001f600\n\tdef f(x):"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer(text)["input_ids"] == bytelevel.load(directory).encode(text).ids


def test_an_altered_artifact_is_found_before_it_is_used(finished: FinishedRun):
    """One bit, same size, same times: DVC's state database would not see it."""
    import os

    workspace = finished.workspace
    path = workspace.root / "models" / "sft" / "model.safetensors"
    stat, before = path.stat(), path.read_bytes()
    try:
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with pytest.raises(Exception, match=r"models/sft has MD5 .* but dvc\.lock records"):
            stages.hash_inputs(workspace.root, stages.read_stages(workspace.root), "preferences")
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_no_pickle_is_written(finished: FinishedRun):
    suspicious = [
        str(path)
        for path in finished.workspace.root.rglob("*")
        if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib")
    ]
    assert suspicious == []


def test_chat_and_generate_answer(finished: FinishedRun):
    for model in ("champion", "sft"):
        result = finished.workspace.axon("generate", "37 + 48 = ?", "--model", model, "--max-new-tokens", "8")
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith("\n")
    again = finished.workspace.axon("generate", "x", "--raw", "--temperature", "1", "--max-new-tokens", "8")
    same = finished.workspace.axon("generate", "x", "--raw", "--temperature", "1", "--max-new-tokens", "8")
    assert again.stdout == same.stdout != ""
    unknown = finished.workspace.axon("generate", "x", "--model", "gpt")
    assert unknown.returncode == 2
    assert "allowed: champion, challenger" in unknown.stderr


def test_plain_dvc_repro_of_some_stages_gives_the_same_bytes(finished: FinishedRun, tmp_path: Path):
    """A stage that fans out and one that trains; `make test-slow` does all of them."""
    workspace = Workspace.create(tmp_path / "checkout")
    workspace.take_results(finished.workspace, but=("tokenizer", "dpo"))
    result = workspace.dvc("repro", "--single-item", "tokenizer", "dpo")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert len(workspace.executions("tokenizer")) == len(workspace.executions("dpo")) == 1
    assert workspace.left_running() == []
    assert yaml.safe_load(workspace.lock) == yaml.safe_load(finished.workspace.lock)


@pytest.mark.slow
def test_without_statements_and_without_the_run_cache_a_stage_gives_the_same_bytes(
    finished: FinishedRun, tmp_path: Path
):
    """DVC's run cache knows this result, but not for a stage that was found not deterministic."""
    workspace = Workspace.create(tmp_path / "checkout")
    workspace.take_results(finished.workspace, but=("dpo",))
    shutil.copytree(finished.workspace.root / ".dvc" / "cache" / "runs", workspace.root / ".dvc" / "cache" / "runs")
    note = workspace.root / ".axon" / "determinism.json"
    note.parent.mkdir()
    note.write_text(json.dumps({"dpo": {"class": NOT}}))
    result = workspace.axon("run", "dpo", AXON_LINEAGE="off")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert len(workspace.executions("dpo")) == 1
    assert not (workspace.root / "lineage" / "statements").exists()
    assert yaml.safe_load(workspace.lock) == yaml.safe_load(finished.workspace.lock)

    note.unlink()
    (workspace.root / "models" / "dpo" / "model.safetensors").unlink()
    lock = yaml.safe_load(workspace.lock)
    del lock["stages"]["dpo"]
    (workspace.root / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    result = workspace.axon("run", "dpo")
    assert "restored from DVC's cache" in result.stdout, result.stdout[-3000:] + result.stderr[-3000:]
    assert len(workspace.executions("dpo")) == 1
    assert yaml.safe_load(workspace.lock) == yaml.safe_load(finished.workspace.lock)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_plain_dvc_repro_of_every_stage_gives_the_same_lock_file(finished: FinishedRun, tmp_path: Path):
    workspace = Workspace.create(tmp_path / "checkout")
    result = workspace.dvc("repro", timeout_s=1700)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert workspace.lock == finished.workspace.lock
