"""The parts of a sweep that need no engine: what may be asked for, what is sampled, which stages run, who is best."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from tasks import yaml_text
from tasks.errors import UserError
from tasks.runtime import stages
from tasks.sweeping import experiment, plan, space, trial, tuning
from tasks.sweeping.plan import Goal, Plan
from tasks.sweeping.tuning import Trial
from tests.helpers import REPOSITORY, make_params, make_tree

GRAPH = stages.read_stages(REPOSITORY)
RATE = "pretrain.learning_rate=loguniform(1e-4, 1e-2)"
MODEL_AND_RATE = [space.parse("pretrain.batch_size=choice(4, 8)"), space.parse(RATE)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RATE, ("loguniform", (1e-4, 1e-2))),
        (" dpo.beta = uniform( 0.1 ,0.5 ) ", ("uniform", (0.1, 0.5))),
        ("pretrain.batch_size=choice(4,8,16)", ("choice", (4, 8, 16))),
        ("data.maths.kinds=choice([addition], [latex, fraction])", ("choice", (["addition"], ["latex", "fraction"]))),
        ("precision=choice(bfloat16, float32)", ("choice", ("bfloat16", "float32"))),
        ("ppo.whiten_advantages=choice(true, false)", ("choice", (True, False))),
        ("model.n_layers=randint(1, 4)", ("randint", (1, 4))),
    ],
)
def test_a_range_is_read_as_its_values(text, expected):
    swept = space.parse(text)
    assert (swept.distribution, swept.arguments) == expected
    assert space.parse(str(swept)) == swept
    space.check([swept], make_tree())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pretrain.learning_rate", "must be KEY=DISTRIBUTION(…), for example"),
        ("pretrain.learning_rate=0.1", "must be KEY=DISTRIBUTION(…)"),
        ("pretrain.learning_rate=loguniforn(1, 2)", "did you mean loguniform?"),
        ("pretrain.learning_rate=uniform(1)", "uniform takes two numbers: LOW, HIGH"),
        ("pretrain.learning_rate=uniform(1, 2, 3)", "uniform takes two numbers"),
        ("pretrain.learning_rate=uniform(a, b)", "uniform takes two numbers"),
        ("pretrain.learning_rate=uniform(2, 1)", "2 is not below 1"),
        ("pretrain.learning_rate=uniform(1, .inf)", "uniform takes two numbers"),
        ("pretrain.learning_rate=loguniform(0, 1)", "needs numbers above 0, but the first is 0"),
        ("pretrain.batch_size=randint(1.5, 3)", "randint takes two whole numbers"),
        ("pretrain.batch_size=choice()", "needs at least one value"),
        ("pretrain.batch_size=choice([)", "must be YAML values"),
    ],
)
def test_a_range_that_cannot_be_read_is_one_sentence(text, expected):
    with pytest.raises(UserError) as caught:
        space.parse(text)
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pretrain.learning_rat=uniform(1, 2)", "did you mean pretrain.learning_rate?"),
        ("pretrain.lr=uniform(1, 2)", "not a parameter of params.yaml; known: pretrain.init_from, pretrain.n_steps"),
        ("optimizer=choice(1)", "optimizer is not a parameter of params.yaml; see the keys there"),
        (
            "pretrain=choice(1)",
            "pretrain is a section of params.yaml; name one of pretrain.init_from, pretrain.n_steps",
        ),
        ("pretrain.batch_size=uniform(2, 8)", "takes whole numbers; use randint(2, 9)"),
        ("pretrain.batch_size=choice(8, 0)", "pretrain.batch_size=0: input should be greater than or equal to 1"),
        ("pretrain.batch_size=choice(8.5)", "pretrain.batch_size=8.5: input should be a valid integer"),
        ("pretrain.beta2=uniform(0.5, 1.5)", "pretrain.beta2=1.5: input should be less than 1"),
        ("pretrain.learning_rate=uniform(0, 1)", "pretrain.learning_rate=0.0: input should be greater than 0"),
        ("precision=choice(bfloat16, float64)", "precision='float64'"),
    ],
)
def test_what_the_schema_refuses_is_refused_before_anything_starts(text, expected):
    with pytest.raises(UserError) as caught:
        space.check([space.parse(text)], make_tree())
    assert expected in str(caught.value)
    assert "nothing was started" in str(caught.value)


def test_all_mistakes_of_a_call_are_in_one_message():
    asked = ["pretrain.batch_size=choice(0)", "pretain.n_steps=choice(1)", RATE, RATE]
    with pytest.raises(UserError) as caught:
        space.check([space.parse(text) for text in asked], make_tree())
    assert str(caught.value).startswith("--over: 3 mistake(s)")
    assert "pretrain.learning_rate is given twice" in str(caught.value)


def test_a_rule_between_two_keys_is_held_against_what_is_sampled():
    tree = make_tree({"pretrain.batch_size": 8})
    both = [space.parse("pretrain.batch_size=choice(6)"), space.parse("pretrain.accumulation=choice(2, 3)")]
    space.check(both, tree)  # 3 does not divide 8, but the batch is 6 in every trial
    assert [p.pretrain.accumulation for p in space.check_trials(space.sample(both, 2, seed=0), tree)] in (
        [2, 3],
        [3, 2],
    )
    with pytest.raises(UserError, match=r"trial 1 .*pretrain.accumulation=3 must divide pretrain.batch_size=8"):
        space.check_trials([{"pretrain.accumulation": 3}], tree)


def test_a_seed_gives_the_same_trials_in_every_process_and_more_trials_begin_with_them():
    code = (
        "import json, sys\nfrom tasks.sweeping import space\n"
        f"both = [space.parse('pretrain.batch_size=choice(4, 8)'), space.parse({RATE!r})]\n"
        "print(json.dumps(space.sample(both, 6, seed=3)))"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    six = json.loads(told.stdout)
    assert space.sample(MODEL_AND_RATE, 6, seed=3) == six
    assert space.sample(MODEL_AND_RATE, 4, seed=3) == six[:4]
    assert space.sample(MODEL_AND_RATE, 6, seed=4) != six
    assert len({json.dumps(one) for one in six}) == 6


def test_samples_are_what_the_distribution_says():
    drawn = space.sample([space.parse(RATE)], 400, seed=0)
    rates = [one["pretrain.learning_rate"] for one in drawn]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    below = sum(rate < 1e-3 for rate in rates)  # the geometric mean of the ends
    assert abs(below - 200) < 4 * math.sqrt(400 * 0.25), "half of them, four standard deviations wide"
    assert all(float(f"{rate:.4g}") == rate for rate in rates), "short enough to be typed again"
    whole = {one["model.n_layers"] for one in space.sample([space.parse("model.n_layers=randint(2, 5)")], 9, seed=0)}
    assert whole == {2, 3, 4}


def test_few_values_give_each_of_them_once():
    drawn = space.sample([space.parse("pretrain.batch_size=choice(4, 8, 16)")], 20, seed=1)
    assert sorted(one["pretrain.batch_size"] for one in drawn) == [4, 8, 16]


@pytest.mark.parametrize(
    ("stage", "keys", "expected"),
    [
        ("pretrain", ["pretrain.learning_rate"], ["pretrain"]),
        ("sft", ["sft.learning_rate"], ["sft"]),
        ("sft", ["pretrain.learning_rate"], ["pretrain", "sft"]),
        ("sft", ["model.d_model", "sft.batch_size"], ["pretrain", "sft"]),
        ("pretrain", ["tokenizer.vocab_size"], ["tokenizer", "pretrain"]),
        ("dpo", ["preferences.temperature"], ["preferences", "dpo"]),
        ("dpo", ["sft.n_steps"], ["sft", "preferences", "dpo"]),
        ("reward_model", ["seed"], ["data", "tokenizer", "pretrain", "sft", "preferences", "reward_model"]),
    ],
)
def test_a_trial_runs_what_its_parameters_touch_and_no_more(stage, keys, expected):
    swept = [space.Swept(key=key, distribution="choice", arguments=(1,)) for key in keys]
    assert plan.steps(GRAPH, stage, swept) == expected


def test_a_parameter_that_changes_nothing_in_a_trial_is_refused():
    swept = [space.Swept(key="dpo.beta", distribution="choice", arguments=(1,))]
    with pytest.raises(UserError, match=r"dpo.beta changes neither pretrain nor a stage before it"):
        plan.steps(GRAPH, "pretrain", swept)


def test_a_trial_reads_what_its_stages_read_and_do_not_write():
    assert plan.inputs(GRAPH, ["pretrain"]) == ["sources/models", "tokenizer", "tokens"]
    both = plan.inputs(GRAPH, ["pretrain", "sft"])
    assert "models/pretrain" not in both
    assert "tokens" in both
    assert plan.inputs(GRAPH, ["sft"]) == ["models/pretrain", "tokenizer", "tokens"]
    assert plan.inputs(GRAPH, ["data", "tokenizer"]) == ["constraints.txt", "sources"], "sources/tokenizer is in there"


def test_every_stage_that_trains_has_a_metric():
    trained = {name for name, stage in GRAPH.items() if any(out.startswith("models/") for out in stage.outs)}
    assert set(plan.METRICS) == trained


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("pretrian", None, None), "pretrian is not a stage; did you mean pretrain?"),
        (("evaluate", None, None), "evaluate trains nothing; stages that can be swept: pretrain"),
        (("pretrain", "validation_bit_per_byte", None), "did you mean validation_bits_per_byte?"),
        (("pretrain", None, "up"), "--mode up: allowed are min and max."),
    ],
)
def test_a_goal_that_is_none_is_refused(arguments, expected):
    stage, metric, mode = arguments
    with pytest.raises(UserError) as caught:
        plan.goal(stage, GRAPH, metric, mode)
    assert expected in str(caught.value)


def test_the_best_is_the_best_of_those_that_ran_to_their_end():
    def one(number: int, state: str, value: float | None) -> Trial:
        return Trial(number=number, values={}, state=state, value=value)

    found = [
        one(1, tuning.FINISHED, 2.0),
        one(2, tuning.STOPPED, 0.5),  # better so far, but nobody knows where it would have ended
        one(3, tuning.FINISHED, 0.0),
        one(4, tuning.FAILED, None),
        one(5, tuning.FINISHED, math.nan),
        one(6, tuning.WAITING, None),
    ]
    lower, higher = (Goal(stage="pretrain", metric="m", mode=mode) for mode in ("min", "max"))
    assert tuning.best(found, lower) is found[2]
    assert tuning.best(found, higher) is found[0]
    assert [t.number for t in tuning.ranked(found, lower)] == [3, 1, 5, 2, 4, 6]
    assert [t.number for t in tuning.ranked(found, higher)] == [1, 3, 5, 2, 4, 6]
    assert tuning.best(found[3:], lower) is None


VALUES = {
    "pretrain.learning_rate": 3e-05,
    "pretrain.batch_size": 16,
    "dpo.beta": 0.25,
    "ppo.whiten_advantages": False,
    "precision": "float32",
    "preferences.judge": "sources/it's a file, (1).jsonl",
    "data.maths.kinds": ["addition", "latex"],
    "data.files": [{"path": "sources/a b.jsonl", "license": "MIT"}],
}


def test_dvc_reads_the_chosen_values_as_they_are(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_bytes((REPOSITORY / "params.yaml").read_bytes())
    given = experiment.arguments(VALUES)
    assert given[:2] == ["exp", "run"]
    assert set(given[2::2]) == {"-S"}
    apply_overrides(path, given[3::2])
    assert yaml_text.parse(path.read_text()) == make_tree(VALUES)


def test_the_command_is_for_a_shell():
    told = experiment.command({"pretrain.learning_rate": 0.001, "preferences.judge": "a b"})
    assert told == """dvc exp run -S pretrain.learning_rate=0.001 -S 'preferences.judge='"'"'a b'"'"''"""


def test_without_a_commit_there_is_no_experiment(tmp_path: Path):
    with pytest.raises(UserError, match="needs a git repository with a commit"):
        experiment.check_repository(tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    with pytest.raises(UserError, match="needs a git repository with a commit"):
        experiment.check_repository(tmp_path)


def small_plan(root: Path) -> Plan:
    (root / "tokens").mkdir(parents=True)
    (root / "tokens" / "text").write_text("tokens of the checkout")
    (root / "metrics").mkdir()
    (root / "metrics" / "dpo_tokens.json").write_text("{}")
    return Plan(
        root=str(root),
        folder=str(root / ".axon" / "sweeps" / "one"),
        goal=plan.goal("sft_continued", GRAPH, None, None),
        steps=("sft_continued",),
        inputs=("metrics/dpo_tokens.json", "tokens"),
        keys=("seed",),
        trials=({"seed": 3},),
        params=(make_params({"seed": 3}),),
    )


def test_a_trial_s_folder_is_its_own_and_only_its_record_stays(tmp_path: Path):
    made = small_plan(tmp_path / "checkout")
    trial.prepare(made, 1)
    folder = made.folder_of(1)
    assert (folder / "tokens" / "text").read_text() == "tokens of the checkout"
    assert yaml.safe_load((folder / "params.yaml").read_text())["seed"] == 3
    (folder / "models" / "sft_continued").mkdir(parents=True)
    (folder / "metrics" / "sft_continued.json").write_text("{}")
    trial.tidy(folder)
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert left == ["metrics", "metrics/sft_continued.json", "params.yaml"]
    assert (tmp_path / "checkout" / "tokens" / "text").is_file(), "a link goes, not what it leads to"
    assert (tmp_path / "checkout" / "metrics" / "dpo_tokens.json").is_file()


def test_too_many_trials_at_once_are_refused():
    each = make_params({"threads": 2})
    made = Plan(
        root="", folder="", goal=plan.goal("pretrain", GRAPH, None, None), steps=("pretrain",), inputs=(), keys=(),
        trials=({},), params=(each,),
    )  # fmt: skip
    tuning.check_room(made, 2, {"CPU": 4})
    with pytest.raises(UserError, match=r"3 trial\(s\) at once, each with threads=2 .* need 6 CPUs, and there are 4"):
        tuning.check_room(made, 3, {"CPU": 4})
