from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from axon_models.layers.feed_forward import SwiGLU

WEIGHTS = ("gate_up.weight", "down.weight")


def layer(*, seed: int = 0, n_in: int = 6, n_hidden: int = 5) -> SwiGLU:
    torch.manual_seed(seed)
    gate_up, down = nn.Linear(n_in, 2 * n_hidden, bias=False), nn.Linear(n_hidden, n_in, bias=False)
    return SwiGLU(gate_up=gate_up, down=down)


def written_out(module: SwiGLU, x: Tensor) -> Tensor:
    gate, up = F.linear(x, module.gate_up.weight).chunk(2, -1)
    return F.linear(F.silu(gate) * up, module.down.weight)


def gradients(y: Tensor, module: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y.square().sum(), [x, *module.parameters()]))


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6)])
def test_it_is_the_formula_and_has_the_derivatives_of_its_value(shape: tuple[int, ...]) -> None:
    module, x = layer().double(), torch.randn(shape, dtype=torch.float64).requires_grad_()
    y, expected = module(x), written_out(module, x)
    assert type(y.grad_fn).__name__ != type(expected.grad_fn).__name__  # it is not the formula itself
    torch.testing.assert_close(y, expected)
    for found, right in zip(gradients(y, module, x), gradients(expected, module, x), strict=True):
        torch.testing.assert_close(found, right)

    def by_weights(x: Tensor, *weights: Tensor) -> Tensor:
        given: Tensor = torch.func.functional_call(module, dict(zip(WEIGHTS, weights, strict=True)), (x,))
        return given

    assert torch.autograd.gradcheck(by_weights, (x, *module.parameters()))


def test_an_expanded_gradient_is_as_good_as_a_whole_one() -> None:
    module, x = layer().double(), torch.randn(2, 3, 6, dtype=torch.float64).requires_grad_()
    found, right = (
        torch.autograd.grad(y.sum(), [x, *module.parameters()]) for y in (module(x), written_out(module, x))
    )
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)


def test_a_frozen_weight_gets_no_gradient_and_the_others_get_theirs() -> None:
    module, x = layer().double(), torch.randn(3, 6, dtype=torch.float64)
    module.down.weight.requires_grad_(False)
    module(x).square().sum().backward()
    (right,) = torch.autograd.grad(written_out(module, x).square().sum(), module.gate_up.weight)
    assert module.down.weight.grad is None
    torch.testing.assert_close(module.gate_up.weight.grad, right)


def test_adapters_biases_and_hooks_in_place_of_a_product_are_not_passed_over() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    plain, x = layer(), torch.randn(3, 6)
    doubled, biased = Doubled(5, 6, bias=False), nn.Linear(5, 6)
    biased.weight = doubled.weight = plain.down.weight
    torch.testing.assert_close(SwiGLU(gate_up=plain.gate_up, down=doubled)(x), 2 * plain(x))
    torch.testing.assert_close(SwiGLU(gate_up=plain.gate_up, down=biased)(x), plain(x) + biased.bias)
    with plain.down.register_forward_hook(lambda *called: 3 * called[-1]):
        hooked = plain(x)
    torch.testing.assert_close(hooked, 3 * plain(x))


def test_under_autocast_it_is_as_near_the_formula_as_bfloat16_is_and_the_same_twice() -> None:
    module, x = layer(n_in=48, n_hidden=40), torch.randn(2, 33, 48).requires_grad_()
    exact = gradients(written_out(module, x), module, x)
    with torch.autocast("cpu", torch.bfloat16):
        ys = [module(x) for _ in range(2)]
        rounded = written_out(module, x)
    assert ys[0].dtype == torch.bfloat16
    found, again, plain = (gradients(y.float(), module, x) for y in (*ys, rounded))
    for one, other, by_autograd, right in zip(found, again, plain, exact, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
        # No farther from the exact gradient than what autograd makes of the same types, by a tenth.
        assert (one - right).norm() < 1.1 * (by_autograd - right).norm()


def test_recomputation_changes_no_bit_and_inference_gives_the_same_values() -> None:
    module, x = layer(n_in=64, n_hidden=176), torch.randn(2, 150, 64).requires_grad_()  # sizes at which order tells
    kept, recomputed = module(x), checkpoint(module, x, use_reentrant=False)
    assert torch.equal(kept, recomputed)
    for one, other in zip(gradients(kept, module, x), gradients(recomputed, module, x), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(module(x), kept)
    with torch.inference_mode():
        torch.testing.assert_close(module(x), kept)
    torch.testing.assert_close(module.eval()(x), kept)
