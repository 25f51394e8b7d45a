"""Rotary position embedding: queries and keys turn by an angle that grows with their position."""
# B batch, T time, P positions, N heads, d head dimension

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines, each (B or 1, T, 1, d) in float32


class Rotary(nn.Module):
    """Angles position · θ^(−2i/d) of every position below `max_positions` (Su et al. 2021, equation 15).

    The tables follow from the config, so they are buffers that no checkpoint holds.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, max_positions: int, theta: float) -> None:
        super().__init__()
        self.max_positions = max_positions
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim  # (d/2,)
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), 1.0 / theta**exponent)  # (P, d/2)
        cos, sin = angles.cos(), angles.sin()
        # Both halves of a head side by side, with the sign that each half's partner takes.
        self.register_buffer("cos", torch.cat((cos, cos), dim=-1), persistent=False)  # (P, d)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=-1), persistent=False)  # (P, d)

    def first(self, length: int) -> Rotation:
        """The rotation of positions 0 … length−1, for every row alike: two (1, T, 1, d)."""
        if length > self.max_positions:
            raise ValueError(f"{length} tokens exceed max_positions={self.max_positions}")
        return self.cos[None, :length, None], self.sin[None, :length, None]

    def at(self, positions: Tensor) -> Rotation:
        """The rotation of `positions` (B, T), int64 below `max_positions`: two (B, T, 1, d)."""
        return self.cos[positions].unsqueeze(2), self.sin[positions].unsqueeze(2)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (x[i], x[i + d/2]) of x (B, T, N, d); the pairing of Llama's checkpoints."""
    cos, sin = (table.to(x.dtype) for table in rotation)  # (B or 1, T, 1, d)
    y: Tensor = _Rotate.apply(x, cos, sin)
    return y


class _Rotate(torch.autograd.Function):
    """x ⊙ cos + swapped(x) ⊙ signed sin. Its derivative turns back; autograd would take twice as many passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return (x * cos).addcmul_(_swapped(x), sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return (d_y * cos).addcmul_(_swapped(d_y), sin, value=-1), None, None


def _swapped(x: Tensor) -> Tensor:
    """(..., d) with its two halves exchanged."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((b, a), dim=-1)
