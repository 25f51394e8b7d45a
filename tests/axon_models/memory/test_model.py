from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from axon_models.memory.attention import relative_shift, unseen_keys
from axon_models.memory.segments import segment_loss, segments, text_losses
from tests.axon_models.memory import naive
from tests.axon_models.memory.small import read, small_model, some_tokens


@pytest.mark.parametrize("span", [None, 3])
def test_logits_equal_the_papers_formula_pair_by_pair(span: int | None) -> None:
    model = small_model(tied_embeddings=False, norm_eps=1e-3).double()
    tokens = some_tokens(2, 4)
    memory = torch.randn(2, 2, 5, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    result, _ = read(model, tokens, memory, span=span)
    for row in range(2):
        expected = naive.logits(model, tokens[row].tolist(), list(memory[:, row]), span)
        assert expected.std() > 0.3
        # The sinusoids are of float32, the rest of float64.
        torch.testing.assert_close(result[row], expected, atol=1e-5, rtol=0)


def test_without_memory_logits_equal_the_papers_formula() -> None:
    model = small_model().double()
    tokens = some_tokens(1, 5)
    expected = naive.logits(model, tokens[0].tolist(), [torch.zeros(0, 12, dtype=torch.float64)] * 2)
    torch.testing.assert_close(read(model, tokens)[0][0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("n_queries", "n_memory"), [(1, 0), (1, 6), (4, 0), (4, 3), (3, 8)])
def test_the_shift_brings_every_distance_to_its_key(n_queries: int, n_memory: int) -> None:
    n_keys = n_memory + n_queries
    distances = torch.arange(n_keys - 1, -1, -1)
    rows = 1000 * torch.arange(n_queries).unsqueeze(1)
    x = (rows + distances).float().expand(2, 3, n_queries, n_keys)  # row and distance can be read off each number
    y, unseen = relative_shift(x), unseen_keys(n_queries, n_memory, None, torch.device("cpu"))
    for t in range(n_queries):
        for j in range(n_keys):
            distance = n_memory + t - j
            assert bool(unseen[t, j]) == (distance < 0)
            if distance >= 0:
                assert (y[:, :, t, j] == 1000 * t + distance).all()


def test_segments_with_memory_equal_one_long_segment() -> None:
    model, tokens = small_model(memory_length=20).eval(), some_tokens(2, 20)
    whole, _ = read(model, tokens)
    parts, memory = [], None
    for start, end in ((0, 7), (7, 8), (8, 20)):
        logits, memory = read(model, tokens[:, start:end], memory)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(read(model, tokens[:, 8:])[0], whole[:, 8:], atol=0.1)


@pytest.mark.parametrize("length", [1, 3, 7, 8, 30])
def test_with_a_span_losses_do_not_depend_on_where_segments_end(length: int) -> None:
    model, tokens = small_model(memory_length=6).eval(), some_tokens(2, 31)
    whole = text_losses(model, tokens, segment_length=30, span=6)
    torch.testing.assert_close(text_losses(model, tokens, segment_length=length, span=6), whole, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(text_losses(model, tokens, segment_length=30), whole, atol=0.1)


def test_memory_is_what_entered_each_layer_at_the_last_positions() -> None:
    model, tokens = small_model(memory_length=7), some_tokens(2, 13)
    _, first = model.read(tokens[:, :3])
    _, memory = model.read(tokens[:, 3:13], first)
    assert (first.shape, memory.shape) == ((2, 2, 3, 12), (2, 2, 7, 12))
    embedded = model.embedding(tokens[:, 6:]) * 12**0.5
    torch.testing.assert_close(memory[0], embedded)
    _, longer = model.read(tokens[:, 3:6], first, memory_length=100)
    assert torch.equal(longer[:, :, :3], first)
    assert longer.shape[2] == 6
    assert model.read(tokens, first, memory_length=0)[1].shape[2] == 0


def test_no_gradient_flows_into_memory() -> None:
    model, tokens = small_model(), some_tokens(1, 6)
    memory = torch.randn(2, 1, 4, 12).requires_grad_()
    loss, after = segment_loss(model, tokens[:, :5], tokens[:, 1:], memory)
    loss.backward()
    assert memory.grad is None
    assert not after.requires_grad
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())  # type: ignore[union-attr]


def test_gradients_by_finite_differences() -> None:
    model = small_model(d_model=6, heads=2, d_feed_forward=5, vocab_size=7).double()
    tokens = some_tokens(2, 4) % 7
    memory = torch.randn(2, 2, 3, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.5, 2.0], [1.0, 0.0, 1.5]], dtype=torch.float64)

    def loss() -> Tensor:
        return segment_loss(model, tokens[:, :-1], tokens[:, 1:], memory, weights=weights)[0]

    loss().backward()
    step = 1e-5
    for parameter in model.parameters():
        expected = torch.zeros_like(parameter.data)
        for at in range(parameter.numel()):
            ends = []
            for sign in (1, -1):
                parameter.data.view(-1)[at] += sign * step
                ends.append(loss().item())
                parameter.data.view(-1)[at] -= sign * step
            expected.view(-1)[at] = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_segment_loss_is_cross_entropy(weighted: bool) -> None:
    model, tokens = small_model(), some_tokens(3, 9)
    weights = torch.rand(3, 8, generator=torch.Generator().manual_seed(1)).round(decimals=1) if weighted else None
    logits, memory = read(model, tokens[:, :-1])
    each = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")  # (B, T)
    loss, again = segment_loss(model, tokens[:, :-1], tokens[:, 1:], weights=weights)
    torch.testing.assert_close(loss, (each if weights is None else each * weights).sum())
    assert torch.equal(again, memory)
    torch.testing.assert_close(text_losses(model, tokens, segment_length=8), each.detach())


def test_every_token_but_the_first_is_a_target_once() -> None:
    tokens = torch.arange(11).unsqueeze(0)
    parts = list(segments(tokens, 4))
    assert [inputs.shape[1] for inputs, _ in parts] == [4, 4, 2]
    assert torch.cat([inputs for inputs, _ in parts], dim=1)[0].tolist() == list(range(10))
    assert torch.cat([targets for _, targets in parts], dim=1)[0].tolist() == list(range(1, 11))
    for text, length in ((tokens, 0), (tokens[:, :1], 4)):
        with pytest.raises(ValueError, match="segments of length="):
            next(segments(text, length))


def test_what_does_not_fit_is_refused() -> None:
    model, tokens = small_model(), some_tokens(2, 5)
    _, memory = model.read(tokens)
    with pytest.raises(ValueError, match=r"memory has shape \(2, 2, 5, 12\), but 1 row\(s\) of tokens in 2 layers"):
        model.read(tokens[:1], memory)
    with pytest.raises(ValueError, match="span=-1 must be at least 0"):
        model.read(tokens, span=-1)
