"""What is asked of a causal language model, whatever its family: training, sampling and checkpoints know no more."""
# B batch, T time, S time of keys, D model, V vocabulary

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from axon_models.layers.cache import KVCache
from axon_models.layers.rolling_cache import RollingCache

Cache = KVCache | RollingCache


class Sizes(Protocol):
    """What is read of a config. `experts`: None where every token goes through all parameters."""

    @property
    def family(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def experts(self) -> Any: ...
    @property
    def n_parameters(self) -> int: ...
    @property
    def n_active_parameters(self) -> int: ...


class LanguageModel(nn.Module, ABC):
    """Token ids in, scores of the next token out: `embed`, then `through` all blocks, `norm`, and `output_weight`."""

    config: Sizes
    embedding: nn.Embedding
    blocks: nn.ModuleList
    norm: nn.Module

    @property
    @abstractmethod
    def output_weight(self) -> Tensor:
        """What scores are made with: hidden · output_weightᵀ. (V, width of `hidden`)."""

    @property
    def hidden_width(self) -> int:
        """The last dimension of `hidden`."""
        return self.config.d_model

    @property
    def padded_positions(self) -> int:
        """How long a padded row may be: in a longer one, padding changes what the model says of the tokens before."""
        return self.config.max_positions

    def check_padding(self, lengths: Tensor, n_tokens: int) -> None:
        """Raise `ValueError` if rows of `lengths` (B,) tokens, padded to `n_tokens`, are changed by their padding."""
        if n_tokens > self.padded_positions and int(lengths.min()) < n_tokens:
            raise ValueError(
                f"rows padded to {n_tokens} tokens must have at most {self.padded_positions}; score longer ones alone"
            )

    @abstractmethod
    def init_weights(self, generator: Generator) -> None:
        """Weights to start training from; they depend on `generator` alone."""

    def drop_no_tokens(self) -> None:
        """From here on training computes of a token what evaluation does, as it always does without experts."""

    @abstractmethod
    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """What enters the first block, (B, T, D), of tokens (B, T)."""

    @abstractmethod
    def through(
        self,
        x: Tensor,
        blocks: slice,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """The states x (B, T, D) after some consecutive blocks; other arguments as in `hidden`."""

    def states(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """As `hidden`, always (B, T, D): for heads of their own."""
        x = self.embed(tokens, positions)
        normed: Tensor = self.norm(self.through(x, slice(None), positions=positions, mask=mask, cache=cache))
        return normed

    def before_output(self, states: Tensor) -> Tensor:
        """`hidden` of `states`."""
        return states

    def hidden(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """States after the final norm, (B, T, D), of `tokens` (B, T) int64, for products with `output_weight`.

        positions: (B, T) int64, or None for 0 … T−1. mask: (B, 1, T, S) bool (True = seen), or None for causal;
        layers see no more of it than their kind does. cache: keys of earlier calls; tokens are stored in the slots of
        their positions, and `mask` (over the first S slots) is None only in the first call. Raises `ValueError` past
        `max_positions`.
        """
        return self.before_output(self.states(tokens, positions=positions, mask=mask, cache=cache))

    def hidden_and_penalty(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`hidden`, and for each row what its router adds to the mean loss of its tokens, (B,); None without a router.

        counted (B, T) bool: the tokens that are no padding, None for all.
        """
        return self.hidden(tokens, positions=positions, mask=mask), None

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T); arguments as in `hidden`."""
        return F.linear(self.hidden(tokens, positions=positions, mask=mask, cache=cache), self.output_weight)


class ScalarModel(nn.Module):
    """A language model that gives one number per position: a reward or a value."""

    def __init__(self, backbone: LanguageModel, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, tokens: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """tokens (B, T) int64 to (B, T)."""
        return self.head(self.backbone.states(tokens, positions=positions, mask=mask)).squeeze(-1)

    def score(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The number at each row's last token, (B,); tokens (B, T) padded at the right, lengths (B,) int64 ≥ 1.

        Raises `ValueError` where T is above `padded_positions` of the backbone and a row is padded.
        """
        self.backbone.check_padding(lengths, tokens.shape[1])
        return self(tokens).gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)


def scalar_head(d_model: int) -> nn.Linear:
    """A head (D to 1, no bias) of zeros, so that an untrained reward or value is 0."""
    head = nn.Linear(d_model, 1, bias=False)
    nn.init.zeros_(head.weight)
    return head
