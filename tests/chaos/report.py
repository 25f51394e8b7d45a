"""docs/reliability.md, from what campaigns have found."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tests.chaos.leg import Outcome
from tests.chaos.plan import KINDS

_INTRODUCTION = """# Reliability
`kill -9` of each kind of process in each stage, by `make chaos`. In a finished workspace of the tiny pipeline, with the
real engines, up to four stages are run anew by one `axon run` (a leg), and in each of them a process is killed at a
random moment, or two are. MLflow's server is started again after 1 to 20 seconds; whatever else was killed is left to
Axon. A leg ends with the stage in which `axon run` itself is killed: the next `axon run` is not disturbed.

After each leg:

- the last `axon run` has ended well, and `dvc.lock` is that of one undisturbed run, byte for byte;
- no process is left of those seen in a run, nor any in its folder, within 15 seconds of its end;
- no lock of Axon or DVC is held, and no note of an open run or of DVC's readers and writers is left;
- MLflow has one run for each execution, closed: KILLED if it was killed, FAILED if it lost a worker, the last of each
  stage and the last pipeline FINISHED; with every value once and in order.

A campaign goes through all eleven stages, and ends with a whole `axon run`.
"""


def page(tree: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The whole page. `tree`: the state of the campaigns."""
    stages = list(dict.fromkeys(o.kill.stage for o in sorted(outcomes, key=lambda o: o.kill.campaign)))
    problems = {o.leg: o.problems for o in outcomes if o.problems}
    closings = [line for lines in tree["closings"].values() for line in lines]
    campaigns = {o.kill.campaign for o in outcomes}
    n_wrong = sum(bool(o.problems) for o in outcomes)
    parts = [
        _INTRODUCTION,
        f"## {tree['date']}: {len(outcomes)} kills, {n_wrong} in legs with a problem\n"
        f"`make chaos` with seed {tree['seed']}: {len(campaigns)} campaigns, {tree['legs']} legs, {len(stages)} stages"
        f", {len({o.kill.kind for o in outcomes})} of {len(KINDS)} kinds; {tree['machine']}. The undisturbed\n"
        f"run took {tree['undisturbed_s']:.0f} s. Whole runs at the end of a campaign: {len(tree['closings'])}, "
        f"{len(closings)} problems.\n",
        _still_to_do(len(tree["seconds"]), outcomes),
        _problems(problems, closings),
        _by_kind(outcomes),
        _matrix(outcomes, stages),
        _every_kill(outcomes),
    ]
    return "\n".join(part for part in parts if part)


def _still_to_do(n_stages: int, outcomes: Sequence[Outcome]) -> str:
    planned, done = n_stages * len(KINDS), len({(o.kill.stage, o.kill.kind) for o in outcomes})
    if done >= planned:
        return "Each kind was killed in each stage.\n"
    return f"**Not complete:** of {planned} kills, each kind in each stage, {planned - done} are still to do.\n"


def _problems(by_leg: dict[int, list[str]], closings: Sequence[str]) -> str:
    if not by_leg and not closings:
        return ""
    lines = [f"- leg {leg}: {'; '.join(problems)}" for leg, problems in by_leg.items()]
    return "\n".join(["## Problems", *lines, *(f"- the whole run at the end: {line}" for line in closings), ""])


def _by_kind(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "## By kind of process",
        "*Seconds*: from the kill until the stage was done, the next `axon run` included, median and largest; what was",
        "left to do of the stage is a part of it.",
        "",
        "| killed | kills | the run went on | the next `axon run` went on | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, what in KINDS.items():
        of_kind = [o for o in outcomes if o.kill.kind == kind]
        if not of_kind:
            continue
        mended = sum(o.code == 0 for o in of_kind)
        seconds = [o.recovered_s for o in of_kind if o.recovered_s is not None]
        took = f"{statistics.median(seconds):.0f}, {max(seconds):.0f}" if seconds else ""
        lines.append(f"| {what} (`{kind}`) | {len(of_kind)} | {mended} | {len(of_kind) - mended} | {took} |")
    return "\n".join([*lines, ""])


def _matrix(outcomes: Sequence[Outcome], stages: Sequence[str]) -> str:
    lines = [
        "## By stage and kind",
        f"| stage | {' | '.join(KINDS)} | all |",
        f"| --- |{' --- |' * (len(KINDS) + 1)}",
    ]
    for stage in stages:
        counts = [sum(o.kill.stage == stage and o.kill.kind == kind for o in outcomes) for kind in KINDS]
        lines.append(f"| {stage} | {' | '.join(str(n) for n in counts)} | {sum(counts)} |")
    totals = [sum(o.kill.kind == kind for o in outcomes) for kind in KINDS]
    return "\n".join([*lines, f"| all | {' | '.join(str(n) for n in totals)} | {sum(totals)} |", ""])


def _every_kill(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "## Every kill",
        "*At*: seconds since the stage began. *Done*: seconds from the kill until the stage was done. *Code*: of the",
        "run, where it ended.",
        "",
        "| campaign | leg | stage | killed | at | done | code | process |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for o in outcomes:
        done = f"{o.recovered_s:.0f}" if o.recovered_s is not None else "never"
        kill, code, command = o.kill, o.code or "", f"`{o.command}`"
        row = (kill.campaign, o.leg, kill.stage, kill.kind, f"{o.at_s:.1f}", done, code, command)
        lines.append(f"| {' | '.join(str(cell) for cell in row)} |")
    return "\n".join([*lines, ""])
