"""Where proximal policy optimisation stands: its place in the work, its rollouts and curve, and how they are saved."""
# B rollouts, T time

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from axon_models.objectives.ppo import approximate_kl, masked_mean
from tasks.alignment.rollouts import Rollouts
from tasks.tokenizers.chat import PAD
from tasks.training.checkpoint import prefixed, without_prefix
from tasks.training.curves import Curve

_FIGURES = ("reward", "kl", "entropy", "clip_fraction", "value_loss", "answer_tokens", "ended")
_AVERAGED = 3  # iterations that "first" and "last" figures are the mean of: one iteration is noise


@dataclass
class Progress:
    """Where training stands between two updates. `buffer` is None until an iteration's rollouts are sampled."""

    iteration: int = 0
    n_updates: int = 0  # within the iteration
    tokens: int = 0
    buffer: Rollouts | None = None
    updates: list[dict[str, float]] = field(default_factory=list)  # figures of this iteration's updates
    curve: Curve = field(default_factory=Curve)

    def end_iteration(self, *, epochs: int) -> dict[str, float]:
        """Add the iteration to the curve, forget its rollouts and go on to the next; returns its figures."""
        if self.buffer is None:
            raise RuntimeError(f"iteration {self.iteration + 1} of PPO cannot end: it has no rollouts yet")
        values = self._figures(self.buffer, epochs)
        self.iteration += 1
        self.curve.add(self.iteration, values)
        self.n_updates, self.updates, self.buffer = 0, [], None
        return values

    def _figures(self, rollouts: Rollouts, epochs: int) -> dict[str, float]:
        """Of the rollouts as sampled, and the mean over the iteration's updates."""
        lengths = rollouts.mask.sum(-1).double()  # (B,)
        self.tokens += int((rollouts.tokens != PAD).sum()) * epochs
        values = {
            "tokens": float(self.tokens),
            "reward": rollouts.scores.double().mean().item(),
            "kl": approximate_kl(rollouts.logprobs, rollouts.ref_logprobs, rollouts.mask).item()
            * lengths.mean().item(),
            "entropy": masked_mean(rollouts.entropy, rollouts.mask).item(),
            "answer_tokens": lengths.mean().item(),
            "ended": rollouts.ended.double().mean().item(),
        }
        for name in self.updates[0] if self.updates else ():
            values[name] = sum(update[name] for update in self.updates) / len(self.updates)
        return values

    def number(self, updates_per_iteration: int) -> int:
        """The number of a checkpoint made now: larger than any made before, also of those between two updates."""
        within = 0 if self.buffer is None else 1 + self.n_updates
        return self.iteration * (updates_per_iteration + 2) + within

    def to_save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON state) from which `saved` makes the same progress."""
        tensors = {} if self.buffer is None else prefixed("buffer.", self.buffer.tensors())
        state = {
            "iteration": self.iteration,
            "n_updates": self.n_updates,
            "tokens": self.tokens,
            "updates": self.updates,
            "curve": self.curve.rows,
        }
        return tensors, state

    @classmethod
    def saved(cls, tensors: dict[str, Tensor], state: dict[str, Any]) -> Progress:
        """The progress of a checkpoint, among whose tensors and state there may be others."""
        buffer = without_prefix("buffer.", tensors)
        return cls(
            iteration=state["iteration"],
            n_updates=state["n_updates"],
            tokens=state["tokens"],
            buffer=Rollouts(**buffer) if buffer else None,
            updates=state["updates"],
            curve=Curve(state["curve"]),
        )


def first_and_last(curve: Curve) -> dict[str, float]:
    """Each figure's mean over the first and over the last iterations of a whole training."""
    found = {}
    for name in _FIGURES:
        values = [row[name] for row in curve.rows if name in row]
        found[f"{name}_first"] = sum(values[:_AVERAGED]) / len(values[:_AVERAGED])
        found[f"{name}_last"] = sum(values[-_AVERAGED:]) / len(values[-_AVERAGED:])
    return found
