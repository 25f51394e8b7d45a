"""The decoder: token ids in, scores of the next token out.

The blocks are built once from the config; `forward` only runs them. A new variant is another module in a block.
"""
# B batch, T time, S time of keys, D model, H heads, G kv groups, V vocabulary

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from axon_models.decoder.config import DecoderConfig
from axon_models.layers.attend import Attend, as_bias, causal, masked
from axon_models.layers.attention import Attention
from axon_models.layers.cache import KVCache
from axon_models.layers.feed_forward import SwiGLU
from axon_models.layers.norm import RMSNorm
from axon_models.layers.rotary import Rotary, Rotation


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self, *, attention_norm: nn.Module, attention: nn.Module, feed_forward_norm: nn.Module, feed_forward: nn.Module
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.feed_forward_norm, self.feed_forward = feed_forward_norm, feed_forward

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = x + self.attention(self.attention_norm(x), rotation, attend)
        return x + self.feed_forward(self.feed_forward_norm(x))


def _block(config: DecoderConfig) -> Block:
    attention = Attention(config.d_model, heads=config.heads, kv_heads=config.kv_heads, head_dim=config.head_dim)
    return Block(
        attention_norm=RMSNorm(config.d_model, config.norm_eps),
        attention=attention,
        feed_forward_norm=RMSNorm(config.d_model, config.norm_eps),
        feed_forward=SwiGLU(config.d_model, config.d_feed_forward),
    )


class Decoder(nn.Module):
    """A causal language model. Weights are float32 and undefined in value until `init_weights` or `load`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.rotary = Rotary(config.head_dim, config.max_positions, config.rope_theta)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        # A tied model has no second matrix, so that no parameter has two names.
        self._output_name = "embedding.weight" if config.tied_embeddings else "output.weight"
        if not config.tied_embeddings:
            self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)

    @property
    def output_weight(self) -> Tensor:
        """(V, D): scores are hidden · output_weightᵀ; the embedding's matrix if tied."""
        return self.get_parameter(self._output_name)

    def init_weights(self, generator: Generator) -> None:
        """Normal weights of deviation `init_std`, those that write to the residual stream smaller by √(2·n_layers).

        The scaling is GPT-2's (Radford et al. 2019, section 2.3). The result depends on `generator` alone.
        """
        std = self.config.init_std
        residual_std = std / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.ones_(parameter)
            else:
                writes_residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
                nn.init.normal_(parameter, std=residual_std if writes_residual else std, generator=generator)

    def hidden(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """States after the final norm, (B, T, D), of `tokens` (B, T) int64.

        positions: (B, T) int64, or None for 0 … T−1. mask: (B, 1, T, S) bool (True = seen) or additive, or None
        for causal. cache: keys of earlier calls; tokens are stored in the slots of their positions, and `mask`
        (over the first S slots) is None only in the first call. Raises `ValueError` past `max_positions`.
        """
        x = self.through(self.embedding(tokens), slice(None), positions=positions, mask=mask, cache=cache)
        return self.norm(x)

    def through(
        self,
        x: Tensor,
        blocks: slice,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """The states x (B, T, D) after some consecutive blocks; other arguments as in `hidden`."""
        rotation = self.rotary.first(x.shape[1]) if positions is None else self.rotary.at(positions)
        attends = self._attends(positions, mask, cache)[blocks]
        for block, attend in zip(self.blocks[blocks], attends, strict=True):
            x = block(x, rotation, attend)
        return x

    def _attends(self, positions: Tensor | None, mask: Tensor | None, cache: KVCache | None) -> list[Attend]:
        if cache is not None:
            return cache.attends(positions, mask)
        return [causal if mask is None else partial(masked, bias=as_bias(mask))] * self.config.n_layers

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T); arguments as in `hidden`."""
        return F.linear(self.hidden(tokens, positions=positions, mask=mask, cache=cache), self.output_weight)


class ScalarModel(nn.Module):
    """A decoder that gives one number per position: a reward or a value."""

    def __init__(self, backbone: Decoder, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, tokens: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """tokens (B, T) int64 to (B, T)."""
        return self.head(self.backbone.hidden(tokens, positions=positions, mask=mask)).squeeze(-1)

    def score(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The number at each row's last token, (B,); tokens (B, T) padded at the right, lengths (B,) int64 ≥ 1."""
        return self(tokens).gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)


def scalar_head(d_model: int) -> nn.Linear:
    """A head (D to 1, no bias) of zeros, so that an untrained reward or value is 0."""
    head = nn.Linear(d_model, 1, bias=False)
    nn.init.zeros_(head.weight)
    return head
