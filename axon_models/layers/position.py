"""Positions that are added to the embedding of a token, and the absence of such."""
# B batch, T time, P positions, D model

from __future__ import annotations

import torch
from torch import Tensor, nn

from axon_models.layers.rotary import Rotation, check_length


class NotAdded(nn.Module):
    """For models whose positions turn queries and keys."""

    def forward(self, x: Tensor, _positions: Tensor | None) -> Tensor:
        """(B, T, D) to the same."""
        return x


class LearnedPositions(nn.Module):
    """A vector for each position below `max_positions` (Radford et al. 2018, section 3.1)."""

    def __init__(self, max_positions: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_positions, d_model)

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """x (B, T, D) plus the vectors of positions (B, T), or of 0 … T−1 if None."""
        return x + self.table(_places(x, positions, self.table.num_embeddings))


class SinusoidalPositions(nn.Module):
    """sin and cos of position / 10000^(2i/D) in dimensions 2i and 2i+1 (Vaswani et al. 2017, section 3.5), times
    `scale`."""

    table: Tensor

    def __init__(self, max_positions: int, d_model: int, scale: float = 1.0) -> None:
        super().__init__()
        frequencies = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float32) / d_model)  # (D/2,)
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies)  # (P, D/2)
        table = scale * torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # (P, D)
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """As `LearnedPositions.forward`."""
        return x + self.table[_places(x, positions, len(self.table))]


def _places(x: Tensor, positions: Tensor | None, max_positions: int) -> Tensor:
    if positions is not None:
        return positions
    check_length(x.shape[1], max_positions)
    return torch.arange(x.shape[1], device=x.device)


class NoRotation(nn.Module):
    """In the place of `Rotary` where nothing turns: tables of no dimension."""

    nothing: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("nothing", torch.zeros(1, 1, 1, 0), persistent=False)

    def first(self, length: int) -> Rotation:
        return self.nothing, self.nothing

    def at(self, positions: Tensor) -> Rotation:
        return self.nothing, self.nothing
