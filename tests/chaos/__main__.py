"""`python -m tests.chaos`: the long form. `make chaos` runs it."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos import campaigns, report
from tests.chaos.plan import ROUND


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--campaigns", type=int, default=ROUND, help="each kills a process or two in every stage")
    parser.add_argument("--seed", type=int, help="what is killed where and when; without one it is drawn, and printed")
    parser.add_argument("--work", type=Path, help="a folder for the workspaces (default: a temporary one by the seed)")
    parser.add_argument("--state", type=Path, help="what was found so far, to go on from (default: WORK/chaos.json)")
    parser.add_argument("--out", type=Path, help="write the page of all kills there")
    parser.add_argument("--for-at-most", type=float, default=float("inf"), metavar="S", help="begin no kill after this")
    parser.add_argument("--only", nargs="*", default=[], metavar="STAGE:KIND", help="of the plan, only these")
    return parser.parse_args()


def main() -> int:
    """0: all kills of the campaigns are done and right; 1: some are not right; 3: there is more to do."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the run that is under way, too
    given = _arguments()
    seed = given.seed if given.seed is not None else secrets.randbelow(10**6)
    work = (given.work or Path(tempfile.gettempdir()) / f"axon-chaos-{seed}").resolve()
    state = campaigns.State(given.state or work / "chaos.json", seed)
    if state.tree["seed"] != seed and given.seed is not None:
        raise SystemExit(f"the state is of seed {state.tree['seed']}, not {seed}; give another --work or --state")
    if state.tree["code"] != campaigns.code_digest():
        raise SystemExit("the code has changed since this state was begun; one table is of one version. Begin anew.")
    seed = state.tree["seed"]
    print(f"seed {seed}; the same again, or on from here: python -m tests.chaos --seed {seed}; in {work}", flush=True)
    only = [tuple(pair.split(":")) for pair in given.only]
    is_done = campaigns.run(
        work, state, n_campaigns=given.campaigns, for_at_most_s=given.for_at_most, only=[(s, k) for s, k in only]
    )
    outcomes = state.outcomes
    wrong = [o for o in outcomes if o.problems]
    closings = [line for lines in state.tree["closings"].values() for line in lines]
    print(f"{len(outcomes)} kills, {len(wrong)} in legs with a problem; {len(closings)} problems of whole runs")
    print("\n".join(closings))
    if given.out:
        given.out.write_text(report.page(state.tree, outcomes), encoding="utf-8")
    return 1 if wrong or closings else 0 if is_done else 3


if __name__ == "__main__":
    raise SystemExit(main())
