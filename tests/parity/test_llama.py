"""The decoder against transformers' Llama, which reads the directories that `checkpoint.save` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from axon_models.checkpoint import load, load_scalar_model, save
from axon_models.decoder.config import RopeScaling
from axon_models.decoder.hugging_face import from_tensors, to_tensors
from axon_models.generation.engine import generate
from axon_models.layers.attend import causal
from axon_models.layers.language_model import ScalarModel, scalar_head
from axon_models.layers.rotary import rotate
from axon_models.model_files import PAD_ID
from tasks.alignment import rewards
from tests.axon_models.small import small_decoder, some_tokens
from tests.parity.compare import (
    assert_cached_is_uncached,
    assert_same,
    assert_same_when_padded,
    reference,
    small,
    without_padding,
)

SHAPES = {
    "gqa": {},
    "mha": {"kv_heads": 6},
    "mqa": {"kv_heads": 1},
    "one_layer_odd": {"d_model": 30, "heads": 5, "kv_heads": 5, "n_layers": 1, "vocab_size": 131},
    "untied": {"tied_embeddings": False},
    "other_theta_and_eps": {"rope_theta": 500.0, "norm_eps": 1e-3},
}

SCALINGS = {
    "linear": RopeScaling(kind="linear", factor=2.5),
    "dynamic": RopeScaling(kind="dynamic", factor=4.0),
}


@pytest.mark.parametrize("n_tokens", [12, 16, 17, 40])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaled_rotary_positions_equal_llamas(scaling: str, n_tokens: int, tmp_path: Path) -> None:
    """Dynamic scaling trained on 16 positions: below, at and past them."""
    ours = small("x_llama", rope_scaling=SCALINGS[scaling])
    theirs = reference(ours, tmp_path)
    assert theirs.config.max_position_embeddings == {"linear": 64, "dynamic": 16}[scaling]
    assert load(tmp_path).config == ours.config
    assert_same(ours, theirs, shape=(2, n_tokens))
    changed = not torch.allclose(ours(some_tokens(1, n_tokens)), small("x_llama")(some_tokens(1, n_tokens)), atol=1e-3)
    assert changed == (scaling == "linear" or n_tokens > 16)


def test_dynamic_scaling_of_a_row_depends_on_that_row_alone() -> None:
    model = small("x_llama", rope_scaling=SCALINGS["dynamic"])
    tokens, lengths = some_tokens(2, 40), (40, 21)
    positions = torch.stack([torch.arange(40), torch.arange(40).clamp(max=20)])
    real = torch.arange(40) < torch.tensor(lengths)[:, None]
    mask = (real[:, None, None] & torch.ones(40, 40, dtype=torch.bool).tril()) | torch.eye(40, dtype=torch.bool)
    logits = model(tokens, positions=positions, mask=mask)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(logits[row, :n], model(tokens[row : row + 1, :n])[0], atol=1e-4, rtol=0)


def test_decoding_with_a_cache_past_the_trained_length_is_llamas(tmp_path: Path) -> None:
    """Keys keep the angles of when they were written, which differs from full recomputation, in both alike."""
    ours = small("x_llama", rope_scaling=SCALINGS["dynamic"])
    theirs = reference(ours, tmp_path)
    tokens, past, cache = some_tokens(1, 24), None, ours.new_cache(1, 24)
    with torch.no_grad():
        for start, end in ((0, 14), *((p, p + 1) for p in range(14, 24))):
            answer = theirs(tokens[:, start:end], past_key_values=past, use_cache=True)
            past = answer.past_key_values
            positions = torch.arange(start, end)[None]
            mask = (torch.arange(end) <= positions[:, :, None])[:, None]
            logits = ours(tokens[:, start:end], positions=positions, mask=mask, cache=cache)
            torch.testing.assert_close(logits, answer.logits, atol=1e-4, rtol=0)
    assert_cached_is_uncached(ours, chunks=(9, 3, 1, 1, 2))  # up to it, both are the same


def test_several_texts_in_a_row_are_stretched_like_each_alone() -> None:
    """A text of 29 and one of 11 tokens, of which the first is past the trained length of 16, then padding."""
    model = small("x_llama", rope_scaling=SCALINGS["dynamic"])
    lengths = (29, 11)
    tokens, text = some_tokens(1, 43), torch.tensor([0] * 29 + [1] * 11 + [2] * 3)
    positions = torch.tensor([*range(29), *range(11), 0, 0, 0])[None]
    mask = ((text[:, None] == text) & torch.ones(43, 43, dtype=torch.bool).tril())[None, None]
    logits = model(tokens, positions=positions, mask=mask)
    for part, n in zip(logits[0].split((29, 11, 3)), lengths, strict=False):
        start = 0 if n == 29 else 29
        torch.testing.assert_close(part, model(tokens[:, start : start + n])[0], atol=1e-4, rtol=0)


def test_padding_past_the_trained_length_is_refused_where_it_would_change_answers() -> None:
    model = small("x_llama", rope_scaling=SCALINGS["dynamic"])
    sizes: dict[str, Any] = {"max_new_tokens": 4, "kv_length": 32, "temperature": 0.0}
    with pytest.raises(ValueError, match=r"prompt_length=17 must be at most 16, .*rope_scaling.*; use Batcher"):
        generate(model, [[3, 4]], prompt_length=17, **sizes)
    generate(model, [[3, 4]], prompt_length=16, **sizes)
    assert generate(model, [[3, 4]], **sizes) == generate(model, [[3, 4]], prompt_length=16, **sizes)
    scalar = ScalarModel(model, torch.nn.Linear(24, 1))
    tokens = some_tokens(2, 17)
    with pytest.raises(ValueError, match="rows padded to 17 tokens must have at most 16"):
        scalar.score(tokens, torch.tensor([17, 9]))
    whole = scalar.score(tokens, torch.tensor([17, 17]))
    torch.testing.assert_close(whole[:1], scalar.score(tokens[:1], torch.tensor([17])), atol=1e-5, rtol=0)
    scalar.score(tokens[:, :16], torch.tensor([16, 9]))
    with pytest.raises(ValueError, match="rows padded to 17 tokens must have at most 16"):
        rewards.final_scalars(scalar, tokens, torch.tensor([17, 9]))
    short, long = some_tokens(1, 9).tolist(), some_tokens(1, 17).tolist()
    assert rewards.demonstration_mean(scalar, short + long) == pytest.approx(rewards.demonstration_mean(scalar, short))


@pytest.mark.parametrize(("kv_heads", "slices"), [(6, 2), (6, 3), (2, 2)])
def test_a_slice_needs_nothing_of_the_others_and_their_outputs_add_up(kv_heads: int, slices: int) -> None:
    """What device i of tensor parallelism computes of a layer from its own weights, by plain attention over heads."""
    model = small("x_llama", heads=6, kv_heads=kv_heads, d_feed_forward=36, pretraining_tp=slices)
    attention, feed_forward = model.blocks[0].attention, model.blocks[0].feed_forward
    x, rotation = torch.randn(2, 13, 24, generator=torch.Generator().manual_seed(0)), model.rotary.first(13)
    heads, groups, gated, attended = 6 // slices, kv_heads // slices, 0, 0
    for i in range(slices):
        q, k, v = F.linear(x, attention.qkv.weight_of(i)).unflatten(-1, (-1, 4)).split((heads, groups, groups), dim=2)
        q, k = rotate(q, rotation), rotate(k, rotation)
        k, v = (part.repeat_interleave(heads // groups, dim=2) for part in (k, v))
        seen = torch.ones(13, 13, dtype=torch.bool).tril()
        scores = torch.einsum("bthd,bshd->bhts", q, k / 2).masked_fill(~seen, float("-inf"))  # √4 is 2
        mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(2)
        attended = attended + F.linear(mixed, attention.output.weight_of(i))
        gate, up = F.linear(x, feed_forward.gate_up.weight_of(i)).chunk(2, dim=-1)
        gated = gated + F.linear(F.silu(gate) * up, feed_forward.down.weight_of(i))
    torch.testing.assert_close(attended, attention(x, rotation, causal), atol=1e-4, rtol=0)
    torch.testing.assert_close(gated, feed_forward(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("slices", [2, 3])
def test_slices_sum_to_the_whole(slices: int, tmp_path: Path) -> None:
    sizes = {"heads": 6, "kv_heads": 6, "d_feed_forward": 36}
    whole, sliced = small("x_llama", **sizes), small("x_llama", **sizes, pretraining_tp=slices)
    assert sliced.state_dict().keys() == whole.state_dict().keys()
    tokens = some_tokens(2, 23)
    torch.testing.assert_close(sliced(tokens), whole(tokens), atol=1e-4, rtol=0)
    assert_same(sliced, reference(sliced, tmp_path))
    assert load(tmp_path).config.pretraining_tp == slices


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_equal_llamas(shape: str, tmp_path: Path) -> None:
    ours = small_decoder(**SHAPES[shape])
    theirs = reference(ours, tmp_path)
    assert type(theirs) is LlamaForCausalLM
    assert_same(ours, theirs)
    assert_same_when_padded(ours, theirs)


def test_more_than_one_chunk_of_queries_equals_llama(tmp_path: Path) -> None:
    ours = small_decoder(max_positions=300)
    save(ours, tmp_path)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path)
    tokens = without_padding(some_tokens(2, 291))  # chunks of 128, 128 and 35 queries
    weight = torch.rand(2, 291, 67, generator=torch.Generator().manual_seed(0))
    logits, reference = ours(tokens), theirs(tokens).logits
    torch.testing.assert_close(logits, reference, atol=1e-4, rtol=0)
    (logits.softmax(-1) * weight).mean().backward()
    (reference.softmax(-1) * weight).mean().backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, gradient in to_tensors(ours.config, gradients).items():  # type: ignore[arg-type]
        torch.testing.assert_close(gradient, theirs.get_parameter(name).grad, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_padded_batches_under_linear_scaling_equal_llamas(kv_heads: int, tmp_path: Path) -> None:
    ours = small("x_llama", rope_scaling=SCALINGS["linear"], kv_heads=kv_heads)
    assert_same_when_padded(ours, reference(ours, tmp_path))


def test_a_directory_loads_through_the_auto_class_and_round_trips(tmp_path: Path) -> None:
    ours = small_decoder()
    save(ours, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(model) is LlamaForCausalLM
    assert model.dtype == torch.float32
    assert (model.config.pad_token_id, model.generation_config.eos_token_id) == (PAD_ID, 5)
    again = load(tmp_path)
    assert again.config == ours.config
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_a_directory_that_transformers_wrote_loads(tmp_path: Path) -> None:
    sizes = {"vocab_size": 67, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6}
    theirs = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=3, intermediate_size=40, rope_theta=777.0))
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert not (tmp_path / "model.safetensors").exists()  # shards with an index
    tokens = some_tokens(2, 9)
    torch.testing.assert_close(load(tmp_path)(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


def test_a_reward_model_directory_loads_both_ways(tmp_path: Path) -> None:
    ours = small_decoder()
    head = scalar_head(24)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(4))
    save(ours, tmp_path, scalar_head=head)
    lengths = torch.tensor([11, 4, 1, 8])
    tokens = some_tokens(4, 11).clamp(min=6)
    tokens = torch.where(torch.arange(11) < lengths.unsqueeze(1), tokens, PAD_ID)

    scores = load_scalar_model(tmp_path).score(tokens, lengths)
    judge = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert judge.config.num_labels == 1
    torch.testing.assert_close(scores, judge(tokens).logits.squeeze(1), atol=1e-4, rtol=0)
    assert scores.std() > 0.1

    torch.testing.assert_close(
        load(tmp_path)(tokens), AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits, atol=1e-4, rtol=0
    )


def test_cutting_and_fusing_are_inverse() -> None:
    ours = small_decoder(tied_embeddings=False)
    state = dict(ours.state_dict())
    again = from_tensors(ours.config, to_tensors(ours.config, state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
