"""Products of a few rows with weights that stay, each weight laid out once in the order that its product reads fastest.

What is fastest depends on how many rows there will be and on the type. For the weights of a 5.5 M decoder, of which a
step reads each once, on one and on two threads of an AMD Zen 4:
  one row: `embedding_bag`, which sums weighted rows of a matrix, 0.8 and 0.5 ms in float32 (packed 1.2 and 0.8,
    `torch.mm` 1.5 and 1.0), 0.4 and 0.3 ms in bfloat16 (packed 0.6 and 0.5, `torch.mm` 1.0 and 0.7).
  more rows: oneDNN's packed weights (what `torch.compile` freezes a linear layer into). 64 rows on one thread: 9 ms in
    float32 (`torch.mm` 11), 4.8 in bfloat16 (6). Where this build of torch has none, `torch.mm`.
"""
# N rows, I inputs, O outputs, T blocks of columns

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)
_BLOCK = 256  # columns


class Product(Protocol):
    """x (N, I) · weight + bias to (N, O), x and weight of one type; nothing is differentiated."""

    def of(self, x: Tensor) -> Tensor:
        """The product, of x's type."""
        ...

    def into(self, x: Tensor, out: Tensor) -> None:
        """Write the product to `out`, float32."""
        ...

    def onto(self, x: Tensor, total: Tensor) -> None:
        """Add the product to `total`, float32."""
        ...


def layout(dtype: torch.dtype, n_rows: int) -> Callable[[Tensor, Tensor | None], Product]:
    """What turns a weight (O, I) and a bias (O,) or none into their product, for steps of up to `n_rows` rows."""
    if n_rows == 1:
        return OneRow
    return Packed if _packs(dtype) else Plain


def _packs(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Plain:
    """`torch.mm`, in either type. A bias is float32 where the result is."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._hold(weight)
        self._bias = None if bias is None else bias.float()
        self._rounded_bias = None if bias is None else bias.to(weight.dtype)

    def of(self, x: Tensor) -> Tensor:
        y = self._times(x)
        return y if self._rounded_bias is None else y.add_(self._rounded_bias)

    def into(self, x: Tensor, out: Tensor) -> None:
        if self._bias is None:
            out.copy_(self._times(x))
        else:
            torch.add(self._times(x), self._bias, out=out)

    def onto(self, x: Tensor, total: Tensor) -> None:
        total.add_(self._times(x))
        if self._bias is not None:
            total.add_(self._bias)

    def _hold(self, weight: Tensor) -> None:
        """Lay out the weight (O, I)."""
        self._weight = weight.t().contiguous()  # (I, O)

    def _times(self, x: Tensor) -> Tensor:
        """x (N, I) · weight, (N, O)."""
        return torch.mm(x, self._weight)


class OneRow(Plain):
    """One row by `embedding_bag`, several rows (a prompt) by `torch.bmm`.

    The columns stand in blocks, each the rows of one bag, one behind the other in memory: read in columns of the whole
    matrix it would take twice as long, and bags are what threads share.
    """

    def _hold(self, weight: Tensor) -> None:
        outputs, inputs = weight.shape
        n_bags = next(n for n in range(max(1, outputs // _BLOCK), 0, -1) if outputs % n == 0)
        self._blocks = weight.t().unflatten(1, (n_bags, -1)).transpose(0, 1).contiguous()  # (T, I, O/T)
        self._flat = self._blocks.flatten(0, 1)  # (T·I, O/T)
        self._rows = torch.arange(n_bags * inputs, dtype=torch.int32)
        self._starts = self._rows[::inputs].contiguous()  # (T,)
        self._n_bags = n_bags

    def _times(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            return torch.bmm(x.expand(self._n_bags, -1, -1), self._blocks).transpose(0, 1).flatten(1)
        weights = x.view(-1) if self._n_bags == 1 else x.expand(self._n_bags, -1).reshape(-1)  # (T·I,)
        # What `F.embedding_bag` calls, without its checks, which take as long as a small product: mode 0 is the sum.
        parts = torch.embedding_bag(self._flat, self._rows, self._starts, False, 0, False, weights)[0]
        return parts.view(1, -1)  # (T, O/T) to (1, O)


class Packed(Plain):
    """oneDNN's product of packed weights, in either type."""

    def _hold(self, weight: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def _times(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")
        return product
