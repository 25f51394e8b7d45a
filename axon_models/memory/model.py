"""Transformer-XL: a language model that reads a long text in segments and remembers its states of earlier ones."""
# B batch, T time, M memory, S = M+T keys, D model, F feed-forward, L layers, V vocabulary

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from axon_models.layers.block import ModelBlock
from axon_models.layers.cache import KVCache
from axon_models.layers.feed_forward import FeedForward
from axon_models.layers.language_model import Cache, LanguageModel
from axon_models.layers.rotary import check_length
from axon_models.memory.attention import RelativeAttention, See, sinusoids, unseen_keys
from axon_models.memory.config import TransformerXLConfig
from axon_models.memory.seeing import AfterMemory, Places, Segments, Slots, Table


class Block(ModelBlock):
    """norm(x + attention(x)), then norm(x + W_down relu(W_up x)) (Dai et al. 2019, end of section 3.3)."""

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__()
        width, inner = config.d_model, config.d_feed_forward
        self.attention = RelativeAttention(width, heads=config.heads)
        self.attention_norm = nn.LayerNorm(width, config.norm_eps)
        self.feed_forward = FeedForward(up=nn.Linear(width, inner), activation=F.relu, down=nn.Linear(inner, width))
        self.feed_forward_norm = nn.LayerNorm(width, config.norm_eps)

    def forward(self, x: Tensor, see: See) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = self.attention_norm(x + self.attention(x, see))
        y: Tensor = self.feed_forward_norm(x + self.feed_forward(x))
        return y


class TransformerXL(LanguageModel):
    """A causal language model with segment-level recurrence. Weights are float32, and undefined until initialised.

    `read` takes one segment after another, with a memory that is given to a call and comes back from it: a tensor
    (L, B, M, D) of what entered each layer at the last M positions. `hidden` takes whole rows: each text in them is
    cut into segments of the config's length, with the memory handed on inside the row (`seeing.py`). Both compute the
    same. The model itself holds no state.

    As published, but for what serves large vocabularies (adaptive embeddings and softmax) and dropout, which are left
    out.
    """

    config: TransformerXLConfig
    sinusoids: Tensor

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.Identity()  # each block ends with its norm
        self._output_name = "embedding.weight" if config.tied_embeddings else "output.weight"
        if not config.tied_embeddings:
            self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.register_buffer("sinusoids", sinusoids(torch.arange(config.reach), config.d_model), persistent=False)

    @property
    def output_weight(self) -> Tensor:
        """(V, D): scores are hidden · output_weightᵀ; the embedding's matrix if tied."""
        return self.get_parameter(self._output_name)

    def init_weights(self, generator: Generator) -> None:
        """Matrices, u and v normal of deviation `init_std`, gains 1, other biases 0; depends on `generator` alone."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 or name.endswith(("u_bias", "v_bias")):
                nn.init.normal_(parameter, std=self.config.init_std, generator=generator)
            else:
                nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """What enters the first block, (B, T, D), of tokens (B, T); positions are not in it."""
        return self.embedding(tokens) * math.sqrt(self.config.d_model)

    def through(
        self,
        x: Tensor,
        blocks: slice,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """As `LanguageModel.through`; a mask has to be bool, and a cache a `KVCache`."""
        sees = self._sees(x, positions, mask, cache)
        for block, see in zip(self.blocks[blocks], sees[blocks], strict=True):
            x = block(x, see)
        return x

    def _sees(self, x: Tensor, positions: Tensor | None, mask: Tensor | None, cache: Cache | None) -> Sequence[See]:
        """What the tokens of a call see, by layer."""
        config, n_tokens = self.config, x.shape[1]
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(f"the mask of a Transformer-XL must be bool, True where seen, not {mask.dtype}")
        if positions is None:
            check_length(n_tokens, config.max_positions)
        table = Table(
            sinusoids=self.sinusoids.to(x.dtype),
            segment_length=config.segment_length,
            memory_length=config.memory_length,
        )
        if cache is not None:
            if not isinstance(cache, KVCache):
                raise ValueError(
                    f"a Transformer-XL keeps keys and values in a KVCache, not in a {type(cache).__name__}"
                )
            return Slots(table, cache, positions, mask, n_tokens).of_layers(cache)
        if positions is None and mask is None:
            return [Segments(table, n_tokens, x.device)] * config.n_layers
        places = torch.arange(n_tokens, device=x.device)[None]  # (1, T)
        seen = (places <= places.mT)[None, None] if mask is None else mask  # (B or 1, 1, T, T)
        return [Places(table, places if positions is None else positions, seen)] * config.n_layers

    def read(
        self,
        tokens: Tensor,
        memory: Tensor | None = None,
        *,
        memory_length: int | None = None,
        span: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """States (B, T, D) of the next segment `tokens` (B, T) int64, and the memory to give with the one after it.

        memory: what the last call gave, or None at the start of a text; no gradient flows into it. memory_length:
        how many positions to remember, by default the config's; evaluation may use more than training did. span: how
        many positions before itself each token sees, by default all of memory and segment. With a span of at most
        memory_length the result does not depend on where segments end.
        """
        length = self.config.memory_length if memory_length is None else memory_length
        if length < 0 or (span is not None and span < 0):
            raise ValueError(f"memory_length={length} and span={span} must be at least 0")
        x = self.embed(tokens)  # (B, T, D)
        memory = self._remembered(memory, x)
        n_memory, n_queries = memory.shape[2], x.shape[1]
        backwards = torch.arange(n_memory + n_queries - 1, -1, -1, device=x.device)  # (S,)
        distances = sinusoids(backwards, self.config.d_model).to(x.dtype)  # (S, D)
        unseen = unseen_keys(n_queries, n_memory, span, x.device)  # (T, S)
        entered = []
        for block, remembered in zip(self.blocks, memory, strict=True):
            entered.append(x.detach())
            x = block(x, AfterMemory(remembered, distances, unseen))
        states = torch.cat((memory, torch.stack(entered)), dim=2)  # (L, B, S, D)
        return x, states[:, :, max(states.shape[2] - length, 0) :]

    def _remembered(self, memory: Tensor | None, x: Tensor) -> Tensor:
        layers, batch, width = self.config.n_layers, x.shape[0], self.config.d_model
        if memory is None:
            return x.new_zeros(layers, batch, 0, width)
        if memory.dim() != 4 or memory.shape[:2] != (layers, batch) or memory.shape[3] != width:
            raise ValueError(
                f"memory has shape {tuple(memory.shape)}, but {batch} row(s) of tokens in {layers} layers need "
                f"({layers}, {batch}, length, {width}); give the memory of the same rows' last segment"
            )
        return memory.detach().to(x.dtype)
