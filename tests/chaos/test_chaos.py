"""The short form of `make chaos`: two kills, on a seed that is printed, of what no other test kills."""

import os
import random
import secrets
from pathlib import Path

import pytest

from tests.chaos import campaigns, plan
from tests.chaos.leg import Leg
from tests.chaos.plan import BESIDE, Kill
from tests.conftest import FinishedRun

# Late, so that the test is short; `make chaos` takes every stage.
STAGE = "sft_continued"


def kills_of(seed: int) -> list[Kill]:
    """Ray's control service, and beside it one of the servers."""
    return [plan.draw(seed, 0, STAGE, kind) for kind in ("gcs", random.Random(seed).choice(BESIDE))]


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
        log = (setting.workspace.root / "axon.log").read_text()[-4000:]
        assert leg.problems == [], f"AXON_CHAOS_SEED={seed}\n{log}"
        assert len(outcomes) + len(leg.missed) == len(kills), f"AXON_CHAOS_SEED={seed}"
        assert outcomes, f"AXON_CHAOS_SEED={seed}: at least one process was killed"
