"""Next-token losses from hidden states, without ever holding all N·V scores.

The output matrix is the largest product of a small model, and its scores the largest tensor. Both functions walk
over the N positions in chunks that stay in the processor's cache (the idea of "Cut Your Losses in Large-Vocabulary
Language Models", Wijmans et al. 2024, and of Liger's fused linear cross entropy).
"""
# N positions, C positions of one chunk, D model, V vocabulary

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 256  # positions; 256 · 4096 scores in float32 are 4 MiB, which a processor's cache holds


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, weights: Tensor | None = None, chunk: int = CHUNK
) -> Tensor:
    """Σₙ weightsₙ · −log softmax(hidden · weightᵀ)ₙ[targetsₙ], a scalar in float32 (float64 for float64 inputs).

    hidden (N, D), weight (V, D), targets (N,) int64, weights (N,) or None for ones. Positions of weight 0 cost
    nothing, and their targets are ignored. Under autocast the products run in its type, the softmax in float32.
    Gradients reach `hidden` and `weight` and are computed in the forward pass; `weights` gets none.
    """
    if weights is not None:
        kept = weights.nonzero().squeeze(1)
        if kept.shape[0] < weights.shape[0]:
            hidden, targets, weights = hidden.index_select(0, kept), targets[kept], weights[kept]
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, weights, chunk, torch.is_grad_enabled())
    return loss


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """log softmax(hidden · weightᵀ)ₙ[targetsₙ] for every position: (N, D), (V, D), (N,) int64 to (N,) float32.

    Differentiable in `hidden` and `weight`. For a temperature, give `hidden / temperature`.
    """
    return token_logprobs_and_entropy(hidden, weight, targets, chunk=chunk)[0]


def token_logprobs_and_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, with the entropy −Σᵥ pᵥ·log pᵥ of each position's distribution: (N,) and (N,)."""
    logprobs, entropy = _TokenLogprobs.apply(hidden, weight, targets, chunk)
    return logprobs, entropy


def _product_type(tensor: Tensor) -> torch.dtype:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _softmax_type(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class _Scores:
    """Probabilities of one chunk after another, in buffers that are used again: fresh ones cost half the time."""

    def __init__(self, inputs: Tensor, matrix: Tensor, chunk: int, exact: torch.dtype) -> None:
        self.inputs, self.transposed = inputs, matrix.t()
        n, n_vocab = min(chunk, inputs.shape[0]), matrix.shape[0]
        self.products = torch.empty(n, n_vocab, dtype=inputs.dtype, device=inputs.device)
        self.exact = torch.empty(n, n_vocab, dtype=exact, device=inputs.device)

    def logprobs(self, part: slice) -> Tensor:
        """(C, V), overwritten by the next call."""
        scores = self._scores(part)
        return torch.log_softmax(scores, -1, out=scores)

    def losses_and_probabilities(self, part: slice, at: Tensor) -> tuple[Tensor, Tensor]:
        """−log pₙ[atₙ] (C, 1) for at (C, 1), and p (C, V), which the next call overwrites.

        Softmax's own exponentials are the only ones: e^log_softmax would take as long as all of log_softmax again. The
        normaliser log Σ e^score follows from the largest score and its probability, which is at least 1/V.
        """
        scores = self._scores(part)
        largest, chosen = scores.amax(-1, keepdim=True), scores.gather(1, at)  # (C, 1) each
        p = torch.softmax(scores, -1, out=scores)
        return largest - p.amax(-1, keepdim=True).log_() - chosen, p

    def _scores(self, part: slice) -> Tensor:
        inputs = self.inputs[part]
        products = torch.mm(inputs, self.transposed, out=self.products[: inputs.shape[0]])
        return self.exact[: inputs.shape[0]].copy_(products)

    def rounded(self, d_scores: Tensor) -> Tensor:
        """(C, V) in the products' type, overwritten by the next call."""
        return self.products[: d_scores.shape[0]].copy_(d_scores)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        chunk: int,
        with_gradients: bool,
    ) -> Tensor:
        kind, exact = _product_type(hidden), _softmax_type(hidden)
        inputs, matrix = hidden.to(kind), weight.to(kind)
        d_hidden = torch.empty_like(inputs)
        learns = with_gradients and ctx.needs_input_grad[1]  # a frozen weight costs no product and no memory
        d_weight = torch.zeros_like(weight, dtype=exact) if learns else None
        scores = _Scores(inputs, matrix, chunk, exact)
        loss = hidden.new_zeros((), dtype=exact)
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            at = targets[part].unsqueeze(1)  # (C, 1)
            scale = None if weights is None else weights[part].to(exact).unsqueeze(1)  # (C, 1)
            losses, p = scores.losses_and_probabilities(part, at)  # (C, 1), (C, V)
            loss += (losses if scale is None else losses * scale).sum()
            if with_gradients:
                # The gradient by the scores is softmax − one-hot.
                d_scores = p.scatter_add_(1, at, torch.full_like(losses, -1.0))
                d_products = scores.rounded(d_scores if scale is None else d_scores.mul_(scale))
                torch.mm(d_products, matrix, out=d_hidden[part])
                if d_weight is not None:
                    d_weight += d_products.t() @ inputs[part]
        if with_gradients:
            ctx.save_for_backward(d_hidden.to(hidden.dtype), None if d_weight is None else d_weight.to(weight.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * d_loss, None if d_weight is None else d_weight * d_loss, None, None, None, None


class _TokenLogprobs(torch.autograd.Function):
    """Scores are computed again in the backward pass, because each position's gradient is known only there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        kind, exact = _product_type(hidden), _softmax_type(hidden)
        inputs, matrix = hidden.to(kind), weight.to(kind)
        scores = _Scores(inputs, matrix, chunk, exact)
        chosen, entropy = (hidden.new_empty(hidden.shape[0], dtype=exact) for _ in range(2))
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            logprobs = scores.logprobs(part)  # (C, V)
            chosen[part] = logprobs.gather(1, targets[part].unsqueeze(1)).squeeze(1)
            entropy[part] = -torch.linalg.vecdot(logprobs.exp(), logprobs)
        ctx.save_for_backward(inputs, matrix, targets, entropy)
        ctx.chunk, ctx.exact, ctx.types = chunk, exact, (hidden.dtype, weight.dtype)
        return chosen, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_chosen: Tensor, d_entropy: Tensor) -> tuple[Tensor | None, ...]:
        inputs, matrix, targets, entropy = ctx.saved_tensors
        d_hidden = torch.empty_like(inputs)
        d_weight = torch.zeros_like(matrix, dtype=ctx.exact) if ctx.needs_input_grad[1] else None
        scores = _Scores(inputs, matrix, ctx.chunk, ctx.exact)
        for start in range(0, inputs.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logprobs = scores.logprobs(part)  # (C, V)
            by_chosen, by_entropy = d_chosen[part].unsqueeze(1), d_entropy[part].unsqueeze(1)  # (C, 1)
            # d chosen / d scores = one-hot − p;  d entropy / d scores = −p · (log p + entropy)
            factor = (logprobs + entropy[part].unsqueeze(1)).mul_(by_entropy).add_(by_chosen)
            d_scores = logprobs.exp_().mul_(factor).neg_().scatter_add_(1, targets[part].unsqueeze(1), by_chosen)
            d_products = scores.rounded(d_scores)
            torch.mm(d_products, matrix, out=d_hidden[part])
            if d_weight is not None:
                d_weight += d_products.t() @ inputs[part]
        hidden_type, weight_type = ctx.types
        return d_hidden.to(hidden_type), None if d_weight is None else d_weight.to(weight_type), None, None
