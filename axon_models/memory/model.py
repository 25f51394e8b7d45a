"""Transformer-XL: a language model that reads a long text in segments and remembers its states of earlier ones."""
# B batch, T time, M memory, S = M+T keys, D model, F feed-forward, L layers, V vocabulary

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from axon_models.memory.attention import RelativeAttention, sinusoids, unseen_keys
from axon_models.memory.config import TransformerXLConfig


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + W_down relu(W_up x)) (Dai et al. 2019, end of section 3.3)."""

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__()
        self.attention = RelativeAttention(config.d_model, heads=config.heads)
        self.attention_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.up = nn.Linear(config.d_model, config.d_feed_forward)
        self.down = nn.Linear(config.d_feed_forward, config.d_model)
        self.feed_forward_norm = nn.LayerNorm(config.d_model, config.norm_eps)

    def forward(self, x: Tensor, memory: Tensor, distances: Tensor, unseen: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D); arguments as in `RelativeAttention.forward`."""
        x = self.attention_norm(x + self.attention(x, memory, distances, unseen))
        y: Tensor = self.feed_forward_norm(x + self.down(self.up(x).relu()))
        return y


class TransformerXL(nn.Module):
    """A causal language model with segment-level recurrence. Weights are float32, and undefined until initialised.

    Its memory is a tensor (L, B, M, D): what entered each layer at the last M positions. It is given to a call and
    comes back from it, so the model itself holds no state. As published, but for what serves large vocabularies
    (adaptive embeddings and softmax) and dropout, which are left out.
    """

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self._output_name = "embedding.weight" if config.tied_embeddings else "output.weight"
        if not config.tied_embeddings:
            self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)

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

    def hidden(
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
        x = self.embedding(tokens) * math.sqrt(self.config.d_model)  # (B, T, D)
        memory = self._remembered(memory, x)
        n_memory, n_queries = memory.shape[2], x.shape[1]
        backwards = torch.arange(n_memory + n_queries - 1, -1, -1, device=x.device)  # (S,)
        distances = sinusoids(backwards, self.config.d_model).to(x.dtype)  # (S, D)
        unseen = unseen_keys(n_queries, n_memory, span, x.device)  # (T, S)
        entered = []
        for block, remembered in zip(self.blocks, memory, strict=True):
            entered.append(x.detach())
            x = block(x, remembered, distances, unseen)
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

    def forward(
        self,
        tokens: Tensor,
        memory: Tensor | None = None,
        *,
        memory_length: int | None = None,
        span: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) of the token after each of `tokens` (B, T), and the next memory; else as `hidden`."""
        states, memory = self.hidden(tokens, memory, memory_length=memory_length, span=span)
        return F.linear(states, self.output_weight), memory
