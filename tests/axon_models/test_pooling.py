"""Pooling of key and value heads: by hand, where it loses nothing, and by the slow path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from axon_models.decoder.model import Decoder
from axon_models.decoder.pooling import pool_rows, pooled
from axon_models.errors import ConfigError
from tests.axon_models.small import small_decoder, some_tokens

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "biases": {"family": "phi", "biases": True, "block": "parallel", "norm": "layer", "feed_forward": "gelu_tanh"},
    "sliced": {"pretraining_tp": 2, "d_feed_forward": 36},
}


def share_heads(model: Decoder, group: int) -> None:
    """Make the keys and values of each `group` of neighbouring heads equal to those of the first."""
    heads, before = model.config.heads, model.config.kv_heads
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "attention.qkv" in name:
                rows = tensor.view(heads + 2 * before, model.config.head_dim, -1)
                for start in range(heads, heads + 2 * before, group):
                    rows[start : start + group] = rows[start].clone()


SIZES = [
    *((kind, *heads) for kind in ("llama", "biases") for heads in ((6, 3), (6, 2), (6, 1), (2, 1))),
    ("sliced", 6, 2),
]


@pytest.mark.parametrize(("kind", "before", "after"), SIZES)
def test_pooling_identical_heads_loses_nothing(kind: str, before: int, after: int) -> None:
    model = small_decoder(**{**KINDS[kind], "kv_heads": before})
    share_heads(model, before // after)
    tokens = some_tokens(2, 17)
    smaller = pooled(model, after)
    assert smaller.config.kv_heads == after
    assert sum(p.numel() for p in smaller.parameters()) == smaller.config.n_parameters < model.config.n_parameters
    with torch.no_grad():
        torch.testing.assert_close(smaller(tokens), model(tokens), atol=1e-5, rtol=1e-5)


def test_heads_that_differ_are_not_the_same_model() -> None:
    model = small_decoder(kv_heads=6)
    tokens = some_tokens(2, 17)
    with torch.no_grad():
        assert (pooled(model, 3)(tokens) - model(tokens)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["llama", "biases"])
def test_as_many_heads_as_before_is_the_identity(kind: str) -> None:
    model = small_decoder(**{**KINDS[kind], "kv_heads": 6}).eval()
    same = pooled(model, 6)
    assert same.config == model.config
    assert not same.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)


def test_means_by_hand() -> None:
    """Two query heads, four heads of keys and four of values, of one dimension each; two inputs."""
    queries = [[1.0, -1.0]] * 4
    keys = [[2.0, 0.0], [4.0, 2.0], [10.0, 1.0], [20.0, 3.0]]
    values = [[0.0, 0.0], [0.0, 8.0], [-1.0, 5.0], [1.0, 6.0]]
    found = pool_rows(torch.tensor(queries + keys + values), heads=4, before=4, after=2)
    by_hand = [*queries, [3.0, 1.0], [15.0, 2.0], [0.0, 4.0], [0.0, 5.5]]
    assert found.tolist() == by_hand
    one = pool_rows(torch.tensor(queries + keys + values), heads=4, before=4, after=1)
    assert one.tolist() == [*queries, [9.0, 1.5], [0.0, 4.75]]
    bias = pool_rows(torch.tensor([1.0, 1.0, 2.0, 4.0, 6.0, 10.0]), heads=2, before=2, after=1)
    assert bias.tolist() == [1.0, 1.0, 3.0, 8.0]


def test_dimensions_of_a_head_are_not_mixed() -> None:
    """The slow path: head by head, row by row."""
    model = small_decoder(kv_heads=6)
    config, smaller = model.config, pooled(model, 2)
    dim, width = config.head_dim, config.heads * config.head_dim
    for before, after in zip(model.blocks, smaller.blocks, strict=True):
        old: Tensor = before.get_parameter("attention.qkv.weight")
        new: Tensor = after.get_parameter("attention.qkv.weight")
        assert torch.equal(new[:width], old[:width])
        for part in range(2):  # keys, values
            for group in range(2):
                for row in range(dim):
                    taken = [old[width + part * width + (3 * group + i) * dim + row] for i in range(3)]
                    found = new[width + part * 2 * dim + group * dim + row]
                    torch.testing.assert_close(found, (taken[0] + taken[1] + taken[2]) / 3)


@pytest.mark.parametrize(("before", "after"), [(6, 4), (6, 0), (6, -2), (2, 6), (2, 3)])
def test_what_does_not_divide_the_heads_is_refused(before: int, after: int) -> None:
    with pytest.raises(ConfigError, match=f"kv_heads={after} must divide the {before} key and value heads"):
        pooled(small_decoder(kv_heads=before), after)
