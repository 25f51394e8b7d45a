"""The ways a query may look at keys: causally, through a mask, or (in `cache.py`) at keys of earlier calls.

On a processor without a GPU the backward pass of torch's fused attention takes ten times its forward pass (53 and 6 ms
for 16 × 256 tokens in 6 heads of 32 on two cores), so training there runs the plain products below (8 and 9 ms).
"""
# B batch, T time of queries, S time of keys, H heads, G kv groups, R = H/G heads a group, d head dimension
# N = B·G independent products, C queries of one chunk, K keys that such a chunk can see

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 96  # queries; later keys than a chunk's last query are never touched
_MAX_PRODUCTS_TIME = 1024  # past this the kept probabilities, B·H·T²/2 numbers a layer, cost more memory than they save


class Attend(Protocol):
    """q (B, T, H, d), k and v (B, T, G, d) to (B, T, H, d)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each position sees itself and what came before it: softmax(q·kᵀ/√d)·v (Vaswani et al. 2017, equation 1)."""
    if _plain_products_are_faster(q):
        y: Tensor = _Attention.apply(q, k, v, None)
        return y
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or G, T, d)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def banded(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """As `causal`, each position seeing the last `window` ones alone, itself included (Child et al. 2019, section 4.2).

    On a processor without a GPU keys outside the band are never touched, so time grows with T·window.
    """
    if q.device.type == "cpu":
        y: Tensor = _Attention.apply(q, k, v, None, window)
        return y
    return masked(q, k, v, as_bias(in_band(torch.arange(q.shape[1], device=q.device)[None], q.shape[1], window)))


def in_band(positions: Tensor, n_keys: int, window: int) -> Tensor:
    """(B, 1, T, S) bool: whether queries at `positions` (B, T) see keys at 0 … S−1 through a causal band."""
    keys, queries = torch.arange(n_keys, device=positions.device), positions[:, None, :, None]
    return (keys <= queries) & (keys > queries - window)


def both_seen(mask: Tensor, band: Tensor) -> Tensor:
    """A mask, bool or additive, without what `band` (bool, of a shape that broadcasts to the mask's) hides."""
    return mask & band if mask.dtype == torch.bool else mask.masked_fill(~band, float("-inf"))


def masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """As `causal`, with `bias` (B or 1, 1, T, S) of `as_bias` added to the scores; k and v are (B, S, G, d)."""
    bias = bias.to(q.dtype)
    if _plain_products_are_faster(q):
        y: Tensor = _Attention.apply(q, k, v, bias)
        return y
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or G, T or S, d)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True).transpose(1, 2)


def as_bias(mask: Tensor) -> Tensor:
    """What to add to scores for a mask, bool (True = seen) or additive: float32 of the mask's shape, never −∞.

    A query that sees nothing (padding) then averages over everything, where −∞ would make it, and the gradients of
    the whole batch, not a number.
    """
    unseen = torch.finfo(torch.bfloat16).min / 4  # exact in bfloat16 and float32
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, unseen)
    return mask.float().clamp(min=unseen)


def _plain_products_are_faster(q: Tensor) -> bool:
    if q.device.type != "cpu":
        return False
    trains = q.requires_grad and torch.is_grad_enabled()
    # One query a row, as in decoding, is too little work for the fused kernel's blocks.
    return q.shape[1] == 1 or (trains and q.shape[1] <= _MAX_PRODUCTS_TIME)


class _Attention(torch.autograd.Function):
    """Attention by chunks of queries, with the probabilities kept for the backward pass; causal if `bias` is None.

    With a `window`, and no bias, a query sees the last so many positions. The R heads of a group are R·C queries of
    one product, so keys are not repeated.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, window: int | None = None) -> Tensor:
        (batch, time, heads, dim), groups = q.shape, k.shape[2]
        ctx.sizes = batch, time, groups, heads // groups, dim
        ctx.chunk, ctx.window = CHUNK if bias is None else time, window
        queries = _by_group(q * (1 / math.sqrt(dim)), groups)  # (B, G, R, T, d)
        keys, values = (x.transpose(1, 2).reshape(batch * groups, -1, dim) for x in (k, v))  # (N, S, d)
        kept, parts = [], []
        for start in range(0, time, ctx.chunk):
            end = min(start + ctx.chunk, time)
            first = _first_key(start, window)
            last = keys.shape[1] if bias is not None else end
            q_part = queries[:, :, :, start:end].reshape(batch * groups, -1, dim)  # (N, R·C, d)
            scores = torch.bmm(q_part, keys[:, first:last].transpose(1, 2))  # (N, R·C, K)
            by_head = scores.view(batch, heads, end - start, last - first)
            if bias is not None:
                by_head += bias
            else:
                by_head[..., start - first :] += _future(end - start, scores.dtype, scores.device)
            if window is not None:
                _leave_behind(by_head, start - first - window)
            p = scores.softmax(-1)  # (N, R·C, K)
            parts.append(torch.bmm(p, values[:, first:last]).view(batch, groups, -1, end - start, dim))
            kept += [q_part, p]
        ctx.save_for_backward(keys, values, *kept)
        return _by_time(torch.cat(parts, dim=3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        keys, values, *kept = ctx.saved_tensors  # (N, S, d) twice; for each chunk (N, R·C, d) and (N, R·C, K)
        batch, time, groups, per_group, dim = ctx.sizes
        d_outputs = _by_group(d_y, groups)  # (B, G, R, T, d)
        exact = torch.promote_types(keys.dtype, torch.float32)
        d_keys, d_values = torch.zeros_like(keys, dtype=exact), torch.zeros_like(values, dtype=exact)
        parts = []
        for start, q_part, p in zip(range(0, time, ctx.chunk), kept[::2], kept[1::2], strict=True):
            end, first = min(start + ctx.chunk, time), _first_key(start, ctx.window)
            seen = slice(first, first + p.shape[-1])
            d_out = d_outputs[:, :, :, start:end].reshape(batch * groups, -1, dim)  # (N, R·C, d)
            d_values[:, seen] += torch.bmm(p.transpose(1, 2), d_out)
            d_p = torch.bmm(d_out, values[:, seen].transpose(1, 2))  # (N, R·C, K)
            d_scores = torch._softmax_backward_data(d_p, p, -1, p.dtype)
            parts.append(torch.bmm(d_scores, keys[:, seen]).view(batch, groups, per_group, end - start, dim))
            d_keys[:, seen] += torch.bmm(d_scores.transpose(1, 2), q_part)
        d_q = _by_time(torch.cat(parts, dim=3)) * (1 / math.sqrt(dim))
        d_k, d_v = (x.to(keys.dtype).view(batch, groups, -1, dim).transpose(1, 2) for x in (d_keys, d_values))
        return d_q, d_k, d_v, None, None


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(B, T, H, d) to (B, G, R, T, d)."""
    return x.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)


def _by_time(x: Tensor) -> Tensor:
    """(B, G, R, T, d) to (B, T, H, d)."""
    return x.permute(0, 3, 1, 2, 4).flatten(2, 3)


# The same few masks serve all layers and all steps.
@lru_cache(maxsize=256)
def _future(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, n): −∞ above the diagonal, 0 elsewhere."""
    with torch.inference_mode(False):
        return torch.full((n, n), float("-inf"), dtype=dtype, device=device).triu_(1)


def _first_key(start: int, window: int | None) -> int:
    """The first key that any query from `start` on sees."""
    return 0 if window is None else max(0, start - window + 1)


def _leave_behind(scores: Tensor, diagonal: int) -> None:
    """Hide from query t of `scores` (..., n, K) the keys up to t + `diagonal`, which is below 0, in place."""
    n = scores.shape[-2]
    if n + diagonal > 0:
        scores[..., :n] += _past(n, diagonal, scores.dtype, scores.device)


@lru_cache(maxsize=256)
def _past(n: int, diagonal: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, n): −∞ on and below a diagonal, 0 elsewhere."""
    with torch.inference_mode(False):
        return torch.full((n, n), float("-inf"), dtype=dtype, device=device).tril_(diagonal)
