"""A plan is repeatable, meets every kind in every stage, and its page counts what is there."""

from tests.chaos import leg, plan, report
from tests.chaos.leg import Outcome
from tests.chaos.plan import HARD, KINDS, ROUND

STAGES = ["data", "tokenizer", "pretrain", "sft", "preferences", "reward_model", "ppo", "dpo", "report"]


def test_a_round_of_campaigns_meets_each_kind_once_in_each_stage_and_seeds_differ():
    campaigns = [plan.campaign(5, number, STAGES) for number in range(1, ROUND + 1)]
    kills = [kill for kills in campaigns for kill in kills]
    assert sorted((k.stage, k.kind) for k in kills) == sorted((s, k) for s in STAGES for k in KINDS)
    assert campaigns[0] == plan.campaign(5, 1, STAGES)
    assert [k.kind for k in campaigns[0]] != [k.kind for k in plan.campaign(6, 1, STAGES)]
    assert len({k.moment for k in kills}) == len(kills)
    again = plan.campaign(5, 1 + ROUND, STAGES)
    assert [(k.stage, k.kind) for k in again] == [(k.stage, k.kind) for k in campaigns[0]]
    assert all(ours.moment != theirs.moment for ours, theirs in zip(again, campaigns[0], strict=True))
    for number in range(1, ROUND + 1):
        kinds = [k.kind for k in plan.campaign(5, number, STAGES)]
        assert {kinds.count(kind) for kind in HARD} <= {1, 2}


def test_a_leg_has_at_most_four_stages_and_nothing_comes_after_axon_in_it():
    for number in range(1, ROUND + 1):
        kills = plan.campaign(5, number, STAGES)
        legs = plan.legs(kills)
        assert [kill for of_leg in legs for kill in of_leg] == kills
        for of_leg in legs:
            assert len({kill.stage for kill in of_leg}) <= 4
            assert "axon" not in [kill.kind for kill in of_leg[:-1]]


def test_a_lock_without_a_stage_is_that_text_without_its_lines():
    lock = (
        "schema: '2.0'\nstages:\n  data:\n    cmd: a\n    outs:\n    - path: x\n  sft:\n    cmd: b\n  sft_continued:\n"
    )
    assert leg.without(lock, ["data"]) == "schema: '2.0'\nstages:\n  sft:\n    cmd: b\n  sft_continued:\n"
    assert leg.without(lock, ["sft"]).endswith("    - path: x\n  sft_continued:\n")
    assert leg.without(lock, []) == lock


def outcome(stage: str, kind: str, **values) -> Outcome:
    return Outcome(plan.draw(5, 2, stage, kind), at_s=1.25, **values)


def test_the_page_counts_kills_and_names_what_was_wrong():
    outcomes = [
        outcome("data", "gcs", leg=1, recovered_s=9.4, command="gcs_server (12)"),
        outcome("sft", "gcs", leg=2, recovered_s=12.0),
        outcome("sft", "axon", leg=3, code=-9, recovered_s=20.0, problems=["runs on: raylet"]),
    ]
    tree = {
        "seed": 5,
        "date": "today",
        "machine": "one",
        "undisturbed_s": 130.2,
        "legs": 3,
        "seconds": {"data": 1.0, "sft": 1.0},
    }
    page = report.page(tree | {"closings": {"1": ["late"]}}, outcomes)
    assert "3 kills, 1 in legs with a problem" in page
    assert "of 14 kills, each kind in each stage, 11 are still to do" in page
    assert "| Ray's control service (`gcs`) | 2 | 2 | 0 | 11, 12 |" in page
    assert "| the process of `axon run` (`axon`) | 1 | 0 | 1 | 20, 20 |" in page
    assert "| sft | 1 | 0 | 0 | 0 | 1 | 0 | 0 | 2 |" in page
    assert "- leg 3: runs on: raylet" in page
    assert "- the whole run at the end: late" in page
    assert "| 2 | 1 | data | gcs | 1.2 | 9 |  | `gcs_server (12)` |" in page
    assert Outcome.of_json(outcomes[2].as_json()) == outcomes[2]
