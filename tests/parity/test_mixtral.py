"""Decoders with routed experts: Mixtral against transformers, Switch against itself without routing or dropping."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import MixtralForCausalLM

from axon_models.checkpoint import load, save
from tests.axon_models.small import some_tokens
from tests.parity.compare import (
    assert_cached_is_uncached,
    assert_same_when_padded,
    gradients_of,
    reference,
    small,
    without_padding,
)

SHAPES = {
    "own": {},
    "three_of_five_windowed": {"experts": 5, "window": 6, "kv_heads": 1},
    # Widths in fours, because torch's grouped product, which transformers uses, needs rows of 16 bytes.
    "odd": {"d_model": 28, "heads": 7, "n_layers": 1, "vocab_size": 131, "d_feed_forward": 12, "norm_eps": 1e-3},
    "untied": {"tied_embeddings": False},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_router_loss_and_gradients_equal_mixtrals(shape: str, tmp_path: Path) -> None:
    ours = small("mixtral", **SHAPES[shape])
    theirs = reference(ours, tmp_path)
    assert type(theirs) is MixtralForCausalLM
    assert load(tmp_path).config == ours.config
    assert_same_when_padded(ours, theirs)
    tokens = without_padding(some_tokens(1, 23))  # one row: transformers' loss is of a whole batch, ours of each row
    answer = theirs(tokens, labels=tokens, output_router_logits=True)
    hidden, penalty = ours.hidden_and_penalty(tokens)
    logits = hidden @ ours.output_weight.T
    torch.testing.assert_close(logits, answer.logits, atol=1e-4, rtol=0)
    assert penalty is not None
    torch.testing.assert_close(penalty[0], 0.02 * answer.aux_loss, atol=1e-5, rtol=1e-5)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]) + penalty[0]
    torch.testing.assert_close(loss, answer.loss, atol=1e-4, rtol=0)
    loss.backward()
    answer.loss.backward()
    save_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    found = gradients_of(ours)
    checked = 0
    for name, wanted in save_gradients.items():
        if name in found:
            torch.testing.assert_close(found[name], wanted, atol=1e-3, rtol=1e-3)
            checked += 1
    for layer, block in enumerate(theirs.model.layers):
        inner = ours.blocks[layer].feed_forward  # type: ignore[union-attr]
        for mine, other in (
            (inner.router.weight, block.mlp.gate.weight),  # type: ignore[union-attr]
            (inner.experts.gate_up, block.mlp.experts.gate_up_proj),  # type: ignore[union-attr]
            (inner.experts.down, block.mlp.experts.down_proj),  # type: ignore[union-attr]
        ):
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-3, rtol=1e-3)
            checked += 1
    assert checked == len(save_gradients)


@pytest.mark.parametrize("preset", ["mixtral", "switch"])
def test_cached_is_uncached(preset: str) -> None:
    assert_cached_is_uncached(small(preset).eval())


def test_a_windowed_mixtral_has_a_rolling_cache() -> None:
    assert_cached_is_uncached(small("mixtral", window=6).eval(), rolling=True)


@pytest.mark.parametrize("preset", ["mixtral", "switch"])
def test_the_penalties_of_rows_are_those_of_each_alone_and_padding_does_not_count(preset: str) -> None:
    model = small(preset).eval()  # in training, Switch's capacity depends on the padded length
    tokens, lengths = some_tokens(3, 12), (12, 5, 9)
    counted = torch.arange(12) < torch.tensor(lengths)[:, None]
    together = model.hidden_and_penalty(tokens, counted=counted)[1]
    assert together is not None
    for row, length in enumerate(lengths):
        alone = model.hidden_and_penalty(tokens[row : row + 1, :length])[1]
        assert alone is not None
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)


def test_dense_models_have_no_penalty() -> None:
    model, tokens = small("x_llama"), some_tokens(2, 7)
    hidden, penalty = model.hidden_and_penalty(tokens)
    assert penalty is None
    assert torch.equal(hidden, model.hidden(tokens))


def test_a_switch_of_ample_capacity_drops_nothing_and_one_expert_is_a_dense_layer() -> None:
    from dataclasses import replace

    from axon_models.decoder.model import Decoder

    tight = small("switch", n_layers=2)
    assert tight.config.experts is not None
    ample = Decoder(replace(tight.config, experts=replace(tight.config.experts, capacity_factor=8.0)))
    ample.load_state_dict(tight.state_dict())
    tokens = some_tokens(2, 24)
    torch.testing.assert_close(ample.train()(tokens), tight.eval()(tokens), atol=1e-5, rtol=0)
    assert not torch.allclose(tight.train()(tokens), ample(tokens), atol=1e-2)

    alone = small("switch", experts=1)
    dense = Decoder(replace(alone.config, experts=None))
    state = {
        name.replace("experts.down", "down.weight").replace("experts.up", "up.weight"): tensor.squeeze(0)
        for name, tensor in alone.state_dict().items()
        if "router" not in name
    }
    dense.load_state_dict({name: tensor.view(dense.state_dict()[name].shape) for name, tensor in state.items()})
    torch.testing.assert_close(alone.eval()(tokens), dense(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("preset", ["pygpt", "gpt3_sparse", "switch"])
def test_a_model_without_a_class_in_transformers_says_so_and_round_trips(preset: str, tmp_path: Path) -> None:
    import json

    ours = small(preset).eval()
    save(ours, tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    assert tree["model_type"] == f"axon_{preset}"
    assert "axon_models.load" in tree["note"]
    again = load(tmp_path)
    assert again.config == ours.config
    tokens = some_tokens(2, 9)
    assert torch.equal(again(tokens), ours(tokens))
