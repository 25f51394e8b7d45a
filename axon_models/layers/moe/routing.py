"""What every layer of routed experts shares: the router, its losses, and how a model collects them."""
# B batch, T time, D model, N experts, L layers

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axon_models.errors import ConfigError, raise_all


class RoutedExperts(nn.Module):
    """A feed-forward layer with a router; a subclass gives `forward_with_logits` and `penalty`.

    Router logits leave the layer as a result and are kept nowhere, so the penalty is right under activation
    checkpointing, which runs `forward` twice, and in data-parallel training.
    """

    router: nn.Linear

    def choices(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of router logits (M, N): the experts that each token is to pass through, (M, K) int64, and their weights."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.forward_with_logits(x)[0]

    def forward_with_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D) to (B, T, D), and the router logits (B, T, N) for `penalty`."""
        raise NotImplementedError

    def penalty(self, router_logits: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """What to add to the loss of a model, a scalar: router_logits of its L layers, each (B, T, N).

        mask (B, T), True where a token is no padding, or None where there is none.
        """
        raise NotImplementedError

    def forward_with_penalty(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, D) to (B, T, D), and `penalty` of this layer alone."""
        y, logits = self.forward_with_logits(x)
        return y, self.penalty([logits], mask)


def route(router: nn.Linear, x: Tensor) -> Tensor:
    """Router logits (..., N) of x (..., D) in float32 (float64 for float64), under autocast too.

    A rounded logit sends a token elsewhere, which no later precision mends ("selective precision", Fedus et al. 2021,
    section 2.4).
    """
    with torch.autocast(x.device.type, enabled=False):
        kind = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(kind), router.weight.to(kind))


def balance_loss(router_logits: Sequence[Tensor], *, top_k: int, mask: Tensor | None = None) -> Tensor:
    """N · Σᵢ fᵢ·Pᵢ over the tokens of all layers together (Fedus et al. 2021, equations 4–6), a scalar.

    router_logits: L tensors (B, T, N); mask (B, T), True where a token counts. fᵢ is the share of tokens that have
    expert i among their `top_k`, Pᵢ the mean probability of expert i. Even routing gives top_k. Gradients flow through
    P alone. Capacity plays no part: fᵢ counts what the router asked for.
    """
    counts, sums, totals = [], [], []
    for logits in router_logits:
        p = logits.flatten(0, -2).softmax(-1)  # (B·T, N)
        counted = _counted(mask, p).unsqueeze(1)  # (B·T, 1)
        chosen = torch.zeros_like(p).scatter_(1, p.detach().topk(top_k).indices, 1.0)  # (B·T, N)
        counts.append((chosen * counted).sum(0))  # (N,)
        sums.append((p * counted).sum(0))  # (N,)
        totals.append(counted.sum())
    n_tokens = torch.stack(totals).sum().clamp(min=1)
    f, mean_p = torch.stack(counts).sum(0) / n_tokens, torch.stack(sums).sum(0) / n_tokens  # (N,) twice
    return router_logits[0].shape[-1] * (f * mean_p).sum()


def z_loss(router_logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean of (log Σᵢ exp logitᵢ)² over the tokens of router_logits (B, T, N) that mask (B, T) counts, a scalar.

    Zoph et al. 2022 (ST-MoE), equation 5: keeps logits small, where float32 is exact.
    """
    squares = router_logits.flatten(0, -2).logsumexp(-1).square()  # (B·T,)
    counted = _counted(mask, squares)
    return (squares * counted).sum() / counted.sum().clamp(min=1)


def check_sizes(kind: str, *, n_experts: int, top_k: int, coefficients: dict[str, float]) -> None:
    """Raise `ConfigError` with everything that is wrong with the sizes of a layer of routed experts."""
    wrong = []
    if not 1 <= top_k <= n_experts:
        wrong.append(f"{top_k} expert(s) a token must be 1 to n_experts={n_experts}; edit model in params.yaml")
    wrong += [f"{name}={value!r} must be at least 0" for name, value in coefficients.items() if not value >= 0]
    raise_all(ConfigError, kind, wrong)


def _counted(mask: Tensor | None, like: Tensor) -> Tensor:
    """(B·T,) ones and zeros in the type of `like` (B·T, ...)."""
    return like.new_ones(like.shape[0]) if mask is None else mask.flatten().to(like.dtype)
