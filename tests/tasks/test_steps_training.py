"""The training steps one after another at a tiny size: what they leave, twice the same, and killed and resumed."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from axon_models import checkpoint
from tasks.data import records
from tasks.errors import UserError
from tests.helpers import make_context
from tests.tasks.tiny_root import OVERRIDES, digests, make_root

STAGES = ("pretrain", "sft", "preferences", "reward_model", "dpo", "sft_continued", "ppo")


class Killed(BaseException):
    pass


def _run(root: Path, stage: str, *, overrides=None, report=None, every_s: float = 3600.0, name: str = "") -> None:
    context = make_context(
        root,
        OVERRIDES | (overrides or {}),
        checkpoints=root / ".axon" / "checkpoints" / f"{stage}{name}",
        checkpoint_every_s=every_s,
        **({"report": report} if report else {}),
    )
    importlib.import_module(f"tasks.steps.{stage}").run(context)


@pytest.fixture(scope="module")
def trained(_easy_judge, tmp_path_factory) -> Path:
    """All stages, once. An untrained model never gets a sum right, so the judge here likes even numbers of letters."""
    root = make_root(tmp_path_factory.mktemp("trained"))
    for stage in STAGES:
        _run(root, stage)
    return root


@pytest.fixture(scope="module", autouse=True)
def _easy_judge():
    def judge(task, prompt, text, target, *, ended):
        return SimpleNamespace(score=float(len(text) % 2 == 0) + ended, correct=ended, well_formed=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.steps.preferences.judge", judge)
        yield


def _metrics(root: Path, stage: str) -> dict:
    return json.loads((root / "metrics" / f"{stage}.json").read_text())


@pytest.mark.parametrize("stage", [s for s in STAGES if s != "preferences"])
def test_a_training_stage_leaves_a_model_metrics_and_a_curve(trained, stage):
    model = checkpoint.load(trained / "models" / stage)
    assert model.config.vocab_size == 262
    assert (trained / "models" / stage / "tokenizer.json").is_file()
    assert _metrics(trained, stage)["tokens"] > 0
    rows = list(csv.DictReader((trained / "metrics" / "curves" / f"{stage}.csv").open()))
    assert {"step", "loss"} <= set(rows[0])


def test_the_keys_that_other_stages_and_the_issue_ask_for(trained):
    assert {"bits_per_byte", "n_parameters", "tokens", "loss"} <= set(_metrics(trained, "pretrain"))
    assert {"pairwise_accuracy", "n_pairs", "reward_shift"} <= set(_metrics(trained, "reward_model"))
    assert {"tokens", "n_steps", "reward_accuracy"} <= set(_metrics(trained, "dpo"))
    assert {"reward_first", "reward_last", "kl_last", "clip_fraction_last"} <= set(_metrics(trained, "ppo"))


def test_comparisons_hold_every_answer_with_its_rank(trained):
    table = records.read(trained / "preferences" / "comparisons.parquet")
    assert set(table["split"]) == {"train", "validation"}
    assert set(table["judge"]) == {"programmatic"}
    for tokens, answers, scores, ranks in zip(
        table["answer_tokens"], table["answers"], table["scores"], table["ranks"], strict=True
    ):
        assert len(tokens) == len(answers) == len(scores) == len(ranks) == 4
        assert [rank == 1 for rank in ranks] == [score == max(scores) for score in scores]
    both = list(zip(table["prompt"], table["split"], strict=True))
    assert len({prompt for prompt, _ in both}) == len(set(both)), "a prompt is in both splits"


def test_the_reward_shift_is_in_config_json_and_demonstrations_score_zero(trained):
    from tasks.alignment.rewards import read, score_sequences
    from tasks.training.tokens import demonstrations

    model, shift = read(trained / "models" / "reward_model")
    scored = score_sequences(model, [e.tokens for e in demonstrations(trained, "train")])
    assert sum(scored) / len(scored) == pytest.approx(shift, abs=1e-5)


def test_the_control_trains_on_as_many_tokens_as_dpo(trained):
    dpo, control = _metrics(trained, "dpo"), _metrics(trained, "sft_continued")
    assert dpo["tokens"] <= control["tokens"] <= 1.5 * dpo["tokens"]


@pytest.mark.parametrize("stage", ["pretrain", "preferences", "ppo"])
def test_a_second_run_leaves_the_same_bytes(trained, tmp_path, stage):
    root = tmp_path / "again"
    shutil.copytree(trained, root)
    before = digests(root, "models", "metrics", "preferences")
    _run(root, stage, name="again")
    assert digests(root, "models", "metrics", "preferences") == before


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward_model", "dpo", "ppo"])
def test_activation_checkpointing_changes_no_byte_of_a_stage(trained, tmp_path, stage):
    root = tmp_path / "again"
    shutil.copytree(trained, root)
    before = digests(root, "models", "metrics")
    shutil.rmtree(root / "models" / stage)
    _run(root, stage, overrides={"runtime.activation_checkpointing": True}, name="again")
    assert digests(root, "models", "metrics") == before


@pytest.mark.parametrize(("stage", "killed_at"), [("sft", 3), ("reward_model", 2), ("dpo", 1), ("ppo", 1), ("ppo", 2)])
def test_a_killed_stage_resumes_to_the_same_bytes(trained, tmp_path, stage, killed_at):
    root = tmp_path / "cut"
    shutil.copytree(trained, root)
    before = digests(root, "models", "metrics")
    shutil.rmtree(root / "models" / stage)

    def kill(step, n_steps, values):
        if step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        _run(root, stage, report=kill, every_s=0.0, name="cut")
    _run(root, stage, name="cut")
    assert digests(root, "models", "metrics") == before


@pytest.mark.parametrize("killed_after", [1, 2, 3, 6])
def test_ppo_killed_between_any_two_updates_resumes_to_the_same_bytes(trained, tmp_path, monkeypatch, killed_after):
    from tasks.training.checkpoint import Checkpoints

    root = tmp_path / "cut"
    shutil.copytree(trained, root)
    before = digests(root, "models", "metrics")
    save, n_saved = Checkpoints.save, []

    def save_and_die(self, *args):
        save(self, *args)
        n_saved.append(1)
        if len(n_saved) == killed_after:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    with pytest.raises(Killed):
        _run(root, "ppo", every_s=0.0, name="cut")
    monkeypatch.undo()
    _run(root, "ppo", name="cut")
    assert digests(root, "models", "metrics") == before


def test_the_first_minibatch_of_ppo_has_ratio_one(trained):
    from tasks.steps.ppo import Trainer

    trainer = Trainer(make_context(trained, OVERRIDES, checkpoints=trained / ".axon" / "ratio"))
    rollouts = trainer.sample()
    figures = trainer.update(rollouts)
    assert figures["clip_fraction"] == 0.0
    assert rollouts.logprobs[rollouts.mask].max() < 0
    torch.testing.assert_close(rollouts.logprobs, rollouts.ref_logprobs)  # the policy starts as the SFT model


def test_ppo_ptx_changes_the_policy(trained, tmp_path):
    root = tmp_path / "ptx"
    shutil.copytree(trained, root)
    before = digests(root, "models/ppo")
    _run(root, "ppo", overrides={"ppo.pretraining_coef": 1.0}, name="ptx")
    assert digests(root, "models/ppo")["models/ppo/model.safetensors"] != before["models/ppo/model.safetensors"]


def test_human_rankings_take_the_place_of_the_judge(trained, tmp_path):
    root = tmp_path / "human"
    shutil.copytree(trained, root)
    rows = [
        {"prompt": f"say {i}", "answers": ["yes", "no", "maybe"][: 2 + i % 2], "ranks": [1, 2, 2][: 2 + i % 2]}
        for i in range(40)
    ]
    (root / "rankings.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    overrides = {"preferences.judge": "rankings.jsonl"}
    _run(root, "preferences", overrides=overrides)
    assert _metrics(root, "preferences")["judge"] == "human"
    _run(root, "reward_model", overrides=overrides, name="human")
    assert _metrics(root, "reward_model")["n_pairs"] > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"prompt": "a", "answers": ["b"], "ranks": [1]}', "line 2: 1 answers; 2 to 9"),
        ('{"prompt": "a", "answers": ["b", "c"], "ranks": [1]}', "line 2: ranks must be a list as long"),
        ('{"prompt": "a", "answers": ["b", "c"], "ranks": [0, 1]}', "line 2: ranks must be whole numbers from 1"),
        ('{"prompt": "a"}', "line 2: must be an object with"),
    ],
)
def test_a_bad_line_of_human_rankings_is_named(trained, tmp_path, line, message):
    root = tmp_path / "human"
    shutil.copytree(trained, root)
    good = json.dumps({"prompt": "p", "answers": ["a", "b"], "ranks": [1, 2]})
    (root / "rankings.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=message):
        _run(root, "preferences", overrides={"preferences.judge": "rankings.jsonl"})


def test_a_missing_input_says_how_to_make_it(tmp_path):
    root = make_root(tmp_path)
    with pytest.raises(UserError, match="models/pretrain is missing; make it with: axon run pretrain"):
        _run(root, "sft")


def test_an_altered_model_is_not_sampled_from(trained):
    from tasks.alignment.answering import answer_shard
    from tasks.alignment.sampling import digest_of_model, shard_item

    item = shard_item(
        trained / "models" / "sft",
        digest_of_model(trained / "models" / "pretrain"),
        [[3, 4]],
        seed_parts=(1,),
        prompt_tokens=16,
        max_new_tokens=4,
        temperature=1.0,
        top_p=1.0,
    )
    with pytest.raises(UserError, match="it changed"):
        answer_shard(item)


def test_a_shard_depends_on_its_item_alone(trained):
    from tasks.alignment.answering import answer_shard
    from tasks.alignment.sampling import digest_of_model, shard_item

    directory = trained / "models" / "sft"
    item = shard_item(
        directory,
        digest_of_model(directory),
        [[3, 20, 21, 5, 4]] * 3,
        seed_parts=(1, b"record", 0),
        prompt_tokens=16,
        max_new_tokens=8,
        temperature=1.0,
        top_p=0.9,
    )
    assert answer_shard(item) == answer_shard(json.loads(json.dumps(item)))
