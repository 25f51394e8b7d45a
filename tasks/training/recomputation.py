"""Activation checkpointing: less memory for more time, and the same bytes (Chen et al. 2016, "Training Deep Nets with
Sublinear Memory Cost", section 4.2).
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from axon_models.layers.block import ModelBlock


def recompute_activations(model: nn.Module) -> None:
    """Have every block of `model` keep its inputs alone for the backward pass, and compute the rest again there.

    The second computation runs the same kernels on the same numbers in the same precision, so gradients have the same
    bits. Without gradients nothing changes. Blocks have no dropout: no state of a random number generator is kept.
    """
    for block in model.modules():
        if isinstance(block, ModelBlock):
            # On the instance, so that parameters keep their names, and inside of what FSDP hooks onto a call.
            block.__dict__["forward"] = partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )
