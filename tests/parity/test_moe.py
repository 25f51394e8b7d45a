"""Routed experts against transformers' Mixtral and Switch Transformers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, SwitchTransformersConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from axon_models.layers.moe.routing import balance_loss, z_loss
from axon_models.layers.moe.sparse import SparseExperts
from axon_models.layers.moe.switch import SwitchExperts

D, F = 20, 13


def normal(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fill(layer: nn.Module, seed: int = 4) -> None:
    """Large weights, so that tokens are spread over the experts and every expert differs."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)


def mixtral_pair(n_experts: int, top_k: int) -> tuple[SparseExperts, MixtralSparseMoeBlock]:
    ours = SparseExperts(D, F, n_experts, top_k)
    fill(ours)
    config = MixtralConfig(hidden_size=D, intermediate_size=F, num_local_experts=n_experts, num_experts_per_tok=top_k)
    config._experts_implementation = "eager"
    theirs = MixtralSparseMoeBlock(config)
    names = {"gate.weight": "router.weight", "experts.gate_up_proj": "experts.gate_up"}
    names["experts.down_proj"] = "experts.down"
    theirs.load_state_dict({name: ours.get_parameter(names[name]).detach().clone() for name in theirs.state_dict()})
    return ours, theirs


@pytest.mark.parametrize(("n_experts", "top_k"), [(8, 2), (5, 3), (4, 1), (3, 3)])
def test_sparse_experts_equal_mixtrals(n_experts: int, top_k: int) -> None:
    ours, theirs = mixtral_pair(n_experts, top_k)
    x, weight = normal(3, 11, D), normal(3, 11, D, seed=5)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    y, reference = ours(inputs[0]), theirs(inputs[1])
    assert reference.std() > 0.3
    torch.testing.assert_close(y, reference, atol=1e-4, rtol=0)
    for values in (y, reference):
        (values * weight).sum().backward()
    pairs = [(inputs[0].grad, inputs[1].grad), (ours.router.weight.grad, theirs.gate.weight.grad)]
    pairs += [(ours.experts.gate_up.grad, theirs.experts.gate_up_proj.grad)]
    pairs += [(ours.experts.down.grad, theirs.experts.down_proj.grad)]
    for ours_grad, theirs_grad in pairs:
        assert theirs_grad.abs().max() > 0.01 or top_k == 1  # one weight of one expert is 1 whatever the router says
        torch.testing.assert_close(ours_grad, theirs_grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_the_router_loss_of_several_layers_equals_mixtrals(padded: bool) -> None:
    ours = [normal(3, 7, 6, seed=seed).mul(2).requires_grad_() for seed in (1, 2, 3)]
    theirs = [logits.detach().flatten(0, 1).requires_grad_() for logits in ours]
    mask = torch.arange(7) < torch.tensor([7, 4, 1]).unsqueeze(1) if padded else None
    loss = balance_loss(ours, top_k=2, mask=mask)
    reference = load_balancing_loss_func(tuple(theirs), 6, 2, None if mask is None else mask.long())
    torch.testing.assert_close(loss, reference, atol=1e-6, rtol=0)
    loss.backward()
    reference.backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad.flatten(0, 1), b.grad, atol=1e-7, rtol=1e-5)


def test_the_penalty_of_a_layer_is_mixtrals_loss_of_its_logits() -> None:
    layer = SparseExperts(D, F, 6, 2, balance_coef=0.02)
    fill(layer)
    x = normal(2, 9, D)
    y, penalty = layer.forward_with_penalty(x)
    reference = load_balancing_loss_func((x.flatten(0, 1) @ layer.router.weight.t(),), 6, 2)
    torch.testing.assert_close(penalty, 0.02 * reference, atol=1e-7, rtol=1e-5)
    assert torch.equal(y, layer(x))


def switch_pair(n_experts: int, capacity: int, capacity_factor: float) -> tuple[SwitchExperts, nn.Module]:
    ours = SwitchExperts(D, F, n_experts, capacity_factor)
    fill(ours)
    config = SwitchTransformersConfig(
        d_model=D,
        d_ff=F,
        num_experts=n_experts,
        expert_capacity=capacity,
        dropout_rate=0.0,
        router_jitter_noise=0.0,
    )
    theirs = switch.SwitchTransformersSparseMLP(config)
    state = {"router.classifier.weight": ours.router.weight}
    for i in range(n_experts):
        state[f"experts.expert_{i}.wi.weight"] = ours.experts.up[i]
        state[f"experts.expert_{i}.wo.weight"] = ours.experts.down[i]
    theirs.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()})
    return ours.train(), theirs.train()


@pytest.mark.parametrize(("capacity", "factor"), [(3, 1.0), (2, 0.6), (4, 1.25), (1, 0.01)])
def test_switch_experts_equal_switch_transformers(capacity: int, factor: float) -> None:
    ours, theirs = switch_pair(4, capacity, factor)
    assert ours.capacity(12) == capacity
    x, weight = normal(3, 12, D), normal(3, 12, D, seed=5)
    one_hot, probability, logits = theirs.router(x.clone())
    routes = ours.routes(x)
    assert 0 < routes.kept.sum() < routes.kept.numel()
    torch.testing.assert_close(routes.logits, logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(routes.probability, probability.squeeze(-1), atol=1e-6, rtol=0)
    assert torch.equal(nn.functional.one_hot(routes.expert, 4) * routes.kept.unsqueeze(-1), one_hot)

    inputs = [x.clone().requires_grad_() for _ in range(2)]
    y, reference = ours(inputs[0]), theirs(inputs[1])
    assert reference.std() > 0.1
    torch.testing.assert_close(y, reference, atol=1e-4, rtol=0)
    for values in (y, reference):
        (values * weight).sum().backward()
    pairs = [(inputs[0].grad, inputs[1].grad), (ours.router.weight.grad, theirs.router.classifier.weight.grad)]
    for i in range(4):
        expert = theirs.experts[f"expert_{i}"]
        pairs += [(ours.experts.up.grad[i], expert.wi.weight.grad), (ours.experts.down.grad[i], expert.wo.weight.grad)]
    for ours_grad, theirs_grad in pairs:
        torch.testing.assert_close(ours_grad, theirs_grad, atol=1e-4, rtol=1e-4)


def test_switch_losses_equal_switch_transformers() -> None:
    layer = SwitchExperts(D, F, 5, 0.5, balance_coef=0.03, z_coef=0.002).train()
    fill(layer)
    x = normal(1, 31, D)  # their balance loss treats every row as a batch of its own
    logits = layer.routes(x).logits
    balance = switch.load_balancing_loss_func(logits.softmax(-1), logits.argmax(-1))
    z = switch.router_z_loss_func(logits)
    torch.testing.assert_close(z_loss(logits), z, atol=0, rtol=1e-5)
    torch.testing.assert_close(layer.forward_with_penalty(x)[1], 0.03 * balance + 0.002 * z, atol=0, rtol=1e-5)

    other = copy.deepcopy(layer)
    fill(other, seed=9)
    both = [logits, other.routes(x).logits]
    alone = [one.forward_with_penalty(x)[1] for one in (layer, other)]
    torch.testing.assert_close(layer.penalty(both), sum(alone), atol=0, rtol=1e-5)
