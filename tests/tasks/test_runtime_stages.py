"""A stage hashes its inputs itself and refuses what is not what was made for it."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from tasks.errors import UserError
from tasks.runtime import stages
from tests.helpers import REPOSITORY


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "b").write_text("weights")
    (tmp_path / "models" / "a").write_text("config")
    (tmp_path / "models" / "__pycache__").mkdir()
    (tmp_path / "models" / "__pycache__" / "x.pyc").write_text("ignored")
    (tmp_path / "dvc.yaml").write_text(
        yaml.safe_dump(
            {
                "stages": {
                    "make": {"cmd": "true", "outs": ["models"], "params": ["seed"]},
                    "use": {"cmd": "true", "deps": ["models/b", "models"], "params": ["dpo.beta"]},
                }
            }
        )
    )
    return tmp_path


def lock(workspace, md5: str) -> None:
    entry = {"make": {"cmd": "true", "outs": [{"path": "models", "hash": "md5", "md5": md5}]}}
    (workspace / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entry}))


def test_digests_equal_dvc_s_own(workspace):
    (workspace / "dvc.yaml").unlink()
    subprocess.run(["git", "init", "-q"], cwd=workspace, check=True)
    (workspace / ".dvcignore").write_text("__pycache__/\n")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q"], cwd=workspace, check=True)
    subprocess.run([*dvc, "add", "-q", "models"], cwd=workspace, check=True)
    recorded = yaml.safe_load((workspace / "models.dvc").read_text())["outs"][0]["md5"]
    assert stages.digest(workspace / "models") == recorded


def test_dvc_takes_the_kept_files_of_earlier_runs_for_no_stages(tmp_path):
    """Else it would put their artifacts beside them, and keep in its cache what a purge is to remove."""
    from dvc.repo import Repo

    for folder in (tmp_path, tmp_path / "lineage" / "runs" / "0123"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("dvc.yaml", "params.yaml"):
            (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    (tmp_path / ".dvc").mkdir()
    for name in (".dvc/config", ".dvcignore", ".gitignore"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    with Repo(str(tmp_path)) as repo:
        found = {(stage.path_in_repo, stage.name) for stage in repo.index.stages}
    assert found == {("dvc.yaml", name) for name in stages.read_stages(tmp_path)}


def test_an_altered_input_is_found_though_its_size_and_time_are_the_same(workspace):
    graph = stages.read_stages(workspace)
    lock(workspace, stages.digest(workspace / "models"))
    before = (workspace / "models" / "b").stat()
    assert set(stages.hash_inputs(workspace, graph, "use")) == {"models", "models/b"}
    (workspace / "models" / "b").write_text("weighty")
    os.utime(workspace / "models" / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"models has MD5 .* but dvc\.lock records"):
        stages.hash_inputs(workspace, graph, "use")


def test_a_missing_input_is_named(workspace):
    graph = stages.read_stages(workspace)
    (workspace / "models" / "b").unlink()
    with pytest.raises(UserError, match="models/b is missing"):
        stages.hash_inputs(workspace, graph, "use")


def test_an_execution_is_identified_by_inputs_and_its_own_parameters_alone(workspace):
    use = stages.read_stages(workspace)["use"]
    base = stages.execution_digest(use, {"models": "1"}, {"dpo": {"beta": 0.1}, "seed": 1})
    assert base == stages.execution_digest(use, {"models": "1"}, {"dpo": {"beta": 0.1}, "seed": 2})
    assert base != stages.execution_digest(use, {"models": "1"}, {"dpo": {"beta": 0.2}, "seed": 1})
    assert base != stages.execution_digest(use, {"models": "2"}, {"dpo": {"beta": 0.1}, "seed": 1})


def test_the_graph_of_the_repository_is_the_one_of_the_design():
    graph = stages.read_stages(REPOSITORY)
    expected = {
        "tokenizer": {"data"},
        "pretrain": {"tokenizer"},
        "sft": {"pretrain"},
        "preferences": {"sft"},
        "reward_model": {"preferences"},
        "dpo": {"preferences"},
        "ppo": {"reward_model"},
        "sft_continued": {"sft", "dpo"},
        "evaluate": {"ppo", "dpo", "sft_continued"},
        "report": {"evaluate"},
    }
    for name, needed in expected.items():
        assert needed <= stages.ancestors(graph, name), name
    assert "reward_model" not in stages.ancestors(graph, "dpo")
    order = list(graph)
    for name in graph:
        assert all(order.index(a) < order.index(name) for a in stages.ancestors(graph, name))


@pytest.mark.parametrize("content", ["stages: [", "{}", "stages: 3", json.dumps({"stages": {"x": {}}})])
def test_a_damaged_graph_is_said_to_be_so(tmp_path, content):
    (tmp_path / "dvc.yaml").write_text(content)
    with pytest.raises(UserError, match=r"dvc\.yaml"):
        stages.read_stages(tmp_path)
