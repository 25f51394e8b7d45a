"""What the engines cost a stage: its wall time less the work inside, for every stage of a tiny pipeline.

Run: `.venv/bin/python -m benchmarks.overhead [RUNS]`. Prints a table over RUNS cold runs (default 3): the
median and the range of the overhead of each stage, and the wall time of a run with nothing to do.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tasks.runtime import stages
from tests.flows.workspace import Workspace


def one_run(folder: Path) -> tuple[dict[str, float], float]:
    """(overhead in seconds by stage, seconds of a run with nothing to do) of one cold run in `folder`."""
    workspace = Workspace.create(folder)
    result = workspace.axon("run")
    if result.returncode:
        raise SystemExit(result.stdout + result.stderr)
    (pipeline,) = workspace.executions("pipeline")
    wall: dict[str, float] = {}
    for event in pipeline:
        if event["event"] == "metrics":
            wall.update({key.removeprefix("seconds/"): value for key, value in event["values"].items()})
    overhead = {}
    for name in stages.read_stages(folder):
        (execution,) = workspace.executions(name)
        work = next(e["values"]["work_s"] for e in execution if e["event"] == "metrics" and "work_s" in e["values"])
        overhead[name] = wall[name] - work
    started = time.monotonic()
    again = workspace.axon("run")
    assert "Nothing to do" in again.stdout, again.stdout + again.stderr
    return overhead, time.monotonic() - started


def main() -> None:
    n_runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    found: dict[str, list[float]] = {}
    idle = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n_runs):
            overhead, nothing = one_run(Path(folder) / f"run{i}")
            idle.append(nothing)
            for name, beside_the_work in overhead.items():
                found.setdefault(name, []).append(beside_the_work)
    print(f"| stage | overhead, s (median of {n_runs}) | range |\n| --- | --- | --- |")
    for name, seconds in found.items():
        print(f"| {name} | {statistics.median(seconds):.1f} | {min(seconds):.1f} to {max(seconds):.1f} |")
    every = [value for of_stage in found.values() for value in of_stage]
    print(f"| all stages | {statistics.median(every):.1f} | {min(every):.1f} to {max(every):.1f} |")
    print(f"| nothing to do | {statistics.median(idle):.1f} | {min(idle):.1f} to {max(idle):.1f} |")
    print(json.dumps({"overhead_s": found, "nothing_to_do_s": idle}))


if __name__ == "__main__":
    main()
