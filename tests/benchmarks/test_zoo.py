"""The table of presets: read from what a run leaves, and what becomes of presets that fail. No engine is started."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from axon_models.presets import PRESETS, build
from benchmarks import zoo
from benchmarks.zoo import (
    PARAMETERS,
    Result,
    figures,
    kept,
    last_lines,
    overrides,
    page,
    presets_named,
    run_axon,
    table,
)
from tasks.data import records
from tasks.files import write_json
from tasks.steps.pretrain import config_of_shape
from tests.flows.workspace import Workspace
from tests.helpers import make_params, make_tree

GOOD = {
    "n_parameters": 12_345, "n_active_parameters": 2_345, "bits_per_byte": 2.5, "validation_loss": 0.75,
    "sft/score": 0.5, "dpo/score": 0.25, "ppo/score": 0.125, "sft/exact_match": 0.1, "dpo/exact_match": 0.2,
    "ppo/exact_match": 0.3,
}  # fmt: skip


def of_preset(preset: str) -> dict[str, object]:
    return PARAMETERS | {"model.preset": preset}


@pytest.mark.parametrize(("size", "most"), [("tiny", 500_000), ("default", 13_000_000)])
@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_but_the_preset_has_to_change(preset: str, size: str, most: int) -> None:
    params = make_params(overrides(size) | {"model.preset": preset})
    config = config_of_shape(params.model, params.tokenizer.vocab_size)
    with torch.device("meta"):
        built = sum(p.numel() for p in build(config).parameters())
    assert config.n_parameters == built < most
    longest = params.preferences.prompt_tokens + params.preferences.max_new_tokens
    assert max(longest, params.sft.seq_len, params.pretrain.seq_len) <= config.max_positions


def leave_a_run(root: Path, preset: str, n_parameters: int | None = None) -> None:
    """What figures are read from, with scores of which the means are known."""
    (root / "metrics").mkdir(parents=True)
    (root / "params.yaml").write_text(yaml.safe_dump(make_tree(of_preset(preset)), sort_keys=False))
    config = config_of_shape(make_params(of_preset(preset)).model, 500)
    count = config.n_parameters if n_parameters is None else n_parameters
    write_json(root / "metrics" / "tokenizer.json", {"vocab_size": 500})
    write_json(root / "metrics" / "pretrain.json", {"bits_per_byte": 2.25, "n_parameters": count})
    write_json(root / "metrics" / "sft.json", {"validation_loss": 1.5})
    matches = {"base": 0.0, "sft": 0.5, "dpo": 0.25, "ppo": 0.75}
    write_json(root / "metrics" / "evaluate.json", {model: {"exact_match": m} for model, m in matches.items()})
    scored = [("base", 0.0), ("sft", 1.0), ("sft", 0.5), ("dpo", 0.0), ("ppo", 1.0), ("ppo", 0.0), ("dpo", 0.5)]
    (root / "evaluation").mkdir()
    columns = {"model": [model for model, _ in scored], "score": [score for _, score in scored]}
    records.write(root / "evaluation" / "answers.parquet", columns)


def test_figures_are_those_of_the_run(tmp_path: Path) -> None:
    leave_a_run(tmp_path, "mixtral")
    found = figures(tmp_path, "mixtral")
    assert (found["bits_per_byte"], found["validation_loss"]) == (2.25, 1.5)
    assert [found[f"{model}/score"] for model in ("sft", "dpo", "ppo")] == [0.75, 0.25, 0.5]
    assert [found[f"{model}/exact_match"] for model in ("sft", "dpo", "ppo")] == [0.5, 0.25, 0.75]
    # Two layers, of whose 8 experts a token leaves out 6: three matrices of 48 × 48 each.
    assert found["n_parameters"] - found["n_active_parameters"] == 2 * 6 * 3 * 48 * 48


def test_figures_of_another_preset_or_size_are_refused(tmp_path: Path) -> None:
    leave_a_run(tmp_path / "other", "gpt2")
    with pytest.raises(ValueError, match="left a gpt2 of"):
        figures(tmp_path / "other", "gpt")
    leave_a_run(tmp_path / "size", "gpt2", n_parameters=7)
    with pytest.raises(ValueError, match="left a gpt2 of 7 parameters, not a gpt2 of"):
        figures(tmp_path / "size", "gpt2")


def test_the_table_has_a_row_for_each_and_the_last_lines_of_those_that_failed() -> None:
    bad = Result(preset="phi", seconds=9.6, failure="failed with exit code 1", lines=("one", "two"))
    text = table([Result(preset="gpt2", seconds=61.2, figures=GOOD), bad])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert rows[2] == (
        "| `gpt2` | 12,345 | 2,345 | 2.500 | 0.750 | 0.500 | 0.250 | 0.125 | 0.100 | 0.200 | 0.300 | 61 |"
    )
    assert rows[0].split(" | ")[5:8] == ["score SFT", "score DPO", "score PPO"]
    assert rows[3].startswith("| `phi` | **failed with exit code 1** |")
    assert rows[3].endswith("| 10 |")
    assert text.endswith("Last lines of `phi`:\n\n    one\n    two")
    for size, said in (
        ("tiny", "The models are tiny: width 48, 2 layers"),
        ("default", "of the default size: width 256"),
    ):
        whole = page([bad], "A machine", size)
        assert table([bad]) in whole
        assert said in whole


def test_last_lines_are_the_last_that_say_something() -> None:
    assert last_lines("\n".join(f"{i}\n" for i in range(100))) == tuple(str(i) for i in range(85, 100))
    assert last_lines("") == ()


def test_presets_are_named_in_the_order_of_the_table() -> None:
    assert presets_named("phi,gpt,x_llama") == ["x_llama", "gpt", "phi"]
    for text in ("gpt5,phi", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="known: x_llama, pygpt"):
            presets_named(text)


def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str]) -> list[tuple[str, ...]]:
    """Commands are noted and not run; presets in `wrong` fail. A preset that runs leaves what a run leaves."""
    calls: list[tuple[str, ...]] = []

    def run(workspace: Workspace, arguments: Sequence[str], log: Path, *, limit_s: float) -> tuple[str, float]:
        calls.append(tuple(arguments[1:]))
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("first\nlast\n")
        preset = arguments[-1].partition("=")[2]
        if preset and preset not in wrong:
            for name in ("metrics", "evaluation"):
                shutil.rmtree(workspace.root / name, ignore_errors=True)
            leave_a_run(workspace.root, preset)
        return wrong.get(preset, ""), 2.0

    def create(root: Path) -> Workspace:
        root.mkdir(parents=True)
        return Workspace(root)

    monkeypatch.setattr(zoo, "run_axon", run)
    monkeypatch.setattr(Workspace, "create", staticmethod(create))
    monkeypatch.setattr(zoo, "version", lambda _size: "version")
    return calls


def call(monkeypatch: pytest.MonkeyPatch, work: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["zoo", "--work", str(work), *arguments])
    return zoo.main()


@pytest.fixture(autouse=True)
def _signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.signal, "signal", lambda *_: None)  # handlers of this process stay as they are


def test_a_preset_that_fails_leaves_the_others_their_turn_and_is_run_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"gpt2": "failed with exit code 1"}
    calls = pretend(tmp_path, monkeypatch, wrong)
    out = tmp_path / "zoo.md"
    assert call(monkeypatch, tmp_path, "--only", "gpt,gpt2,phi", "--out", str(out)) == 1
    presets = [("--set", f"model.preset={name}") for name in ("gpt", "gpt2", "phi")]
    assert calls == [("tokenizer",), *presets]
    said = capsys.readouterr().out
    assert "failed: gpt2" in said
    assert "Last lines of `gpt2`:\n\n    first\n    last" in said
    assert out.read_text().count("**failed with exit code 1**") == 1
    assert sorted(kept(tmp_path / "version")) == ["gpt", "phi"]

    calls.clear()
    wrong.clear()
    assert call(monkeypatch, tmp_path, "--only", "gpt,gpt2,phi", "--out", str(out)) == 0
    assert calls == [("tokenizer",), presets[1]]
    assert "failed" not in out.read_text()
    calls.clear()
    assert call(monkeypatch, tmp_path, "--only", "gpt,gpt2,phi") == 0
    assert calls == []


def test_presets_that_time_is_too_short_for_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = pretend(tmp_path, monkeypatch, {})
    assert call(monkeypatch, tmp_path, "--only", "gpt,phi", "--minutes", "0") == 3
    assert calls == [("tokenizer",)]
    assert "not run, time was over: gpt, phi" in capsys.readouterr().out
    assert not (tmp_path / "zoo.md").exists()


@pytest.mark.parametrize(("arguments", "changed"), [((), PARAMETERS), (("--size", "default"), {})])
def test_the_size_is_that_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], changed: dict[str, object]
) -> None:
    pretend(tmp_path, monkeypatch, {})
    call(monkeypatch, tmp_path, "--only", "gpt", "--minutes", "0", *arguments)
    written = (tmp_path / "version" / "checkout" / "params.yaml").read_text()
    assert yaml.safe_load(written) == make_tree(changed)


def test_a_run_that_leaves_no_figures_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, {"gpt": ""})  # ends well, and leaves nothing
    assert call(monkeypatch, tmp_path, "--only", "gpt") == 1
    assert kept(tmp_path / "version") == {}


@pytest.mark.parametrize(
    ("code", "limit_s", "failure"),
    [
        ("print('said')", 60.0, ""),
        ("print('said'); raise SystemExit(3)", 60.0, "failed with exit code 3"),
        ("import time; print('said', flush=True); time.sleep(600)", 1.0, "stopped after 1 s"),
    ],
)
def test_a_command_is_logged_and_stopped_at_its_limit(tmp_path: Path, code: str, limit_s: float, failure: str) -> None:
    """With a program in the place of `flows.cli`."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("")
    (tmp_path / "flows" / "cli.py").write_text(code)
    found, _ = run_axon(Workspace(tmp_path), ["run"], tmp_path / "logs" / "x.log", limit_s=limit_s)
    assert found == failure
    assert (tmp_path / "logs" / "x.log").read_text() == "said\n"


def test_versions_differ_with_code_and_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    one = zoo.version("tiny")
    assert zoo.version("tiny") == one != zoo.version("default")
    with monkeypatch.context() as patch:
        patch.setattr(zoo, "PARAMETERS", PARAMETERS | {"seed": 8})
        assert zoo.version("tiny") != one
    assert zoo.version("tiny") == one
    monkeypatch.setattr(zoo, "code_digest", lambda: "other")
    assert zoo.version("tiny") != one
