"""GPT-1, GPT-2, PyGPT and the sparse GPT-3 against transformers, which reads what `checkpoint.save` writes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM, OpenAIGPTLMHeadModel

from axon_models.checkpoint import load
from axon_models.decoder.families.gpt import GPT2
from axon_models.decoder.model import Decoder
from axon_models.decoder.presets import config_of
from tests.axon_models.small import some_tokens
from tests.parity.compare import (
    assert_cached_is_uncached,
    assert_same,
    assert_same_when_padded,
    reference,
    small,
)

SHAPES = {
    "gpt2": ("gpt2", {}),
    "gpt2_odd": ("gpt2", {"d_model": 30, "heads": 5, "n_layers": 1, "vocab_size": 131, "d_feed_forward": 37}),
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


def as_gpt2(ours: Decoder, positions: torch.Tensor) -> GPT2LMHeadModel:
    """transformers' GPT-2 with our weights and with `positions` (P, D) for its own."""
    c = ours.config
    sizes = {"vocab_size": c.vocab_size, "n_embd": c.d_model, "n_layer": c.n_layers, "n_head": c.heads}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=c.max_positions, n_inner=c.d_feed_forward, **dropout))
    state = {**ours.state_dict(), "positions.table.weight": positions}
    pieces = GPT2.pieces(c)
    tensors = {n: t for ours, p in pieces.items() for n, t in zip(p.names, p.cut(state[ours]), strict=True)}
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    return theirs.eval()


def sinusoids(n_positions: int, d_model: int) -> torch.Tensor:
    """Vaswani et al. 2017, section 3.5, number by number."""
    table = torch.empty(n_positions, d_model)
    for p in range(n_positions):
        for i in range(d_model):
            angle = p / 10000 ** ((i - i % 2) / d_model)
            table[p, i] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
    return table


@pytest.mark.parametrize(("heads", "sizes", "scale"), [(4, {}, 0.02 * 2**0.5), (1, {"position_scale": 1.0}, 1.0)])
def test_pygpt_is_gpt2_with_sinusoids_for_positions(heads: int, sizes: dict[str, float], scale: float) -> None:
    ours = small("pygpt", heads=heads, **sizes)
    theirs = as_gpt2(ours, scale * sinusoids(64, 24))
    tokens = some_tokens(3, 23)
    logits, wanted = ours(tokens), theirs(tokens).logits
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    for values in (logits, wanted):
        F.cross_entropy(values[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for layer in range(3):
        weight = ours.blocks[layer].attention.qkv.weight  # type: ignore[union-attr]
        theirs_grad = theirs.transformer.h[layer].attn.c_attn.weight.grad
        torch.testing.assert_close(weight.grad.t(), theirs_grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ours.embedding.weight.grad, theirs.lm_head.weight.grad, atol=1e-3, rtol=1e-3)


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


def test_banded_layers_equal_gpt_neos_local_attention() -> None:
    """GPT-Neo alternates global and local layers too; it has no biases before attention, and no division by √d."""
    ours = small("gpt3_sparse", n_layers=4, window=6, d_feed_forward=50)
    config = GPTNeoConfig(
        vocab_size=67, max_position_embeddings=64, hidden_size=24, num_layers=4, num_heads=4, intermediate_size=50,
        attention_types=[[["global", "local"], 2]], window_size=6,
    )  # fmt: skip
    theirs = GPTNeoForCausalLM(config).eval()
    with torch.no_grad():
        for block, other in zip(ours.blocks, theirs.transformer.h, strict=True):
            block.attention.qkv.bias.zero_()  # type: ignore[union-attr]
            inner = other.attn.attention
            q, k, v = block.attention.qkv.weight.split(24)  # type: ignore[union-attr]
            for target, value in ((inner.q_proj, q / math.sqrt(6)), (inner.k_proj, k), (inner.v_proj, v)):
                target.weight.copy_(value)
            for target, source in (
                (inner.out_proj, block.attention.output),
                (other.ln_1, block.attention_norm),
                (other.ln_2, block.feed_forward_norm),
                (other.mlp.c_fc, block.feed_forward.up),  # type: ignore[union-attr]
                (other.mlp.c_proj, block.feed_forward.down),  # type: ignore[union-attr]
            ):
                target.load_state_dict(source.state_dict())  # type: ignore[union-attr]
        theirs.transformer.ln_f.load_state_dict(ours.norm.state_dict())
        theirs.transformer.wte.weight.copy_(ours.embedding.weight)
        theirs.transformer.wpe.weight.copy_(ours.positions.table.weight)  # type: ignore[union-attr]
        tokens = some_tokens(2, 40)
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


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
