"""From a config to modules: every variant of every part is chosen here, once, by name."""
# D model, F feed-forward, H heads, G kv groups, d head dimension

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from axon_models.decoder.config import DecoderConfig, Experts
from axon_models.layers.attention import Attention, Turn
from axon_models.layers.block import Block, ParallelBlock, PostNormBlock, RoutedBlock
from axon_models.layers.feed_forward import FeedForward, SwiGLU
from axon_models.layers.moe.routing import RoutedExperts
from axon_models.layers.moe.sparse import SparseExperts
from axon_models.layers.moe.switch import SwitchExperts
from axon_models.layers.norm import RMSNorm
from axon_models.layers.position import LearnedPositions, NoRotation, NotAdded, SinusoidalPositions
from axon_models.layers.rotary import DynamicRotary, Rotary, rotate, rotate_part, unturned
from axon_models.layers.slices import InputSliced, OutputSliced

ToParts = Callable[[int, Sequence[int]], nn.Module]
Linear = Callable[[int, int], nn.Module]

_NORMS: dict[str, Callable[[int, float], nn.Module]] = {"rms": RMSNorm, "layer": nn.LayerNorm}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu_tanh": partial(F.gelu, approximate="tanh"), "relu": F.relu}


def norm(config: DecoderConfig) -> nn.Module:
    return _NORMS[config.norm](config.d_model, config.norm_eps)


def final_norm(config: DecoderConfig) -> nn.Module:
    """What stands between the last block and the output: nothing where each block ends with its norm."""
    return nn.Identity() if config.block == "post_norm" else norm(config)


def block(config: DecoderConfig) -> Block:
    if config.block == "parallel":
        return ParallelBlock(
            attention_norm=norm(config), attention=_attention(config), feed_forward=_feed_forward(config)
        )
    kinds = {"pre_norm": Block, "post_norm": PostNormBlock}
    kind = kinds[config.block] if config.experts is None else RoutedBlock
    return kind(
        attention_norm=norm(config),
        attention=_attention(config),
        feed_forward_norm=norm(config),
        feed_forward=_feed_forward(config) if config.experts is None else _experts(config, config.experts),
    )


def added_positions(config: DecoderConfig) -> nn.Module:
    """What is added to the embedding."""
    if config.positions == "learned":
        return LearnedPositions(config.max_positions, config.d_model)
    if config.positions == "sinusoidal":
        return SinusoidalPositions(config.max_positions, config.d_model, config.position_scale)
    return NotAdded()


def rotary(config: DecoderConfig) -> Rotary | DynamicRotary | NoRotation:
    """What turns queries and keys."""
    if config.positions != "rotary":
        return NoRotation()
    sizes = config.rotary_dim, config.max_positions, config.rope_theta
    scaling = config.rope_scaling
    if scaling is None:
        return Rotary(*sizes)
    if scaling.kind == "linear":
        return Rotary(*sizes, stretch=scaling.factor)
    return DynamicRotary(*sizes, trained=config.trained_positions, factor=scaling.factor)


def _turn(config: DecoderConfig) -> Turn:
    if config.positions != "rotary":
        return unturned
    return rotate if config.rotary_dim == config.head_dim else rotate_part


def _attention(config: DecoderConfig) -> Attention:
    heads, groups, dim = config.heads, config.kv_heads, config.head_dim
    to_slices, from_slices = _linears(config)
    return Attention(
        qkv=to_slices(config.d_model, (heads * dim, groups * dim, groups * dim)),
        output=from_slices(heads * dim, config.d_model),
        turn=_turn(config),
        heads=heads,
        kv_heads=groups,
        head_dim=dim,
    )


def _feed_forward(config: DecoderConfig) -> nn.Module:
    width, inner = config.d_model, config.d_feed_forward
    to_slices, from_slices = _linears(config)
    if config.feed_forward == "swiglu":
        return SwiGLU(gate_up=to_slices(width, (inner, inner)), down=from_slices(inner, width))
    activation = _ACTIVATIONS[config.feed_forward]
    return FeedForward(up=to_slices(width, (inner,)), activation=activation, down=from_slices(inner, width))


def _experts(config: DecoderConfig, experts: Experts) -> RoutedExperts:
    sizes = config.d_model, config.d_feed_forward, experts.n
    if experts.routing == "switch":
        return SwitchExperts(*sizes, experts.capacity_factor, balance_coef=experts.router_coef)
    return SparseExperts(*sizes, experts.per_token, balance_coef=experts.router_coef)


def _linears(config: DecoderConfig) -> tuple[ToParts, Linear]:
    """The linear layers into heads or hidden units and out of them, in slices where there are several."""
    bias, n = config.biases, config.pretraining_tp
    if n == 1:
        return lambda n_in, parts: nn.Linear(n_in, sum(parts), bias=bias), partial(nn.Linear, bias=bias)
    return partial(OutputSliced, bias=bias, n_slices=n), partial(InputSliced, bias=bias, n_slices=n)
