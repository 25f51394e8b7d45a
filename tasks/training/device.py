"""How numbers are computed: threads, determinism, device and precision, all explicit in `params.yaml`."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.errors import UserError

if TYPE_CHECKING:
    from tasks.parameters import Parameters


def setup(params: Parameters) -> torch.device:
    """Set threads, seeds and deterministic algorithms for this process; return the device to train on.

    Raises `UserError` when `device` is cuda and torch sees none.
    """
    if params.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device; set device: cpu in params.yaml")
    set_threads(params.threads)
    random.seed(params.seed)
    np.random.seed(params.seed)
    torch.manual_seed(params.seed)
    return torch.device(params.device)


def set_threads(n_threads: int) -> None:
    """Fix what the bits of a CPU result depend on: the number of threads and the choice of algorithms."""
    torch.set_num_threads(n_threads)
    torch.use_deterministic_algorithms(True)
    # With deterministic algorithms torch fills every new tensor, in case somebody reads what was never written.
    # Nobody here does, and it costs 7 % of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Matrix products in bfloat16 where `precision` says so; weights and sums stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
