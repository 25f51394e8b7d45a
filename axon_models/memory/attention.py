"""Attention with relative positions over the states of earlier segments."""
# B batch, T time of queries, M memory, S = M+T keys, D model, H heads, d head dimension

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class See(Protocol):
    """What tokens see: the result (B, T, D) of a layer for x (B, T, D). Ways of it are in `seeing.py`."""

    def __call__(self, attention: RelativeAttention, x: Tensor) -> Tensor: ...


class RelativeAttention(nn.Module):
    """softmax((q_i·k_j + q_i·r_{i−j} + u·k_j + v·r_{i−j}) / √d) · v_j for j ≤ i (Dai et al. 2019, section 3.3).

    q, k and v are projections of states, r_{i−j} of the sinusoid of a distance. The four terms are the paper's (a)
    content, (b) content-dependent position, (c) global content and (d) global position; u and v are of each layer,
    as in the authors' models. The division by √d is in their code, though not in their equation.
    """

    def __init__(self, d_model: int, *, heads: int) -> None:
        super().__init__()
        self.n_heads, self.head_dim = heads, d_model // heads
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key_value = nn.Linear(d_model, 2 * d_model, bias=False)
        self.position = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.u_bias = nn.Parameter(torch.zeros(d_model))
        self.v_bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor, see: See) -> Tensor:
        """(B, T, D) to the same; `see` knows what the tokens see and where that stands."""
        return see(self, x)

    def queries(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, H, T, d)."""
        return self._by_head(self.query(x))

    def keys_and_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D) to (B, H, S, d) twice."""
        keys, values = self.key_value(states).chunk(2, dim=-1)  # (B, S, D) twice
        return self._by_head(keys), self._by_head(values)

    def at_distances(self, sinusoids: Tensor) -> Tensor:
        """r of each distance, (H, n, d), from what `sinusoids` gives for them, (n, D)."""
        return self._by_head(self.position(sinusoids))

    def by_distance(self, q: Tensor, r: Tensor) -> Tensor:
        """(b) + (d) for queries (B, H, T, d) at each of n distances (H, n, d): (B, H, T, n)."""
        return (q + self._of_heads(self.v_bias)) @ r.transpose(-1, -2)

    def attended(self, q: Tensor, keys: Tensor, values: Tensor, by_position: Tensor, unseen: Tensor) -> Tensor:
        """What queries (B, H, T, d) make of keys and values (B, H, S, d), (B, T, D).

        by_position: (b) + (d) for each key, (B, H, T, S). unseen: bool, of a shape that broadcasts to that.
        """
        by_content = (q + self._of_heads(self.u_bias)) @ keys.transpose(-1, -2)  # (B, H, T, S): (a) + (c)
        scores = (by_content + by_position) / math.sqrt(self.head_dim)
        # A query that sees nothing is padding: it averages over everything, where −∞ would make it not a number.
        p = scores.masked_fill(unseen, torch.finfo(torch.bfloat16).min / 4).softmax(-1)
        y = p.to(values.dtype) @ values  # (B, H, T, d)
        attended: Tensor = self.output(y.transpose(1, 2).flatten(2))
        return attended  # (B, T, D)

    def _of_heads(self, bias: Tensor) -> Tensor:
        """(D,) to (H, 1, d)."""
        return bias.view(self.n_heads, 1, self.head_dim)

    def _by_head(self, x: Tensor) -> Tensor:
        """(..., T, D) to (..., H, T, d)."""
        return x.unflatten(-1, (self.n_heads, self.head_dim)).transpose(-2, -3)


def relative_shift(x: Tensor) -> Tensor:
    """From columns of distances to columns of keys: (..., T, S) to (..., T, S), y[t, j] = x[t, j + T−1−t].

    Column c of x belongs to distance S−1−c, column j of the result to key j, whose distance from query t is M+t−j.
    Row t moves left by T−1−t, for which one column more and another view of the same numbers suffice (appendix B).
    Keys after the query, j > M+t, get numbers of no meaning and must be masked.
    """
    *ahead, n_queries, n_keys = x.shape
    wider = F.pad(x, (1, 0))  # (..., T, S+1)
    return wider.view(*ahead, n_keys + 1, n_queries)[..., 1:, :].reshape(x.shape)


def sinusoids(distances: Tensor, d_model: int) -> Tensor:
    """R of each distance, (n,) to (n, D) in float32: sin(distance·ω_k), then cos, with ω_k = 10000^(−2k/D)."""
    frequencies = 10000.0 ** (-torch.arange(0, d_model, 2, device=distances.device, dtype=torch.float32) / d_model)
    angles = torch.outer(distances.float(), frequencies)  # (n, D/2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def unseen_keys(n_queries: int, n_memory: int, span: int | None, device: torch.device) -> Tensor:
    """(T, S) bool, True for keys after a query, and for those more than `span` before it if it is given."""
    queries = torch.arange(n_memory, n_memory + n_queries, device=device).unsqueeze(1)  # (T, 1)
    distances = queries - torch.arange(n_memory + n_queries, device=device)  # (T, S)
    return (distances < 0) if span is None else (distances < 0) | (distances > span)
