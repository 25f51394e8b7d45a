"""What training changes, as named tensors and back: weights, optimiser and random number generators."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tasks.training import optimizer as optimizers
from tasks.training.checkpoint import prefixed, without_prefix
from tasks.training.parallel import part_like


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What training changes of `model` (its parameters, tied ones once) and `optimizer`, as far as it is here."""
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad and not p.is_meta}
    return {
        **prefixed("model.", weights),
        **prefixed("optimizer.", optimizers.state_tensors(model, optimizer)),
    }


def load_training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `training_tensors`. Raises KeyError or RuntimeError if the tensors are another model's."""
    weights = without_prefix("model.", tensors)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(part_like(weights[name], p))
    optimizers.load_state_tensors(model, optimizer, without_prefix("optimizer.", tensors))


def generator_tensors() -> dict[str, Tensor]:
    """The states of torch's own generators. Our sampling is stateless; this guards code that is not."""
    states = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["rng.cuda"] = torch.cuda.get_rng_state()
    return states


def load_generator_tensors(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["rng.cpu"].cpu())
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"].cpu())
