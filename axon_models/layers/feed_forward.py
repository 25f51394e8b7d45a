"""The feed-forward layers: gated, and with one activation."""
# D model, F feed-forward

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SwiGLU(nn.Module):
    """W_down(silu(W_gate x) ⊙ W_up x) (Shazeer 2020, equation 6); gate and up come out of one product.

    gate_up: D to 2F; down: F to D.
    """

    def __init__(self, *, gate_up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        y: Tensor = self.down(silu_product(self.gate_up(x)))
        return y


class FeedForward(nn.Module):
    """W_down(activation(W_up x)) (Vaswani et al. 2017, equation 2). up: D to F; down: F to D."""

    def __init__(self, *, up: nn.Module, activation: Callable[[Tensor], Tensor], down: nn.Module) -> None:
        super().__init__()
        self.up, self._activation, self.down = up, activation, down

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        y: Tensor = self.down(self._activation(self.up(x)))
        return y


class _SiluProduct(torch.autograd.Function):
    """silu(gate) ⊙ up of gate and up side by side, (..., 2F) to (..., F).

    Keeping sigmoid(gate) and writing both gradients into one tensor takes two thirds of autograd's time.
    """

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)  # (..., F) each
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        ctx.save_for_backward(gate_up, sigmoid, silu)
        return silu * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> Tensor:
        gate_up, sigmoid, silu = ctx.saved_tensors
        up = gate_up.chunk(2, dim=-1)[1]
        d_gate_up = torch.empty_like(gate_up)
        d_gate, d_up = d_gate_up.chunk(2, dim=-1)
        torch.mul(d_y, silu, out=d_up)
        # silu' = σ + gate·σ·(1 − σ) = silu + σ·(1 − silu)
        slope = torch.addcmul(silu + sigmoid, silu, sigmoid, value=-1)
        torch.mul(slope.mul_(d_y), up, out=d_gate)
        return d_gate_up


def silu_product(gate_up: Tensor) -> Tensor:
    """silu(gate) ⊙ up of gate and up side by side, (..., 2F) to (..., F)."""
    y: Tensor = _SiluProduct.apply(gate_up)
    return y
