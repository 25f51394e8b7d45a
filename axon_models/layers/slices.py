"""Products in slices, as tensor parallelism computes them on so many devices (Shoeybi et al. 2019, "Megatron-LM").

Slice i of the queries, keys and values, the attention of those heads and slice i of the output need nothing of the
other slices, and so it is with gate, up and down; what the slices give is added up.
"""
# I inputs, O outputs, n slices

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OutputSliced(nn.Linear):
    """A linear layer of which each slice computes O/n outputs from all inputs; together they are the whole.

    parts: the sizes of outputs that come side by side, such as queries, keys and values; n must divide each, and a
    slice has 1/n of each.
    """

    def __init__(self, n_in: int, parts: Sequence[int], *, bias: bool, n_slices: int) -> None:
        super().__init__(n_in, sum(parts), bias=bias)
        self.parts, self.n_slices = list(parts), n_slices

    def weight_of(self, i: int) -> Tensor:
        """The weight of slice i, (O/n, I)."""
        return torch.cat([part.chunk(self.n_slices)[i] for part in self.weight.split(self.parts)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        shares = [part // self.n_slices for part in self.parts]
        slices = [F.linear(x, self.weight_of(i)).split(shares, dim=-1) for i in range(self.n_slices)]
        y = torch.cat([share for of_all in zip(*slices, strict=True) for share in of_all], dim=-1)
        return y if self.bias is None else y + self.bias


class InputSliced(nn.Linear):
    """A linear layer of which each slice computes all outputs from I/n inputs; their sum is the whole."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool, n_slices: int) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.n_slices = n_slices

    def weight_of(self, i: int) -> Tensor:
        """The weight of slice i, (O, I/n)."""
        return self.weight.chunk(self.n_slices, dim=1)[i]

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        inputs = x.chunk(self.n_slices, dim=-1)
        y = torch.stack([F.linear(inputs[i], self.weight_of(i)) for i in range(self.n_slices)]).sum(0)
        return y if self.bias is None else y + self.bias
