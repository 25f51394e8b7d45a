"""Decoders with routed experts against transformers: Mixtral, and Llama with the layers of Switch Transformers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralForCausalLM, SwitchTransformersConfig
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from axon_models.checkpoint import load, save
from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.families.family import Piece, per_expert, whole
from axon_models.decoder.families.llama import LLAMA, MIXTRAL
from axon_models.decoder.model import Decoder
from tests.axon_models.small import some_tokens
from tests.parity.compare import (
    assert_cached_is_uncached,
    assert_same,
    assert_same_gradients,
    assert_same_when_padded,
    load_cut,
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
    pieces = in_memory(ours.config)
    assert_same_when_padded(ours, theirs, pieces=pieces)
    tokens = without_padding(some_tokens(1, 23))  # one row: transformers' loss is of a whole batch, ours of each row
    answer = theirs(tokens, labels=tokens, output_router_logits=True)
    hidden, penalty = ours.hidden_and_penalty(tokens)
    logits = hidden @ ours.output_weight.T
    torch.testing.assert_close(logits, answer.logits, atol=1e-4, rtol=0)
    assert penalty is not None
    torch.testing.assert_close(penalty[0], 0.02 * answer.aux_loss, atol=1e-5, rtol=1e-5)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]) + penalty[0]
    torch.testing.assert_close(loss, answer.loss, atol=1e-4, rtol=0)
    assert_same_gradients(ours, theirs, loss, answer.loss, pieces=pieces)


def in_memory(config: DecoderConfig) -> dict[str, Piece]:
    """Mixtral's tensors as transformers 5 holds them once they are read: the experts of a layer in one."""
    pieces = MIXTRAL.pieces(config)
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.feed_forward.", f"model.layers.{layer}.mlp."
        pieces[f"{ours}router.weight"] = whole(f"{theirs}gate.weight")
        pieces[f"{ours}experts.gate_up"] = whole(f"{theirs}experts.gate_up_proj")
        pieces[f"{ours}experts.down"] = whole(f"{theirs}experts.down_proj")
    return pieces


def as_switch(ours: Decoder, capacity: int) -> tuple[LlamaForCausalLM, dict[str, Piece]]:
    """transformers' Llama with its Switch layers, our weights in it; and what our tensors are there."""
    c = ours.config
    assert c.experts is not None
    sizes = {"hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "num_attention_heads": c.heads}
    sizes |= {"num_key_value_heads": c.kv_heads, "vocab_size": c.vocab_size}
    theirs = LlamaForCausalLM(LlamaConfig(**sizes, rms_norm_eps=c.norm_eps, tie_word_embeddings=c.tied_embeddings))
    routing = {"num_experts": c.experts.n, "expert_capacity": capacity, "router_jitter_noise": 0.0}
    layer_sizes = SwitchTransformersConfig(d_model=c.d_model, d_ff=c.d_feed_forward, dropout_rate=0.0, **routing)
    pieces = LLAMA.pieces(c)
    for layer, block in enumerate(theirs.model.layers):
        block.mlp = SwitchTransformersSparseMLP(layer_sizes)
        inside = f"model.layers.{layer}.mlp."
        for name, other, rows in (("up", "wi", c.d_feed_forward), ("down", "wo", c.d_model)):
            names = [(f"{inside}experts.expert_{expert}.{other}.weight",) for expert in range(c.experts.n)]
            pieces[f"blocks.{layer}.feed_forward.experts.{name}"] = per_expert(names, (rows,))
        pieces[f"blocks.{layer}.feed_forward.router.weight"] = whole(f"{inside}router.classifier.weight")
    load_cut(theirs, pieces, ours)
    return theirs, pieces


@pytest.mark.parametrize("sizes", [{}, {"d_model": 30, "heads": 5, "experts": 3, "d_feed_forward": 7, "n_layers": 2}])
def test_switch_equals_llama_with_switch_transformers_layers(sizes: dict[str, int]) -> None:
    """In evaluation, where no expert is full; and in training, where the tokens past its capacity are dropped.

    Padded rows are compared in evaluation alone: in training capacity follows from the padded length.
    """
    ours = small("switch", **sizes).eval()
    theirs, pieces = as_switch(ours, capacity=1000)
    assert_same(ours, theirs, pieces=pieces)
    assert_same_when_padded(ours, theirs, pieces=pieces)
    assert ours.config.experts is not None
    capacity = math.ceil(ours.config.experts.capacity_factor * 23 / ours.config.experts.n)
    dropping, pieces = as_switch(ours, capacity=capacity)
    assert_same(ours.train(), dropping, pieces=pieces)
    assert not torch.allclose(ours(some_tokens(3, 23)), theirs(some_tokens(3, 23)).logits, atol=1e-2)


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
    ours = small(preset).eval()
    save(ours, tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    assert tree["model_type"] == f"axon_{preset}"
    assert "axon_models.load" in tree["note"]
    again = load(tmp_path)
    assert again.config == ours.config
    tokens = some_tokens(2, 9)
    assert torch.equal(again(tokens), ours(tokens))
