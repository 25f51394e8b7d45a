"""The feed-forward layers: gated, and with one activation."""
# D model, F feed-forward, N tokens

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SwiGLU(nn.Module):
    """W_down(silu(W_gate x) ⊙ W_up x) (Shazeer 2020, equation 6); gate and up come out of one product.

    gate_up: D to 2F; down: F to D. Training on a processor without a GPU runs them as one operation (`_GatedProducts`),
    unless they are more than plain products: with biases, in slices, or with adapters in their place. In evaluation
    mode a model has the same bits with adapters that have learnt nothing as without.
    """

    def __init__(self, *, gate_up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        y: Tensor
        trains = self.training and x.device.type == "cpu"  # also without gradients, as when they are computed again
        if trains and _is_plain(self.gate_up) and _is_plain(self.down):
            y = _GatedProducts.apply(x, self.gate_up.weight, self.down.weight)
        else:
            y = self.down(silu_product(self.gate_up(x)))
        return y


class FeedForward(nn.Module):
    """W_down(activation(W_up x)) (Vaswani et al. 2017, equation 2). up: D to F; down: F to D."""

    def __init__(self, *, up: nn.Module, activation: Callable[[Tensor], Tensor], down: nn.Module) -> None:
        super().__init__()
        self.up, self.activation, self.down = up, activation, down

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        y: Tensor = self.down(self.activation(self.up(x)))
        return y


def _is_plain(module: nn.Module) -> bool:
    """Whether nothing but the module's weight says what it computes; adapters replace a module after it was built."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) is nn.Linear and module.bias is None and not hooked


class _GatedProducts(torch.autograd.Function):
    """W_down(silu(W_gate x) ⊙ W_up x) that keeps the sums of gate and up alone, and computes the rest again.

    Products are computed with the hidden units first: (2F, N) has gate and up each in one piece of memory, where
    (N, 2F) has them in alternating stretches, through which elementwise steps are several times slower. Autograd keeps
    silu(gate), its slope and their product with up besides, 3·F numbers a token.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> Tensor:
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        into, out = gate_up_weight.to(kind), down_weight.to(kind)  # (2F, D), (D, F)
        inputs = x.flatten(0, -2).to(kind)  # (N, D)
        gate_up = torch.mm(into, inputs.t())  # (2F, N)
        gate, up = gate_up.chunk(2)  # (F, N) each
        y = torch.mm(F.silu(gate).mul_(up).t(), out.t())  # (N, D)
        ctx.save_for_backward(inputs, into, out, gate_up)
        ctx.types = x.dtype, gate_up_weight.dtype, down_weight.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        inputs, into, out, gate_up = ctx.saved_tensors
        gate, up = gate_up.chunk(2)  # (F, N) each
        d_outputs = d_y.flatten(0, -2)  # (N, D)
        x_learns, into_learns, out_learns = ctx.needs_input_grad  # a frozen weight costs no product and no memory
        silu = F.silu(gate)
        hidden = silu * up  # (F, N)
        d_out = torch.mm(d_outputs.t(), hidden.t()) if out_learns else None  # (D, F)
        d_hidden = torch.mm(out.t(), d_outputs.t(), out=hidden)  # (F, N), where what is no longer needed stood
        d_gate_up = torch.empty_like(gate_up)
        d_gate, d_up = d_gate_up.chunk(2)
        torch.mul(d_hidden, silu, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_hidden.mul_(up), gate, grad_input=d_gate)
        d_into = torch.mm(d_gate_up, inputs) if into_learns else None  # (2F, D)
        d_x = torch.mm(d_gate_up.t(), into).view(d_y.shape) if x_learns else None
        return tuple(None if d is None else d.to(kind) for d, kind in zip((d_x, d_into, d_out), ctx.types, strict=True))


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
