"""Products of a few rows with weights that stay, each weight laid out once in the order that its product reads fastest.

What is fastest depends on how many rows there will be and on the type (weights of the 5.5 M decoder, AMD Zen 4, one
thread, float32 and bfloat16; docs/performance.md has the figures of whole answers):
  one row, float32: `torch.mm` on input × output, or output × input where inputs are more; memory sets the pace.
  one row, bfloat16: `F.embedding_bag`, the weighted sum of the rows of input × output. It reads at the pace of memory
    what `torch.mm` takes three times, and a packed product twice as long for: both convert or look up more than they
    multiply.
  more rows: oneDNN's packed weights (what `torch.compile` freezes a linear layer into), a fifth faster than `torch.mm`
    in both types from 8 to 512 rows. Where this build of torch has none, `torch.mm`.
"""
# N rows, I inputs, O outputs, T threads

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)


class Product(Protocol):
    """x (N, I) · weight to (N, O), x and weight of one type; nothing is differentiated."""

    def of(self, x: Tensor) -> Tensor:
        """The product, of x's type."""
        ...

    def into(self, x: Tensor, out: Tensor) -> None:
        """Write the product to `out`, float32."""
        ...

    def onto(self, x: Tensor, total: Tensor) -> None:
        """Add the product to `total`, float32."""
        ...


def layout(dtype: torch.dtype, n_rows: int) -> Callable[[Tensor], Product]:
    """What turns a weight (O, I) into its product, for steps of up to `n_rows` rows."""
    if dtype == torch.float32 and (n_rows == 1 or not _packs(dtype)):
        return Plain
    if n_rows == 1:
        return OneRow
    return Packed if _packs(dtype) else Rounded


def _packs(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Plain:
    """`torch.mm` in float32."""

    def __init__(self, weight: Tensor) -> None:
        outputs, inputs = weight.shape
        self._weight = weight.clone().t() if inputs > outputs else weight.t().contiguous()  # (I, O)

    def of(self, x: Tensor) -> Tensor:
        return torch.mm(x, self._weight)

    def into(self, x: Tensor, out: Tensor) -> None:
        torch.mm(x, self._weight, out=out)

    def onto(self, x: Tensor, total: Tensor) -> None:
        total.addmm_(x, self._weight)


class Rounded:
    """`torch.mm` in a shorter type."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.t().contiguous()  # (I, O)

    def of(self, x: Tensor) -> Tensor:
        return torch.mm(x, self._weight)

    def into(self, x: Tensor, out: Tensor) -> None:
        out.copy_(self.of(x))

    def onto(self, x: Tensor, total: Tensor) -> None:
        total.add_(self.of(x))


class OneRow(Rounded):
    """One row by `embedding_bag`, with a bag of columns for each thread; several rows (a prompt) by `torch.mm`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        outputs, inputs = weight.shape
        n_bags = torch.get_num_threads()
        self._n_bags = n_bags = n_bags if outputs % n_bags == 0 else 1
        self._parts = self._weight.view(inputs * n_bags, outputs // n_bags)  # row i·T + t: input i, columns of bag t
        bags, rows = torch.arange(n_bags), torch.arange(inputs)
        self._rows = (rows * n_bags + bags.unsqueeze(1)).flatten().int()  # (T·I,)
        self._starts = (bags * inputs).int()  # (T,)

    def of(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            return super().of(x)
        weights = x.expand(self._n_bags, -1).reshape(-1)  # (T·I,)
        parts = F.embedding_bag(self._rows, self._parts, self._starts, mode="sum", per_sample_weights=weights)
        return parts.view(1, -1)  # (T, O/T) to (1, O)


class Packed(Rounded):
    """oneDNN's product of packed weights, in either type."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def of(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")
        return product
