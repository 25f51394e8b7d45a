"""The mixture of experts of the Switch Transformer: one expert a token, and a limit to what an expert takes."""
# B batch, T time, D model, F feed-forward, N experts

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axon_models.errors import ConfigError
from axon_models.layers.moe.experts import ReluExperts, through_experts
from axon_models.layers.moe.routing import RoutedExperts, balance_loss, check_sizes, route, z_loss


class Routes(NamedTuple):
    """logits (B, T, N); of each token its likeliest expert (B, T) int64, its probability, and whether it has a slot."""

    logits: Tensor
    expert: Tensor
    probability: Tensor
    kept: Tensor


class SwitchExperts(RoutedExperts):
    """Each token passes through its likeliest of N ReLU layers, scaled by that expert's probability.

    Fedus et al. 2021, section 2.1. In training an expert takes at most ⌈capacity_factor·T/N⌉ tokens of a row; slots
    are given in order of time, and a token without one gets zeros, so that the residual carries it by. Slots are
    counted by row: a row's result depends neither on the rows beside it nor on how workers share a batch, a token
    never on later ones, and padding at the end takes no token's place.

    In evaluation (`model.eval()`) no token is dropped. Otherwise decoding with a cache, which sees a token at a time
    and so never fills an expert, would differ from one pass over the whole text, and a text's score would depend on
    how far it is padded. Log-probabilities of a policy and of its reference should be taken in evaluation mode, too.

    The penalty is, for each layer, balance_coef · N · Σ fᵢ·Pᵢ (equation 4; fᵢ before any dropping) plus z_coef times
    the router z-loss.
    """

    def __init__(
        self,
        d_model: int,
        d_feed_forward: int,
        n_experts: int,
        capacity_factor: float,
        *,
        balance_coef: float = 0.01,
        z_coef: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(
            "SwitchExperts",
            n_experts=n_experts,
            top_k=1,
            coefficients={"balance_coef": balance_coef, "z_coef": z_coef},
        )
        if not capacity_factor > 0:
            raise ConfigError(f"capacity_factor={capacity_factor!r} must be above 0; edit model in params.yaml")
        self.n_experts, self.capacity_factor = n_experts, capacity_factor
        self.balance_coef, self.z_coef = balance_coef, z_coef
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = ReluExperts(d_model, d_feed_forward, n_experts)

    def capacity(self, time: int) -> int:
        """How many of a row's T tokens an expert takes: ⌈capacity_factor·T/N⌉ in training, all of them otherwise."""
        # Rounded first: 1.1 · 10 / 11 is a little more than 1 in floating point.
        return math.ceil(round(self.capacity_factor * time / self.n_experts, 9)) if self.training else time

    def choices(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """As `RoutedExperts.choices`, where no expert is full."""
        probability, expert = logits.softmax(-1).max(-1, keepdim=True)  # (M, 1) twice; of equals the first
        return expert, probability

    def routes(self, x: Tensor) -> Routes:
        """Where the tokens of x (B, T, D) go."""
        logits = route(self.router, x)  # (B, T, N)
        expert, probability = (x.view(logits.shape[:2]) for x in self.choices(logits.flatten(0, 1)))  # (B, T) twice
        # Every token's number among those of its row that want the same expert, from 1.
        numbers = F.one_hot(expert, self.n_experts).cumsum(1)  # (B, T, N)
        kept = numbers.gather(2, expert.unsqueeze(2)).squeeze(2) <= self.capacity(x.shape[1])  # (B, T)
        return Routes(logits, expert, probability, kept)

    def forward_with_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D) to (B, T, D), and the router logits (B, T, N)."""
        routes = self.routes(x)
        chosen = torch.where(routes.kept, routes.expert, self.n_experts).view(-1, 1)  # (B·T, 1)
        weights = routes.probability.view(-1, 1)  # (B·T, 1)
        y = through_experts(x.flatten(0, 1), chosen, weights, self.experts, self.n_experts)  # (B·T, D)
        return y.view(x.shape), routes.logits

    def penalty(self, router_logits: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """The layers' losses added up; arguments as in `RoutedExperts.penalty`."""
        balance = torch.stack([balance_loss([logits], top_k=1, mask=mask) for logits in router_logits]).sum()
        z = torch.stack([z_loss(logits, mask=mask) for logits in router_logits]).sum()
        return self.balance_coef * balance + self.z_coef * z
