"""The sparse mixture of experts of Mixtral."""
# B batch, T time, D model, F feed-forward, N experts, K experts of one token

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from axon_models.layers.moe.experts import SwiGLUExperts, through_experts
from axon_models.layers.moe.routing import RoutedExperts, balance_loss, check_sizes, route


class SparseExperts(RoutedExperts):
    """Each token passes through its K likeliest of N SwiGLU layers: Σ softmax(top-K of router(x))ᵢ · expertᵢ(x).

    Jiang et al. 2024, section 2.1. No token is ever dropped, so a token's result depends on that token alone. The
    penalty is balance_coef times the `balance_loss` of all layers' tokens together, as transformers computes it.
    """

    def __init__(
        self, d_model: int, d_feed_forward: int, n_experts: int, top_k: int, *, balance_coef: float = 0.001
    ) -> None:
        super().__init__()
        check_sizes("SparseExperts", n_experts=n_experts, top_k=top_k, coefficients={"balance_coef": balance_coef})
        self.n_experts, self.top_k, self.balance_coef = n_experts, top_k, balance_coef
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = SwiGLUExperts(d_model, d_feed_forward, n_experts)

    def choices(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """As `RoutedExperts.choices`."""
        largest, chosen = logits.topk(self.top_k)  # (M, K) twice
        # The softmax over the K largest equals the softmax over all, divided by what the K have of it.
        return chosen, largest.softmax(-1)

    def forward_with_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D) to (B, T, D), and the router logits (B, T, N)."""
        logits = route(self.router, x)  # (B, T, N)
        chosen, weights = self.choices(logits.flatten(0, 1))
        y = through_experts(x.flatten(0, 1), chosen, weights, self.experts, self.n_experts)  # (B·T, D)
        return y.view(x.shape), logits

    def penalty(self, router_logits: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """balance_coef · N · Σ fᵢ·Pᵢ over the tokens of all layers; arguments as in `RoutedExperts.penalty`."""
        return self.balance_coef * balance_loss(router_logits, top_k=self.top_k, mask=mask)
