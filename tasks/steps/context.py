"""What a step is given: its parameters, where it reads and writes, and how it reports. No engine in sight.

A step is a module `tasks/steps/NAME.py` with one function `run(context: StepContext) -> None`. It reads inputs
and writes outputs below `context.root`, under the paths that `dvc.yaml` names for the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tasks.parameters import Parameters


class FanOut(Protocol):
    """Apply a function to items in other processes, one thread each; results in the order of the items.

    `function` is "module:name"; items and results are JSON values, so that a result is kept in
    `context.checkpoints/NAME/` as soon as it is there, and a resumed step computes only what is missing.
    A result must depend on its item (and on files below `root`) alone, never on which process computed it.
    """

    def __call__(self, name: str, function: str, items: Sequence[Mapping[str, Any]]) -> list[Any]: ...


def _never() -> bool:
    return False


def _as_it_is(_path: str) -> None:
    """Whoever sees the same disk sees the file."""


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """`report(step, n_steps, values)` feeds progress and tracking and never changes a result.

    When `asked_to_stop()`, the step saves a checkpoint as soon as it can and raises `Stopped`. A step that trains runs
    in each of `n_workers` processes, of which this is number `rank`; the first one writes. `node_rank`: its
    number among those on its node where nodes have a folder `checkpoints` each; None where all see the same.
    `share(path)` lets the processes of `fan_out` read what the step has just written at `path` below `root`.
    """

    params: Parameters
    root: Path
    checkpoints: Path
    checkpoint_every_s: float
    report: Callable[[int, int, Mapping[str, float]], None]
    fan_out: FanOut
    rank: int = 0
    n_workers: int = 1
    node_rank: int | None = None
    share: Callable[[str], None] = _as_it_is
    asked_to_stop: Callable[[], bool] = _never
