"""Stages run again from recorded inputs; the classes are those that the differing files allow."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from safetensors.torch import save_file

from flows import live
from tasks.errors import UserError
from tasks.lineage.audit import comparing, determinism, reproduce, scratch
from tasks.lineage.audit.comparing import EXACT, NOT, WITHIN
from tasks.lineage.store import StatementStore
from tests.tasks.lineage import audited_run, small_run


def pair(folder: Path, name: str, write, one, other) -> comparing.Compared:
    paths = [folder / f"{side}-{name}" for side in ("before", "after")]
    for path, value in zip(paths, (one, other), strict=True):
        write(path, value)
    return comparing.compare(name, *paths)


def as_json(path, value):
    path.write_text(json.dumps(value))


def as_table(path, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def as_rows(path, rows):
    with path.open("w") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.parametrize(
    ("write", "name", "one", "other", "difference"),
    [
        (lambda p, v: save_file(v, p), "m.safetensors", {"a": torch.ones(2)}, {"a": torch.tensor([1.0, 1.25])}, 0.25),
        (
            lambda p, v: save_file(v, p),
            "bf16.safetensors",
            {"a": torch.ones(2, dtype=torch.bfloat16)},
            {"a": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)},
            1.0,
        ),
        (numpy.save, "t.npy", numpy.array([1, 2]), numpy.array([1, 5]), 3.0),
        (numpy.save, "n.npy", numpy.array([numpy.nan, 1.0]), numpy.array([numpy.nan, 1.5]), 0.5),
        (as_json, "m.json", {"a": [1, 2.5], "b": "x"}, {"a": [1, 2.0], "b": "x"}, 0.5),
        (as_rows, "c.csv", [["step", "loss"], [1, 0.5]], [["step", "loss"], [1, 0.625]], 0.125),
        (as_table, "r.parquet", {"a": [1, 2], "x": [0.0, 1.0]}, {"a": [1, 2], "x": [0.0, 1.5]}, 0.5),
    ],
)
def test_the_largest_difference_of_numbers_is_found(tmp_path, write, name, one, other, difference):
    found = pair(tmp_path, name, write, one, other)
    assert found.difference == pytest.approx(difference)
    assert pair(tmp_path, f"same-{name}", write, one, one).difference == 0.0


@pytest.mark.parametrize(
    ("write", "name", "one", "other", "words"),
    [
        (lambda p, v: save_file(v, p), "m.safetensors", {"a": torch.ones(2)}, {"b": torch.ones(2)}, "other tensors"),
        (lambda p, v: save_file(v, p), "s.safetensors", {"a": torch.ones(2)}, {"a": torch.ones(3)}, r"\(3,\), was"),
        (numpy.save, "t.npy", numpy.ones(2), numpy.ones(2, dtype="float32"), "float32"),
        (numpy.save, "n.npy", numpy.array([1.0]), numpy.array([numpy.nan]), "NaN"),
        (as_json, "m.json", {"a": "x"}, {"a": "y"}, "a is 'y', was 'x'"),
        (as_json, "b.json", {"a": True}, {"a": 1}, "a is '1', was 'True'"),
        (as_json, "k.json", {"a": 1}, {"a": 1, "b": 2}, "other keys"),
        (as_json, "l.json", [1], [1, 2], "2 entries"),
        (as_rows, "c.csv", [["a"], ["x"]], [["a"], ["y"]], "'y', was 'x'"),
        (as_table, "r.parquet", {"a": ["x"]}, {"a": ["y"]}, "column a"),
        (as_table, "q.parquet", {"a": [1]}, {"a": [1, 2]}, "2 rows"),
        (lambda p, v: p.write_bytes(v), "x.png", b"a", b"b", "other bytes"),
        (lambda p, v: p.write_bytes(v), "d.json", b"{}", b"{", "cannot be read"),
    ],
)
def test_more_than_numbers_is_told(tmp_path, write, name, one, other, words):
    found = pair(tmp_path, name, write, one, other)
    assert found.difference is None
    assert re.search(words, found.why), found.why


def test_the_class_is_that_of_the_worst_file():
    def file(difference, why="other bytes"):
        return comparing.Compared(path="x", difference=difference, why=why)

    assert comparing.determinism([], 0.1) == (EXACT, 0.0)
    assert comparing.determinism([file(0.0)], 0.1) == (WITHIN, 0.0)  # the bytes differ, no number does
    assert comparing.determinism([file(0.05), file(0.01)], 0.1) == (WITHIN, 0.05)
    assert comparing.determinism([file(0.05), file(0.2)], 0.1) == (NOT, 0.2)
    assert comparing.determinism([file(0.05), file(None)], 0.1) == (NOT, None)


def writing(**files):
    """A run that checks that it finds its inputs, and writes these files."""

    def run(command, folder, variables, log):
        assert command[1:] == ["-m", "flows.ppo"]
        assert Path(command[0]).name.startswith("python")
        assert variables["AXON_LINEAGE"] == "off"
        assert variables["PYTHONPATH"] == str(folder)
        assert "MLFLOW_TRACKING_URI" not in variables
        assert (folder / "tasks" / "steps" / "ppo.py").read_text() == "# ppo\n"
        assert (folder / "models" / "sft" / "model.safetensors").read_text() == "weights of sft"
        assert (folder / "data" / "demonstrations.parquet").is_file()
        assert yaml.safe_load((folder / "params.yaml").read_text())["ppo"]["kl_coef"] == 1e-05
        assert not (folder / "dvc.lock").exists()
        assert not (folder / "models" / "ppo").exists()
        for name, content in files.items():
            path = folder / "models" / "ppo" / name.replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        log.write_text("done")
        return 0

    return run


CONFIG = json.dumps(small_run.CONFIG)
WEIGHTS = "other weights of ppo"


def test_a_stage_that_gives_the_same_bytes_is_bit_exact(copied, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", copied.tracking_uri)
    before = (copied.root / "dvc.lock").read_bytes()
    # What a person has in hand now does not matter.
    (copied.root / "tasks" / "steps" / "ppo.py").write_text("# edited\n")
    audited_run.write_parameters(copied.root, small_run.VALUES)
    (copied.root / "models" / "sft" / "model.safetensors").write_text("damaged: the cache has the true one")
    [statement] = reproduce.choose(copied, ["ppo"]).values()
    run = writing(config_json=CONFIG, model_safetensors=WEIGHTS)
    result = reproduce.reproduce(copied, statement, tolerance=1e-3, run=run)
    assert (result.kind, result.largest, result.files) == (EXACT, 0.0, ()), result
    assert determinism.read(copied)["ppo"]["class"] == EXACT
    assert determinism.read(copied)["ppo"]["statement"] == statement.digest
    assert not determinism.is_known_not_to_be(copied, "ppo")
    assert not (copied.state / "reproduce" / "ppo").exists()
    assert (copied.root / "dvc.lock").read_bytes() == before


def test_a_number_that_differs_is_within_tolerance_or_not(copied):
    [statement] = reproduce.choose(copied, ["ppo"]).values()
    run = writing(config_json=json.dumps({**small_run.CONFIG, "hidden_size": 32.25}), model_safetensors=WEIGHTS)
    result = reproduce.reproduce(copied, statement, tolerance=0.5, run=run)
    assert (result.kind, result.largest) == (WITHIN, 0.25)
    assert [file.path for file in result.files] == ["models/ppo/config.json"]
    (copied.root / "models" / "ppo" / "config.json").write_text("damaged: the cache has the true one")
    result = reproduce.reproduce(copied, statement, tolerance=0.1, run=run)
    assert (result.kind, result.largest) == (NOT, 0.25)
    assert determinism.is_known_not_to_be(copied, "ppo")


def test_files_too_few_or_too_many_are_not_deterministic(copied):
    [statement] = reproduce.choose(copied, ["ppo"]).values()
    run = writing(config_json=CONFIG, more_txt="")
    result = reproduce.reproduce(copied, statement, tolerance=1.0, run=run)
    assert result.kind == NOT
    assert {file.path: file.why for file in result.files} == {
        "models/ppo/model.safetensors": "it was written then, and not now",
        "models/ppo/more.txt": "it was not written then",
    }


def test_a_stage_that_fails_or_whose_inputs_are_gone_is_told_and_not_recorded(copied):
    [statement] = reproduce.choose(copied, ["ppo"]).values()
    result = reproduce.reproduce(copied, statement, tolerance=1.0, run=lambda *_: 3)
    assert result.kind == reproduce.FAILED
    assert "exit code 3" in result.why
    name = statement.inputs["models/sft"]["md5"]
    (copied.root / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]).unlink()
    (copied.root / "models" / "sft" / "config.json").unlink()
    result = reproduce.reproduce(copied, statement, tolerance=1.0, run=lambda *_: 0)
    assert "models/sft with SHA-256" in result.why
    assert determinism.read(copied) == {}


def test_code_that_is_gone_is_told(copied):
    (copied.root / "tasks" / "steps" / "ppo.py").write_text("# not committed\n")
    audited_run.run(copied, yaml.safe_load((copied.root / "params.yaml").read_text()), ["ppo"])
    (copied.root / "tasks" / "steps" / "ppo.py").write_text("# lost\n")
    [statement] = reproduce.choose(copied, ["ppo"]).values()
    result = reproduce.reproduce(copied, statement, tolerance=1.0, run=lambda *_: 0)
    assert "neither committed nor in the working tree" in result.why


def test_a_real_command_runs_in_the_scratch_workspace(tmp_path):
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "say.py").write_text(
        "import os\nprint(os.getcwd(), os.environ['PYTHONPATH'])\nraise SystemExit(4)"
    )
    log = tmp_path / "log"
    code = scratch.run([sys.executable, "-m", "flows.say"], tmp_path, {"PYTHONPATH": str(tmp_path)}, log)
    assert (code, log.read_text()) == (4, f"{tmp_path} {tmp_path}\n")


def test_only_stages_with_statements_can_be_reproduced(copied):
    assert list(reproduce.choose(copied, [])) == ["data", "sft", "ppo", "evaluate"]
    assert list(reproduce.choose(copied, ["evaluate", "sft"])) == ["sft", "evaluate"]
    assert reproduce.choose(copied, ["ppo"])["ppo"].sequence == 7
    with pytest.raises(UserError, match="no such stage"):
        reproduce.choose(copied, ["dpo"])
    for stored in StatementStore.of(copied).all():
        if stored.statement.stage == "sft":
            stored.path.unlink()
    with pytest.raises(UserError, match="no statement speaks for"):
        reproduce.choose(copied, ["sft"])


def test_a_damaged_record_is_a_clear_mistake(copied):
    determinism.path(copied).write_text("[]")
    with pytest.raises(UserError, match="remove it"):
        determinism.read(copied)


def test_the_live_report_shows_what_was_found_of_which_execution(copied, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    [statement] = reproduce.choose(copied, ["ppo"]).values()
    note = {"class": WITHIN, "largest_difference": 0.25, "when": "2026-01-31T12:00:00Z"}
    determinism.write(copied, "ppo", {**note, "statement": statement.digest})
    determinism.write(copied, "sft", {**note, "statement": "of another"})
    live.show(copied)
    told = capsys.readouterr().out
    lines = {line.split()[0]: line for line in told.splitlines() if line.split()}
    assert lines["ppo"].rstrip().endswith("within tolerance, at most 0.25, 2026-01-31")
    assert lines["sft"].rstrip().endswith("within tolerance, at most 0.25, 2026-01-31, of an earlier execution")
    assert lines["evaluate"].rstrip().endswith("not tried")
    assert "Versions of axon-chat" in told
    assert f"anchor: key {StatementStore.of(copied).head().key} head" in told
