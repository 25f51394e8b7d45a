"""The short form of `make chaos`: kills on a seed that is printed, one of them of what no other test kills."""

import os
import random
import secrets
from pathlib import Path

import pytest

from tests.chaos import campaigns, plan
from tests.chaos.leg import Leg
from tests.chaos.plan import HARD, Kill
from tests.conftest import FinishedRun

# Late and short, so that the test is short; `make chaos` takes every stage.
STAGES = ("dpo", "sft_continued")


def kills_of(seed: int) -> list[Kill]:
    """Ray's control service or MLflow's server in one stage, anything but `axon` in the other."""
    choice = random.Random(seed)
    pair = [choice.choice(("gcs", "mlflow")), choice.choice([kind for kind in HARD if kind != "axon"])]
    choice.shuffle(pair)
    return [plan.draw(seed, 0, stage, kind) for stage, kind in zip(STAGES, pair, strict=True)]


@pytest.mark.engines
def test_random_kills_change_nothing(finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    seed = int(os.environ.get("AXON_CHAOS_SEED") or secrets.randbelow(10**6))
    kills = kills_of(seed)
    seconds = campaigns.seconds_by_stage(finished.workspace)
    with campaigns.setting_behind(finished.workspace, tmp_path, seconds) as setting:
        leg = Leg(setting, kills, 1)
        outcomes = leg.carry_out()
        with capsys.disabled():
            print(f"\nAXON_CHAOS_SEED={seed}", *(campaigns.in_words(outcome) for outcome in outcomes), sep="\n")
        assert leg.problems == [], (setting.workspace.root / "axon.log").read_text()[-4000:]
        assert len(outcomes) + len(leg.missed) == len(kills)
        assert outcomes, "at least one process was killed"
