"""Many small feed-forward layers, of which each token passes through a few."""
# M tokens, K experts of one token, R = M·K rows less those of no expert, D model, F feed-forward, N experts

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axon_models.layers.feed_forward import silu_product


class Experts(Protocol):
    """Rows (R, D) to (R, D): the first counts[0] pass expert 0, the next counts[1] pass expert 1, and so on."""

    def __call__(self, rows: Tensor, counts: Sequence[int]) -> Tensor: ...


class SwiGLUExperts(nn.Module):
    """Experts W_down(silu(W_gate x) ⊙ W_up x), as in Mixtral (Jiang et al. 2024, section 2.1).

    The weights of all experts are one parameter, so that an expert without tokens has a gradient of zeros, not none:
    data-parallel workers then reduce the same tensors at every step. Normal weights of deviation 0.02.
    """

    def __init__(self, d_model: int, d_feed_forward: int, n_experts: int) -> None:
        super().__init__()
        self.gate_up = _normal(n_experts, 2 * d_feed_forward, d_model)  # gate above up, as in SwiGLU
        self.down = _normal(n_experts, d_model, d_feed_forward)

    def forward(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """As `Experts` says."""
        # unbind, because the gradient of indexing one expert after another has the size of all experts each time.
        each = zip(rows.split(list(counts)), self.gate_up.unbind(), self.down.unbind(), strict=True)
        parts = [F.linear(silu_product(F.linear(x, gate_up)), down) for x, gate_up, down in each if len(x)]
        return torch.cat(parts) if parts else rows


class ReluExperts(nn.Module):
    """Experts W_down relu(W_up x), as in Switch (Fedus et al. 2021, section 2); one parameter for all, as above."""

    def __init__(self, d_model: int, d_feed_forward: int, n_experts: int) -> None:
        super().__init__()
        self.up = _normal(n_experts, d_feed_forward, d_model)
        self.down = _normal(n_experts, d_model, d_feed_forward)

    def forward(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """As `Experts` says."""
        each = zip(rows.split(list(counts)), self.up.unbind(), self.down.unbind(), strict=True)
        parts = [F.linear(F.linear(x, up).relu(), down) for x, up, down in each if len(x)]
        return torch.cat(parts) if parts else rows


def through_experts(x: Tensor, chosen: Tensor, weights: Tensor, experts: Experts, n_experts: int) -> Tensor:
    """Σₖ weightsₖ · expert[chosenₖ](x), (M, D), of x (M, D) with chosen (M, K) int64 and weights (M, K).

    A choice of n_experts means no expert and gives zeros. The tokens of an expert are gathered, in the order of x,
    into one product; the terms of a token are added in the order of `chosen`, so the result is deterministic.
    """
    flat = chosen.flatten()  # (M·K,)
    *counts, n_without = torch.bincount(flat, minlength=n_experts + 1).tolist()
    order = flat.argsort(stable=True)
    rows = x.index_select(0, order[: len(order) - n_without] // chosen.shape[1])  # (R, D)
    y = F.pad(experts(rows, counts), (0, 0, 0, n_without))  # (M·K, D)
    y = y.index_select(0, order.argsort()).unflatten(0, chosen.shape)  # (M, K, D)
    return (y * weights.unsqueeze(-1)).sum(1).to(y.dtype)


def _normal(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_(std=0.02))
