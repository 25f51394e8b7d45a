"""Learning from a text and measuring it, segment by segment, with the memory handed on."""
# B batch, T time of a segment, S length of the texts, D model

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from axon_models.memory.model import TransformerXL
from axon_models.objectives.cross_entropy import linear_cross_entropy, token_logprobs


def segments(tokens: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (B, T) of tokens (B, S), in order: every token but the first is a target once.

    T is `length`, in the last segment what is left. Raises `ValueError` where there is nothing to predict.
    """
    if length < 1 or tokens.shape[1] < 2:
        raise ValueError(f"segments of length={length} must have a token, and a text of {tokens.shape[1]} at least 2")
    for start in range(0, tokens.shape[1] - 1, length):
        end = min(start + length, tokens.shape[1] - 1)
        yield tokens[:, start:end], tokens[:, start + 1 : end + 1]


def segment_loss(
    model: TransformerXL,
    inputs: Tensor,
    targets: Tensor,
    memory: Tensor | None = None,
    *,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ weights · −log p(target) over a segment, a scalar, and the memory for the next one.

    inputs, targets and weights are (B, T); weights None are ones. Divide by the number of targets that count.
    """
    hidden, memory = model.read(inputs, memory)
    flat = None if weights is None else weights.flatten()
    return linear_cross_entropy(hidden.flatten(0, 1), model.output_weight, targets.flatten(), weights=flat), memory


@torch.no_grad()
def text_losses(
    model: TransformerXL,
    tokens: Tensor,
    *,
    segment_length: int,
    memory_length: int | None = None,
    span: int | None = None,
) -> Tensor:
    """−log p of every token but the first, in nats, (B, S−1), of texts tokens (B, S) that are read from their start.

    memory_length (by default the config's; 0 forgets each segment) and span are those of `TransformerXL.read`.
    """
    losses, memory = [], None
    for inputs, targets in segments(tokens, segment_length):
        hidden, memory = model.read(inputs, memory, memory_length=memory_length, span=span)
        logprobs = token_logprobs(hidden.flatten(0, 1), model.output_weight, targets.flatten())  # (B·T,)
        losses.append(-logprobs.view(inputs.shape))
    return torch.cat(losses, dim=1)
