"""What is done about a step that diverges: stop, leave the step out, or go back and leave out all since then.

A step has diverged when its loss or its gradient's norm is not finite, or its loss is `explodes_at` times the mean of
the last ones. Leaving out the batches between an earlier state and the spike is what PaLM did (Chowdhery et al. 2022,
section 5.1). All of it is a function of the steps so far, so that a re-run or a resumed run does the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tasks.errors import UserError

if TYPE_CHECKING:
    from tasks.parameter_sections import Divergence

WINDOW = 50  # losses whose mean a new one is held against
ROLLBACK = "rollback"


class Watch:
    """Looks at every step of the stage `stage`. `left_out`: [first, last] step of what was left out so far.

    learning_rate: the highest one, for messages, where it does not stand in params.yaml in so many words.
    """

    def __init__(
        self,
        stage: str,
        policy: Divergence,
        left_out: Sequence[Sequence[int]] = (),
        *,
        learning_rate: float | None = None,
    ) -> None:
        self._stage, self._policy, self._rate = stage, policy, learning_rate
        self.left_out = [list(span) for span in left_out]

    @property
    def goes_back(self) -> bool:
        return self._policy.policy == ROLLBACK

    def fault(self, values: Mapping[str, float], losses: Sequence[float]) -> str | None:
        """What is wrong with a step, if anything. `losses`: those of up to `WINDOW` steps before it."""
        for name, value in values.items():
            if not math.isfinite(value):
                return f"the {name} is {value}"
        if self._policy.explodes_at and len(losses) == WINDOW:
            usual = sum(losses) / WINDOW
            if values["loss"] > self._policy.explodes_at * usual:
                return f"the loss is {values['loss']:.3g}, and was {usual:.3g} on average before"
        return None

    def leave_out(self, first: int, step: int, fault: str) -> None:
        """Note that the steps from `first` to `step` do not count.

        Raises `UserError` (exit code 1) where the policy is to stop, or it was done too often.
        """
        n_times = len(self.left_out)
        if self._policy.policy == "stop" or n_times >= self._policy.max_times:
            rate = "" if self._rate is None else f" below {self._rate:g}"
            often = f", with {n_times} left out before" if n_times else ""
            raise UserError(
                f"{self._stage}: {fault} at step {step + 1}{often}; training diverged. "
                f"Lower {self._stage}.learning_rate{rate} (or {self._stage}.clip_norm) in params.yaml and run again; "
                f"divergence.policy there says what to do about single steps.",
                exit_code=1,
            )
        self.left_out.append([first, step])
