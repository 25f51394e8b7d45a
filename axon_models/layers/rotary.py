"""Rotary position embedding: queries and keys turn by an angle that grows with their position."""
# B batch, T time, P positions, N heads, d head dimension

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines, each (B or 1, T, 1, d) in float32


class Rotary(nn.Module):
    """Angles position/stretch · θ^(−2i/d) of every position below `max_positions` (Su et al. 2021, equation 15).

    A `stretch` above 1 is linear scaling (Chen et al. 2023, "Positional Interpolation", equation 3). The tables
    follow from the config, so they are buffers that no checkpoint holds.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, max_positions: int, theta: float, *, stretch: float = 1.0) -> None:
        super().__init__()
        self.max_positions = max_positions
        places = torch.arange(max_positions, dtype=torch.float32) / stretch  # (P,)
        cos, sin = _tables(torch.outer(places, 1.0 / theta ** _exponents(head_dim)))  # (P, d) twice
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def first(self, length: int) -> Rotation:
        """The rotation of positions 0 … length−1, for every row alike: two (1, T, 1, d)."""
        check_length(length, self.max_positions)
        return self.cos[None, :length, None], self.sin[None, :length, None]

    def at(self, positions: Tensor) -> Rotation:
        """The rotation of `positions` (B, T), int64 below `max_positions`: two (B, T, 1, d)."""
        return self.cos[positions].unsqueeze(2), self.sin[positions].unsqueeze(2)


class DynamicRotary(nn.Module):
    """Rotary positions whose base grows with a text's length ℓ past the trained one L ("dynamic NTK" scaling).

    θ(ℓ) = θ·(factor·max(ℓ, L)/L − factor + 1)^(d/(d−2)), the formula of Hugging Face's Llama, which takes ℓ from the
    whole batch. Here a text is a run of positions that grow by one, so that several in one row are as each alone, and
    so is a padded one if its padding has no next positions. What a model says of the same tokens changes with what
    follows them, and keys in a cache keep the angles of the length at which they were written: past L, decoding with
    a cache is not the same as without one, here as there.
    """

    exponents: Tensor

    def __init__(self, head_dim: int, max_positions: int, theta: float, *, trained: int, factor: float) -> None:
        super().__init__()
        self.max_positions, self._theta, self._trained, self._factor = max_positions, theta, trained, factor
        self._power = head_dim / (head_dim - 2)
        self.register_buffer("exponents", _exponents(head_dim), persistent=False)  # (d/2,)

    def first(self, length: int) -> Rotation:
        """As `Rotary.first`."""
        check_length(length, self.max_positions)
        return self.at(torch.arange(length, device=self.exponents.device)[None])

    def at(self, positions: Tensor) -> Rotation:
        """As `Rotary.at`."""
        length = _text_lengths(positions).clamp(min=self._trained).float()  # (B, T)
        base = self._theta * (self._factor * length / self._trained - (self._factor - 1)) ** self._power  # (B, T)
        frequencies = 1.0 / base[:, :, None] ** self.exponents  # (B, T, d/2)
        cos, sin = _tables(positions[:, :, None].float() * frequencies)  # (B, T, d) twice
        return cos.unsqueeze(2), sin.unsqueeze(2)


def _text_lengths(positions: Tensor) -> Tensor:
    """One more than the last position of the run of growing positions that each of `positions` (B, T) is in, (B, T)."""
    n = positions.shape[1]
    ends = F.pad(positions[:, 1:] != positions[:, :-1] + 1, (0, 1), value=True)  # (B, T)
    places = torch.arange(n, device=positions.device).masked_fill(~ends, n)  # (B, T): of the ends
    return positions.gather(1, places.flip(1).cummin(1).values.flip(1)) + 1


def check_length(length: int, max_positions: int) -> None:
    """Raise `ValueError` for a sequence that has no positions."""
    if length > max_positions:
        raise ValueError(f"{length} tokens exceed max_positions={max_positions}")


def _exponents(head_dim: int) -> Tensor:
    """2i/d, (d/2,)."""
    return torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim


def _tables(angles: Tensor) -> Rotation:
    """(..., d/2) to cosines and sines (..., d): both halves of a head, with the sign that each half's partner takes."""
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (x[i], x[i + d/2]) of x (B, T, N, d); the pairing of Llama's checkpoints."""
    cos, sin = (table.to(x.dtype) for table in rotation)  # (B or 1, T, 1, d)
    y: Tensor = _Rotate.apply(x, cos, sin)
    return y


def rotate_part(x: Tensor, rotation: Rotation) -> Tensor:
    """As `rotate`, for as many of the first dimensions of a head as the tables have; the rest passes unchanged."""
    turning, rest = x.tensor_split((rotation[0].shape[-1],), dim=-1)
    return torch.cat((rotate(turning, rotation), rest), dim=-1)


def unturned(x: Tensor, _rotation: Rotation) -> Tensor:
    """x (B, T, N, d) as it is, where positions are added to the embedding."""
    return x


class _Rotate(torch.autograd.Function):
    """x ⊙ cos + swapped(x) ⊙ signed sin. Its derivative turns back; autograd would take twice as many passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return (x * cos).addcmul_(_swapped(x), sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return (d_y * cos).addcmul_(_swapped(d_y), sin, value=-1), None, None


def _swapped(x: Tensor) -> Tensor:
    """(..., d) with its two halves exchanged."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((b, a), dim=-1)
