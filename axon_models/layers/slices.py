"""Products in slices, as tensor parallelism computes them on so many devices (Shoeybi et al. 2019, "Megatron-LM")."""
# I inputs, O outputs, n slices

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OutputSliced(nn.Linear):
    """A linear layer of which each slice computes O/n outputs from all inputs; put side by side they are the whole."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool, n_slices: int) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.n_slices = n_slices

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        y = torch.cat([F.linear(x, part) for part in self.weight.chunk(self.n_slices)], dim=-1)
        return y if self.bias is None else y + self.bias


class InputSliced(nn.Linear):
    """A linear layer of which each slice computes all outputs from I/n inputs; their sum is the whole."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool, n_slices: int) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.n_slices = n_slices

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        parts = zip(x.chunk(self.n_slices, dim=-1), self.weight.chunk(self.n_slices, dim=1), strict=True)
        y = torch.stack([F.linear(part, weight) for part, weight in parts]).sum(0)
        return y if self.bias is None else y + self.bias
