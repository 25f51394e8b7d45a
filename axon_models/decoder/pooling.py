"""From multi-head to grouped-query or multi-query attention: the mean of the heads of each group.

Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", section 2.1
and figure 1: key and value projections are mean-pooled, which they found better than taking one head or new ones.
"""
# D model, H query heads, G kv heads before, P after, d head dimension

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from axon_models.decoder.model import Decoder
from axon_models.errors import ConfigError

_POOLED = ("attention.qkv.weight", "attention.qkv.bias")


def pooled(model: Decoder, kv_heads: int) -> Decoder:
    """The decoder with `kv_heads` key and value heads, each the mean of those that its queries shared before.

    On the device of `model`, in its mode; its other weights are equal. Raises `ConfigError` unless `kv_heads` divides
    the number of heads that there are.
    """
    config = model.config
    if kv_heads < 1 or config.kv_heads % kv_heads:
        raise ConfigError(f"kv_heads={kv_heads} must divide the {config.kv_heads} key and value heads of this model")
    smaller = Decoder(replace(config, kv_heads=kv_heads)).to(model.embedding.weight.device)
    smaller.load_state_dict(
        {
            name: pool_rows(tensor, heads=config.heads, before=config.kv_heads, after=kv_heads)
            if name.endswith(_POOLED)
            else tensor
            for name, tensor in model.state_dict().items()
        }
    )
    return smaller.train(model.training)


def pool_rows(qkv: Tensor, *, heads: int, before: int, after: int) -> Tensor:
    """Rows of the product that makes queries, keys and values, ((H+2G)·d, …) to ((H+2P)·d, …).

    Neighbouring heads are one group, as queries are dealt to them (query h has head h // (H/G)).
    """
    by_head = qkv.unflatten(0, (heads + 2 * before, -1))  # (H+2G, d, …)
    queries, *keys_and_values = by_head.split((heads, before, before))
    means = [part.unflatten(0, (after, before // after)).mean(1) for part in keys_and_values]  # (P, d, …)
    return torch.cat([queries, *means]).flatten(0, 1)
