"""How far a model has moved from the SFT model, in nats per answer.

KL(π || ref) over whole answers is E_{y~π} Σ_t KL(π(·|x, y_<t) || ref(·|x, y_<t)). The expectation is
estimated from one answer per prompt, sampled by the model itself at temperature 1; the inner divergence is
exact, over the full vocabulary. That estimates the same quantity as Σ_t log π/ref does, unbiased, with less
variance, and is never negative (Amini, Vieira and Cotterell 2025, "Better Estimation of the KL Divergence
Between Language Models"). Answers are cut at max_new_tokens, and so is the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

# B rows, T time, A tokens of one answer, D model, V vocabulary


class Scorer(Protocol):
    """What is used of a decoder: states (B, T, D) for every position, and the matrix (V, D) that gives logits."""

    @property
    def output_weight(self) -> Tensor: ...

    def hidden(self, tokens: Tensor) -> Tensor: ...


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int, multiple: int = 16) -> Tensor:
    """(B, T) int64, padded on the right to a multiple of `multiple`; causal attention never looks there."""
    longest = math.ceil(max(len(sequence) for sequence in sequences) / multiple) * multiple
    tokens = torch.full((len(sequences), longest), pad_id, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return tokens


def token_divergence(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(ref_logits)) of every position: (A, V), (A, V) -> (A,), in nats."""
    logprobs, ref_logprobs = logits.float().log_softmax(-1), ref_logits.float().log_softmax(-1)  # (A, V)
    return (logprobs.exp() * (logprobs - ref_logprobs)).sum(-1)


@torch.no_grad()
def sequence_divergence(
    module: Scorer,
    reference: Scorer,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    pad_id: int,
    device: str = "cpu",
    rows: int = 16,
) -> list[float]:
    """Σ over the tokens of each answer of KL(module || reference), in nats; `rows` sequences at a time."""
    sums: list[float] = []
    for start in range(0, len(prompts), rows):
        part = range(start, min(start + rows, len(prompts)))
        tokens = pad_right([[*prompts[i], *answers[i]] for i in part], pad_id).to(device)  # (B, T)
        hidden, ref_hidden = module.hidden(tokens), reference.hidden(tokens)  # (B, T, D)
        for row, i in enumerate(part):
            # The state at place t predicts the token at t+1. Logits of the prompt are never needed.
            span = slice(len(prompts[i]) - 1, len(prompts[i]) + len(answers[i]) - 1)
            logits = hidden[row, span] @ module.output_weight.T  # (A, V)
            ref_logits = ref_hidden[row, span] @ reference.output_weight.T  # (A, V)
            divergence = token_divergence(logits, ref_logits)  # (A,)
            sums.append(float(divergence.double().sum()))
    return sums
