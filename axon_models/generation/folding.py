"""A decoder's weights as its single-token steps want them: less to do beside the products.

A norm's gain, √D and the 1/√d of queries go into the product behind them, and the bias of a norm into that product's
bias. LayerNorm sees of its input only what differs from the mean, so whatever writes to the residual stream is freed
from its mean once, and LayerNorm is RMSNorm from then on (Jiang et al. 2023, "Pre-RMSNorm and Pre-CRMSNorm
Transformers"). Heads have the two numbers of a rotated pair side by side, so that a rotation is one complex product.
"""
# D model, H heads, G kv groups, d head dimension, r of it that turn, P positions, V vocabulary, I inputs, O outputs

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Decoder
from axon_models.layers.position import LearnedPositions, SinusoidalPositions


class Affine(NamedTuple):
    """x to weight · x + bias: (O, I) and (O,), or no bias."""

    weight: Tensor
    bias: Tensor | None

    def centred(self) -> Affine:
        """What gives the same outputs without their mean."""
        bias = None if self.bias is None else self.bias - self.bias.mean()
        return Affine(self.weight - self.weight.mean(0), bias)

    def behind(self, norm: nn.Module) -> Affine:
        """The same of x / √(Σx² + D·ε), where it was of `norm`(x): RMSNorm, or LayerNorm of an x without mean."""
        gain, shift = norm.get_parameter("weight").detach(), getattr(norm, "bias", None)
        weight = self.weight * (gain * math.sqrt(len(gain)))
        return Affine(weight, self.bias if shift is None else _sum(self.bias, self.weight @ shift.detach()))


def of(linear: nn.Module) -> Affine:
    """The weights of a linear layer."""
    weight, bias = linear.get_parameter("weight").detach(), getattr(linear, "bias", None)
    return Affine(weight, None if bias is None else bias.detach())


def queries_keys_values(linear: nn.Module, config: DecoderConfig) -> Affine:
    """The layer to queries, keys and values, (H + 2G)·d outputs: pairs side by side, queries by 1/√d."""
    heads, groups, dim = config.heads, config.kv_heads, config.head_dim
    turned = torch.arange((heads + groups) * dim).view(-1, dim)[:, _pairs(config)].flatten()
    order = torch.cat((turned, torch.arange(turned.shape[0], turned.shape[0] + groups * dim)))
    scale = torch.ones(len(order))
    scale[: heads * dim] = 1 / math.sqrt(dim)
    whole = of(linear)
    bias = None if whole.bias is None else whole.bias[order] * scale
    return Affine(whole.weight[order] * scale.unsqueeze(1), bias)


def scores(module: Decoder) -> Affine:
    """The output's product, D to V."""
    weight = module.output_weight.detach()
    return Affine(weight[:, :-1], weight[:, -1]) if module.config.output_bias else Affine(weight, None)


def rotation(module: Decoder) -> Tensor | None:
    """By what pairs are multiplied, (P, d/2) complex, 1 where nothing turns; None where no position turns anything."""
    if module.config.positions != "rotary":
        return None
    cos, sin = module.get_buffer("rotary.cos"), module.get_buffer("rotary.sin")  # (P, r)
    half = module.config.rotary_dim // 2
    turning = torch.complex(cos[:, :half], sin[:, half:])  # (P, r/2)
    still = torch.ones(len(cos), module.config.head_dim // 2 - half, dtype=turning.dtype)
    return torch.cat((turning, still), dim=1)


def added(module: Decoder) -> Tensor | None:
    """What is added to the embedding of a token for its position, (P, D), if anything is."""
    if isinstance(module.positions, LearnedPositions):
        return module.positions.table.weight.detach()
    return module.positions.table if isinstance(module.positions, SinusoidalPositions) else None


def _pairs(config: DecoderConfig) -> Tensor:
    """The dimensions of a head in the order 0, r/2, 1, r/2 + 1, …, and those that do not turn, (d,)."""
    turning = config.rotary_dim if config.positions == "rotary" else 0
    pairs = torch.arange(turning).view(2, turning // 2).t().flatten()
    return torch.cat((pairs, torch.arange(turning, config.head_dim)))


def _sum(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b
