"""GPT-1, GPT-2, PyGPT and the sparse GPT-3 against transformers, which reads what `checkpoint.save` writes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM, OpenAIGPTLMHeadModel

from axon_models.checkpoint import load
from axon_models.decoder.families.family import Piece, both, stacked, whole
from axon_models.decoder.families.gpt import GPT2
from axon_models.decoder.model import Decoder
from axon_models.decoder.presets import config_of
from tests.axon_models.small import some_tokens
from tests.parity.compare import (
    assert_cached_is_uncached,
    assert_same,
    assert_same_when_padded,
    load_cut,
    reference,
    small,
)

ODD = {"d_model": 30, "heads": 5, "vocab_size": 131, "d_feed_forward": 37}
SHAPES = {
    "gpt2": ("gpt2", {}),
    "gpt2_odd": ("gpt2", {**ODD, "n_layers": 1}),
    "gpt2_one_head": ("gpt2", {"heads": 1, "norm_eps": 1e-3}),
    "gpt2_untied": ("gpt2", {"tied_embeddings": False}),
    "gpt": ("gpt", {}),
    "gpt_odd": ("gpt", {"d_model": 30, "heads": 5, "n_layers": 1, "vocab_size": 131}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_equal_transformers(shape: str, tmp_path: Path) -> None:
    preset, sizes = SHAPES[shape]
    ours = small(preset, **sizes)
    theirs = reference(ours, tmp_path)
    assert type(theirs) is {"gpt2": GPT2LMHeadModel, "gpt": OpenAIGPTLMHeadModel}[preset]
    assert_same(ours, theirs)
    assert_same_when_padded(ours, theirs)
    again = load(tmp_path)
    assert again.config == ours.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("preset", ["gpt2", "gpt", "pygpt", "gpt3_sparse"])
def test_cached_is_uncached(preset: str) -> None:
    assert_cached_is_uncached(small(preset))


def as_gpt2(ours: Decoder, positions: torch.Tensor) -> tuple[GPT2LMHeadModel, dict[str, Piece]]:
    """transformers' GPT-2 with our weights and with `positions` (P, D) for its own, and what our tensors are there."""
    c = ours.config
    sizes = {"vocab_size": c.vocab_size, "n_embd": c.d_model, "n_layer": c.n_layers, "n_head": c.heads}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=c.max_positions, n_inner=c.d_feed_forward, **dropout))
    theirs.transformer.wpe.weight.requires_grad_(False).copy_(positions)
    pieces = GPT2.pieces(c)
    load_cut(theirs, pieces, ours)
    return theirs, pieces


def sinusoids(n_positions: int, d_model: int) -> torch.Tensor:
    """Vaswani et al. 2017, section 3.5, number by number."""
    table = torch.empty(n_positions, d_model)
    for p in range(n_positions):
        for i in range(d_model):
            angle = p / 10000 ** ((i - i % 2) / d_model)
            table[p, i] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
    return table


@pytest.mark.parametrize(
    ("sizes", "scale"), [({}, 0.02 * 2**0.5), ({"heads": 1, "position_scale": 1.0}, 1.0), (ODD, 0.02 * 2**0.5)]
)
def test_pygpt_is_gpt2_with_sinusoids_for_positions(sizes: dict[str, float], scale: float) -> None:
    ours = small("pygpt", **sizes)
    theirs, pieces = as_gpt2(ours, scale * sinusoids(64, ours.config.d_model))
    assert_same(ours, theirs, pieces=pieces)
    assert_same_when_padded(ours, theirs, pieces=pieces)


def test_the_sinusoids_of_pygpt_are_as_large_as_its_embedding_at_the_start() -> None:
    model = Decoder(config_of("pygpt", vocab_size=512, d_model=64, n_layers=1, heads=2, max_positions=128))
    model.init_weights(torch.Generator().manual_seed(0))
    table = model.get_buffer("positions.table")
    assert table.square().mean().sqrt() == pytest.approx(0.02, rel=1e-5)
    assert model.embedding.weight.detach().std() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("preset", ["pygpt", "gpt", "gpt3_sparse", "phi", "mistral"])
def test_gradients_are_finite_differences(preset: str) -> None:
    """Along random directions, in float64: (L(w + h·u) − L(w − h·u)) / 2h."""
    model, tokens = small(preset, heads=2, max_positions=16, n_layers=2).double(), some_tokens(2, 11)

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    loss().backward()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        u = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        assert parameter.grad is not None
        slope, h = float((parameter.grad * u).sum()), 1e-6
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter.add_(u, alpha=sign * h)
                values.append(float(loss()))
                parameter.sub_(u, alpha=sign * h)
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(slope, abs=1e-6, rel=1e-5), name


def test_a_sparse_gpt3_whose_windows_hide_nothing_is_gpt2() -> None:
    dense, sparse = small("gpt2"), small("gpt3_sparse", window=23)
    tokens = some_tokens(2, 23)
    assert torch.equal(sparse(tokens), dense(tokens))
    assert not torch.allclose(small("gpt3_sparse", window=5)(tokens), dense(tokens), atol=1e-2)


def as_gpt_neo(ours: Decoder) -> tuple[GPTNeoForCausalLM, dict[str, Piece]]:
    """transformers' GPT-Neo with our weights, and what our tensors are there.

    It alternates global and local layers too. Biases before attention and the division by √d, which it lacks, are
    added to its own layers.
    """
    c = ours.config
    sizes = {"vocab_size": c.vocab_size, "hidden_size": c.d_model, "num_heads": c.heads, "num_layers": c.n_layers}
    sizes |= {"intermediate_size": c.d_feed_forward, "max_position_embeddings": c.max_positions}
    kinds = [[["global", "local"], c.n_layers // 2]]
    theirs = GPTNeoForCausalLM(GPTNeoConfig(**sizes, attention_types=kinds, window_size=c.window))
    pieces = GPT2.pieces(c)
    for layer, block in enumerate(theirs.transformer.h):
        inner, name = block.attn.attention, f"transformer.h.{layer}."
        inner.q_proj, inner.k_proj, inner.v_proj = (nn.Linear(c.d_model, c.d_model) for _ in range(3))
        inner.q_proj.register_forward_hook(lambda _layer, _x, q: q / math.sqrt(c.head_dim))
        qkv = [f"attn.attention.{one}_proj" for one in "qkv"]
        linears = {
            "attention.qkv": stacked(qkv, (c.d_model,) * 3),
            "attention.output": whole("attn.attention.out_proj"),
            "feed_forward.up": whole("mlp.c_fc"),
            "feed_forward.down": whole("mlp.c_proj"),
        }
        pieces |= both(linears, of=f"blocks.{layer}.", named=name)
    load_cut(theirs, pieces, ours)
    return theirs, pieces


@pytest.mark.parametrize("sizes", [{"n_layers": 4, "window": 6}, {**ODD, "n_layers": 2, "window": 3}])
def test_banded_layers_equal_gpt_neos_local_attention(sizes: dict[str, int]) -> None:
    ours = small("gpt3_sparse", **sizes)
    theirs, pieces = as_gpt_neo(ours)
    assert_same(ours, theirs, pieces=pieces)
    assert_same_when_padded(ours, theirs, pieces=pieces)


def test_a_gpt2_directory_of_older_writers_loads(tmp_path: Path) -> None:
    """Without the prefix, with tables of masks, and the tied matrix twice: as the released files are."""
    from safetensors.torch import load_file, save_file

    ours = small("gpt2")
    theirs = reference(ours, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old["lm_head.weight"] = old["wte.weight"].clone()
    old["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    save_file(old, tmp_path / "model.safetensors")
    tokens = some_tokens(2, 9)
    torch.testing.assert_close(load(tmp_path)(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)
