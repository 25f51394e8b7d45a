"""Which processes are killed in which stage and when, from a seed: in five campaigns each kind once in each stage."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = {
    "axon": "the process of `axon run`",
    "stage": "the stage that DVC started",
    "worker": "a Ray worker of the stage",
    "raylet": "Ray's raylet",
    "gcs": "Ray's control service",
    "prefect": "Prefect's server",
    "mlflow": "MLflow's server",
}
BESIDE = ("prefect", "mlflow")  # a stage is not lost with them: they are killed beside one of the others
HARD = tuple(kind for kind in KINDS if kind not in BESIDE)
ROUND = len(HARD)
_AWAY_S = (1.0, 20.0)
# Fractions of a stage. Workers are gone before the stage has hashed and signed what it made, the stage before DVC has.
_LAST_MOMENT = {"worker": 0.75, "stage": 0.9}
_LEG = 4


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill: `moment` is a fraction of the stage's undisturbed time, `pick` chooses among several processes of the
    kind, MLflow stays away for `away_s` seconds."""

    seed: int
    campaign: int
    stage: str
    kind: str
    moment: float
    pick: float
    away_s: float


def draw(seed: int, campaign: int, stage: str, kind: str) -> Kill:
    """The kill of a process of `kind` in `stage`: its moment follows from all four."""
    number = random.Random(f"{seed} {campaign} {stage} {kind}")
    return Kill(
        seed=seed,
        campaign=campaign,
        stage=stage,
        kind=kind,
        moment=number.uniform(0.0, _LAST_MOMENT.get(kind, 0.95)),
        pick=number.random(),
        away_s=number.uniform(*_AWAY_S),
    )


def campaign(seed: int, number: int, stages: Sequence[str]) -> list[Kill]:
    """The kills of campaign `number` (1, 2, …): one or two a stage, in the order of the stages.

    A Latin square of what ends a stage, its kinds and rows shuffled by the seed. Prefect's and MLflow's servers are
    killed beside them, in one campaign of a round each; not beside `axon`, whose next run is left undisturbed.
    """
    order = random.Random(f"{seed}")
    kinds = order.sample(HARD, len(HARD))
    rows = order.sample(range(len(stages)), len(stages))
    kills = []
    for row, stage in zip(rows, stages, strict=True):
        of_campaign = {n: kinds[(row + n) % ROUND] for n in range(1, ROUND + 1)}
        with_others = [n for n, kind in of_campaign.items() if kind != "axon"]
        beside = dict(zip(order.sample(with_others, len(BESIDE)), BESIDE, strict=True))
        of_round = (number - 1) % ROUND + 1
        kills.append(draw(seed, number, stage, of_campaign[of_round]))
        if of_round in beside:
            kills.append(draw(seed, number, stage, beside[of_round]))
    return kills


def legs(kills: Sequence[Kill]) -> list[list[Kill]]:
    """The kills by the `axon run` in which they happen: of at most four stages, of which the last may lose `axon`."""
    made: list[list[Kill]] = [[]]
    for stage in dict.fromkeys(kill.stage for kill in kills):
        last = made[-1]
        if len({kill.stage for kill in last}) == _LEG or any(kill.kind == "axon" for kill in last):
            made.append([])
        made[-1].extend(kill for kill in kills if kill.stage == stage)
    return made
