"""−log p of a stream of tokens under a model."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# N tokens of a chunk, R rows (windows), T time, V vocabulary


@torch.no_grad()
def total_nats(module: Callable[[Tensor], Tensor], stream: np.ndarray, *, seq_len: int, separator: int) -> float:
    """−log p of every token of `stream` (N,), the first given `separator`; windows of `seq_len` tokens.

    `module(tokens (R, T) int64) -> logits (R, T, V)`. The sum is taken in float64.
    """
    n_tokens = len(stream)
    n_rows = math.ceil(n_tokens / seq_len)
    targets = torch.full((n_rows * seq_len,), -1, dtype=torch.int64)  # (R·T,); -1 is past the end
    targets[:n_tokens] = torch.from_numpy(stream.astype(np.int64))
    inputs = torch.cat([torch.tensor([separator]), targets[:-1].clamp(min=0)])  # (R·T,)
    logits = module(inputs.view(n_rows, seq_len)).float().cpu()  # (R, T, V)
    nats = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=-1, reduction="none")  # (R·T,)
    return float(nats.double().sum())
