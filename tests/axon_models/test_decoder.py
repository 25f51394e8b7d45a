from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from axon_models.decoder.model import Decoder
from axon_models.decoder.presets import config_of
from axon_models.layers import attend
from axon_models.layers.attend import _Attention, as_bias
from axon_models.layers.feed_forward import _SiluProduct
from axon_models.layers.language_model import ScalarModel, scalar_head
from axon_models.layers.norm import RMSNorm
from axon_models.layers.rotary import Rotary, rotate
from tests.axon_models.small import small_decoder, some_tokens


def double(*shape: int) -> torch.Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    ).requires_grad_()


def test_nothing_before_a_changed_token_moves() -> None:
    model, tokens = small_decoder(), some_tokens(2, 12)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 67
    difference = (model(tokens) - model(changed)).abs().amax((0, 2))
    assert difference[:7].max() == 0
    assert difference[7:].min() > 1e-4


def test_a_block_diagonal_mask_packs_documents_as_if_they_stood_alone() -> None:
    model = small_decoder()
    first, second = some_tokens(1, 5, seed=3), some_tokens(1, 8, seed=4)
    owner = torch.tensor([0] * 5 + [1] * 8 + [2] * 3)
    mask = ((owner[:, None] == owner[None]) & torch.ones(16, 16, dtype=torch.bool).tril())[None, None]
    positions = torch.tensor([[*range(5), *range(8), *range(3)]])
    packed = model(torch.cat([first, second, some_tokens(1, 3)], 1), positions=positions, mask=mask)
    torch.testing.assert_close(packed[:, :5], model(first), atol=1e-5, rtol=0)
    torch.testing.assert_close(packed[:, 5:13], model(second), atol=1e-5, rtol=0)
    additive = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    again = model(torch.cat([first, second, some_tokens(1, 3)], 1), positions=positions, mask=additive)
    torch.testing.assert_close(packed, again, atol=1e-6, rtol=0)


def test_a_causal_mask_is_no_mask_in_values_and_gradients() -> None:
    model, tokens = small_decoder(), some_tokens(2, 12)
    gradients = []
    for mask in (None, torch.ones(12, 12, dtype=torch.bool).tril().expand(2, 1, 12, 12)):
        model.zero_grad()
        model(tokens, mask=mask).logsumexp(-1).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_query_that_sees_nothing_gives_numbers() -> None:
    model = small_decoder()
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    mask[4:] = False
    model(some_tokens(1, 6), mask=mask[None, None]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_training_and_inference_attention_agree() -> None:
    model, tokens = small_decoder(), some_tokens(2, 40)
    trained = model(tokens)
    with torch.no_grad():
        torch.testing.assert_close(trained, model(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_has_the_derivative_of_its_value(masked: bool) -> None:
    q, k, v = double(2, 5, 4, 6), double(2, 5, 2, 6), double(2, 5, 2, 6)
    bias = as_bias(torch.rand(2, 1, 5, 5).gt(0.4) | torch.eye(5, dtype=torch.bool)).double() if masked else None
    reference = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=bias, is_causal=not masked, enable_gqa=True
    )
    torch.testing.assert_close(_Attention.apply(q, k, v, bias), reference.transpose(1, 2))
    assert torch.autograd.gradcheck(_Attention.apply, (q, k, v, bias))


def test_norm_rotation_and_gate_have_the_derivatives_of_their_values() -> None:
    norm, x = RMSNorm(6, 1e-3).double(), double(2, 3, 6)
    with torch.no_grad():
        norm.weight += torch.arange(6) / 5
    torch.testing.assert_close(norm(x), F.rms_norm(x, (6,), norm.weight, 1e-3))
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(norm, {"weight": w}, (x,)), (double(6),))

    gate_up = double(3, 10)
    gate, up = gate_up.chunk(2, -1)
    torch.testing.assert_close(_SiluProduct.apply(gate_up), F.silu(gate) * up)
    assert torch.autograd.gradcheck(_SiluProduct.apply, (gate_up,))

    rotation = Rotary(6, 10, 50.0).first(3)
    assert torch.autograd.gradcheck(lambda y: rotate(y, rotation), (double(2, 3, 4, 6),))


def test_rotated_scores_depend_on_the_distance_alone() -> None:
    rotary, q, k = Rotary(8, 64, 10000.0), torch.randn(8), torch.randn(8)

    def score(i: int, j: int) -> float:
        turned = [rotate(x.view(1, 1, 1, 8), rotary.at(torch.tensor([[p]]))) for x, p in ((q, i), (k, j))]
        return float((turned[0] * turned[1]).sum())

    assert score(3, 1) == pytest.approx(score(60, 58), abs=1e-4)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)


def test_initial_weights_follow_from_the_generator_alone() -> None:
    torch.manual_seed(1)
    one = small_decoder(seed=5)
    torch.manual_seed(2)
    other = small_decoder(seed=5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    config = small_decoder().config
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(1))
    assert float(model.blocks[0].attention.output.weight.detach().std()) == pytest.approx(0.3 / 2, rel=0.1)
    assert float(model.embedding.weight.detach().std()) == pytest.approx(0.3, rel=0.1)


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="65 tokens exceed max_positions=64"):
        small_decoder()(some_tokens(1, 65))


def test_a_bf16_step_is_the_same_twice() -> None:
    def gradients() -> list[torch.Tensor]:
        model = small_decoder()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(some_tokens(2, 33)).float().logsumexp(-1).mean()
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))


def test_a_scalar_model_scores_the_last_token() -> None:
    head = scalar_head(24)
    torch.nn.init.ones_(head.weight)
    model, tokens = ScalarModel(small_decoder(), head), some_tokens(2, 9)
    per_position = model(tokens)
    assert per_position.shape == (2, 9)
    torch.testing.assert_close(per_position, model.backbone.hidden(tokens).sum(-1))
    scores = model.score(tokens, torch.tensor([9, 3]))
    torch.testing.assert_close(scores, torch.stack([per_position[0, 8], per_position[1, 2]]))


@pytest.mark.parametrize(
    ("preset", "window", "masks"), [("x_llama", None, (2, 0)), ("mistral", 32, (2, 3)), ("mistral", 150, (2, 2))]
)
def test_masks_are_made_once_for_all_layers_and_steps(preset: str, window: int | None, masks: tuple[int, int]) -> None:
    """220 tokens are chunks of 96, 96 and 28: two sizes of what lies ahead, and the band's edge where it crosses one.

    A window of 150 begins to hide keys in the second chunk, and in the third from its first query on.
    """
    given = {} if window is None else {"window": window}
    model = Decoder(config_of(preset, vocab_size=67, d_model=16, n_layers=3, heads=2, max_positions=256, **given))
    model.init_weights(torch.Generator().manual_seed(0))
    attend._future.cache_clear()
    attend._past.cache_clear()
    for _ in range(2):
        model(some_tokens(2, 220)).sum().backward()
    found = attend._future.cache_info(), attend._past.cache_info()
    assert tuple(one.misses for one in found) == masks
    assert found[0].hits + found[0].misses == 2 * 3 * 3  # steps, layers, chunks
