"""Parallel attention and feed-forward, partial rotary positions and an output with a bias, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PhiForCausalLM

from axon_models.checkpoint import load, load_scalar_model, save
from axon_models.layers.language_model import ScalarModel, scalar_head
from axon_models.model_files import PAD_ID
from axon_models.objectives.cross_entropy import linear_cross_entropy, token_logprobs
from tests.axon_models.small import some_tokens
from tests.parity.compare import (
    assert_cached_is_uncached,
    assert_same,
    assert_same_when_padded,
    reference,
    small,
)

SHAPES = {
    "half_turns": {"heads": 2},  # 6 of 12
    "grouped": {"heads": 4, "kv_heads": 2, "d_model": 48, "rotary_fraction": 0.4},  # 4 of 12
    "all_turns": {"rotary_fraction": 1.0},
    "odd": {"d_model": 40, "heads": 5, "n_layers": 1, "vocab_size": 131, "d_feed_forward": 37, "rope_theta": 500.0},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_equal_phis(shape: str, tmp_path: Path) -> None:
    ours = small("phi", **SHAPES[shape])
    theirs = reference(ours, tmp_path)
    assert type(theirs) is PhiForCausalLM
    assert_same(ours, theirs)
    assert_same_when_padded(ours, theirs)
    assert load(tmp_path).config == ours.config


def test_cached_is_uncached() -> None:
    assert_cached_is_uncached(small("phi", heads=2))


def test_the_bias_of_the_output_is_in_losses_and_log_probabilities() -> None:
    """Which know of a product of hidden states and a matrix alone."""
    model, tokens = small("phi", heads=2), some_tokens(2, 9)
    hidden, logits = model.hidden(tokens), model(tokens)
    states = model.states(tokens)
    assert (hidden.shape, states.shape) == ((2, 9, 25), (2, 9, 24))
    weight, bias = model.output_weight[:, :24], model.output_weight[:, 24].detach().requires_grad_()
    assert bias.std() > 0.2
    by_hand = states @ weight.T + bias
    torch.testing.assert_close(logits, by_hand, atol=1e-5, rtol=0)
    targets = some_tokens(2, 9, seed=3).flatten()
    wanted = torch.nn.functional.cross_entropy(by_hand.flatten(0, 1), targets, reduction="sum")
    (by_bias,) = torch.autograd.grad(wanted, bias, retain_graph=True)
    loss = linear_cross_entropy(hidden.flatten(0, 1), model.output_weight, targets)
    torch.testing.assert_close(loss, wanted)
    (by_matrix,) = torch.autograd.grad(loss, model.output_weight)
    torch.testing.assert_close(by_matrix[:, 24], by_bias, atol=1e-4, rtol=1e-4)
    logprobs = token_logprobs(model.hidden(tokens).flatten(0, 1) / 0.7, model.output_weight, targets)
    sharper = torch.nn.functional.cross_entropy(by_hand.flatten(0, 1) / 0.7, targets, reduction="sum")
    torch.testing.assert_close(-logprobs.sum(), sharper)


@pytest.mark.parametrize("preset", ["phi", "gpt2", "gpt", "mistral"])
def test_reward_models_load_both_ways(preset: str, tmp_path: Path) -> None:
    ours = small(preset, heads=2)
    head = scalar_head(24)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(4))
    save(ours, tmp_path, scalar_head=head)
    lengths, tokens = torch.tensor([11, 4, 1, 8]), some_tokens(4, 11).clamp(min=6)
    tokens = torch.where(torch.arange(11) < lengths.unsqueeze(1), tokens, PAD_ID)
    scores = load_scalar_model(tmp_path).score(tokens, lengths)
    torch.testing.assert_close(scores, ScalarModel(ours, head).score(tokens, lengths))
    judge = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(scores, judge(tokens).logits.squeeze(1), atol=1e-4, rtol=0)
