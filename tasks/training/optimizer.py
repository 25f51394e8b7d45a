"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tasks.training.parallel import is_part, part_like


def adamw(model: nn.Module, *, learning_rate: float, beta2: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW that decays matrices only: not gains, and not embeddings.

    Embeddings are left out because most of their rows have no gradient in most steps, so that decay alone would
    shrink the rows of rare tokens.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters = [p for p in model.parameters() if p.requires_grad and not p.is_meta]
    matrices = [p for p in parameters if p.ndim >= 2 and id(p) not in embeddings]
    decayed = {id(p) for p in matrices}
    others = [p for p in parameters if id(p) not in decayed]
    decays = [(matrices, weight_decay), (others, 0.0)]
    # The fused update takes parameters that are in parts over the workers, or whole ones, and not both at once.
    kinds = [([p for p in ps if is_part(p) == parts], decay) for ps, decay in decays for parts in (False, True)]
    groups = [{"params": ps, "weight_decay": decay} for ps, decay in kinds if ps]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), eps=1e-8, fused=True)


def warmup_cosine(step: int, *, n_steps: int, warmup_steps: int, peak: float, floor: float) -> float:
    """Learning rate of update `step` (from 0): linear to `peak` in `warmup_steps`, then half a cosine to `floor`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, n_steps - warmup_steps))
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


_STATE = ("exp_avg", "exp_avg_sq", "step")


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by the name of the parameter it belongs to; empty before the first update."""
    state = optimizer.state
    return {f"{name}.{key}": state[p][key] for name, p in model.named_parameters() if p in state for key in _STATE}


def load_state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `state_tensors`."""
    for name, p in model.named_parameters():
        if f"{name}.step" in tensors and not p.is_meta:
            # `step` stays a CPU scalar for a CPU parameter and lives on the device in a fused CUDA optimiser.
            found = {key: tensors[f"{name}.{key}"].to(p.device).clone() for key in _STATE}
            moments = {key: part_like(found[key], p) for key in _STATE if found[key].ndim}
            optimizer.state[p] = {**found, **moments}
