"""Batch losses of the language-modelling stages, and what they are validated by."""

# B rows, T time, D model, N = tokens that are predicted

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from axon_models.layers.language_model import LanguageModel
from axon_models.objectives.cross_entropy import CHUNK, linear_cross_entropy, token_logprobs
from tasks.training.batches import Batch
from tasks.training.packing import block_causal_mask


def stream_loss(model: LanguageModel, rows: dict[str, Tensor]) -> Tensor:
    """Summed negative log-likelihood of rows of a token stream; every token is a target."""
    hidden, penalty = model.hidden_and_penalty(rows["tokens"])  # (B, T, D), (B,)
    loss = linear_cross_entropy(hidden.flatten(0, 1), model.output_weight, rows["targets"].flatten())
    return loss if penalty is None else loss + penalty.sum() * rows["tokens"].shape[1]


@dataclass(frozen=True, kw_only=True)
class PackedLoss:
    """Summed negative log-likelihood of the answers in packed rows, and `lm_coef` times that of all their tokens.

    The second is the auxiliary objective of fine-tuning in GPT-1 (Radford et al. 2018, equation 5): the language
    modelling loss of whole examples, prompts included. Both sums are divided by the number of the answers' tokens.
    """

    lm_coef: float = 0.0

    def __call__(self, model: LanguageModel, rows: dict[str, Tensor]) -> Tensor:
        mask = block_causal_mask(rows["segments"])  # (B, 1, T, T)
        real = rows["segments"] >= 0  # (B, T)
        hidden, penalty = model.hidden_and_penalty(rows["tokens"], positions=rows["positions"], mask=mask, counted=real)
        weights = rows["weights"] + self.lm_coef * real  # (B, T)
        counted = weights > 0  # without the second loss, prompts need no logits
        weighted = weights[counted] if self.lm_coef else None  # (N,)
        loss = linear_cross_entropy(hidden[counted], model.output_weight, rows["targets"][counted], weights=weighted)
        return loss if penalty is None else loss + (penalty * rows["weights"].sum(1)).sum()


packed_loss = PackedLoss()


def _answer_hidden(model: LanguageModel, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states (N, D) that predict an answer's tokens, and those tokens (N,)."""
    mask = block_causal_mask(rows["segments"])  # (B, 1, T, T)
    hidden = model.hidden(rows["tokens"], positions=rows["positions"], mask=mask)  # (B, T, D)
    of_answers = rows["weights"] > 0  # (B, T)
    return hidden[of_answers], rows["targets"][of_answers]


def packed_validation(model: LanguageModel, batches: list[Batch]) -> dict[str, float]:
    """Mean negative log-likelihood per answer token of `batches`, in nats, and how many are the likeliest token."""
    nats, n_right, n_targets = 0.0, 0, 0
    for batch in batches:
        hidden, targets = _answer_hidden(model, batch.tensors)
        nats -= token_logprobs(hidden, model.output_weight, targets).double().sum().item()
        weight = model.output_weight.float()
        likeliest = torch.cat([(part @ weight.T).argmax(-1) for part in hidden.float().split(CHUNK)])  # (N,)
        n_right += int((likeliest == targets).sum())
        n_targets += len(targets)
    if not n_targets:
        return {}
    return {"loss": nats / n_targets, "token_accuracy": n_right / n_targets}


def bits_per_byte(
    model: LanguageModel,
    stream: NDArray[np.int64],
    n_bytes: int,
    *,
    seq_len: int,
    batch_size: int,
    separator: int,
) -> float:
    """Bits that `model` needs for each of the `n_bytes` bytes that `stream` (N,) spells.

    Every token is paid for, separators included, the first of the stream given `separator`; windows of `seq_len`
    tokens, each without memory of the one before.
    """
    device = model.embedding.weight.device
    targets = torch.from_numpy(stream)  # (N,)
    inputs = torch.cat([torch.tensor([separator]), targets[:-1]])  # (N,)
    nats = 0.0
    for start in range(0, len(targets), batch_size * seq_len):
        part = slice(start, start + batch_size * seq_len)
        n = len(targets[part])
        width = -(-n // seq_len) * seq_len - n
        rows = torch.cat([inputs[part], torch.full((width,), separator)]).view(-1, seq_len).to(device)  # (B, T)
        hidden = model.hidden(rows).flatten(0, 1)[:n]  # (N, D)
        logprobs = token_logprobs(hidden, model.output_weight, targets[part].to(device))  # (N,)
        nats -= logprobs.double().sum().item()
    return nats / math.log(2.0) / n_bytes
