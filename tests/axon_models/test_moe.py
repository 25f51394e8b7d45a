from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from axon_models.errors import ConfigError
from axon_models.layers.moe.routing import RoutedExperts, balance_loss, z_loss
from axon_models.layers.moe.sparse import SparseExperts
from axon_models.layers.moe.switch import SwitchExperts

D, F, N = 6, 5, 4


def sparse(**changes: float) -> SparseExperts:
    layer = SparseExperts(D, F, N, 2, **changes)
    fill(layer)
    return layer


def switch(capacity_factor: float = 0.6, **changes: float) -> SwitchExperts:
    layer = SwitchExperts(D, F, N, capacity_factor, **changes)
    fill(layer)
    return layer


def fill(layer: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)


both = pytest.mark.parametrize("build", [sparse, switch])


def some_states(*shape: int, seed: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Recorder:
    """Experts that answer with twice their input and note which rows each of them got."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        self.seen = list(rows.split(list(counts)))
        return 2 * rows


def test_sparse_experts_are_the_weighted_sum_token_by_token() -> None:
    layer, x = sparse(), some_states(2, 5)
    y = layer(x)
    for row in range(2):
        for t in range(5):
            p = (layer.router.weight @ x[row, t]).softmax(0)
            best = sorted(range(N), key=lambda i: -p[i].item())[:2]
            expected = torch.zeros(D)
            for i in best:
                gate, up = (layer.experts.gate_up[i] @ x[row, t]).chunk(2)
                expected += p[i] / sum(p[j] for j in best) * (layer.experts.down[i] @ (gate * gate.sigmoid() * up))
            torch.testing.assert_close(y[row, t], expected, atol=1e-5, rtol=1e-5)


@both
def test_gradients_by_finite_differences(build: Callable[..., RoutedExperts]) -> None:
    layer = build().double().train()
    x = some_states(2, 5, dtype=torch.float64).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def outputs(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, parameters, strict=True))
        y: tuple[Tensor, Tensor] = torch.func.functional_call(_WithPenalty(layer), prefixed(given), (x,))
        return y

    parameters = tuple(parameter.detach().clone().requires_grad_() for parameter in layer.parameters())
    assert torch.autograd.gradcheck(outputs, (x, *parameters))


class _WithPenalty(nn.Module):
    def __init__(self, layer: RoutedExperts) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.forward_with_penalty(x)


def prefixed(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"layer.{name}": parameter for name, parameter in parameters.items()}


@pytest.mark.parametrize("factor", [0.3, 0.6, 1.0, 1.25, 10.0])
def test_every_token_has_one_slot_or_is_dropped_and_no_expert_overflows(factor: float) -> None:
    layer = switch(factor).train()
    recorder = Recorder()
    del layer.experts
    layer.experts = recorder
    x = some_states(3, 17)
    y, routes = layer(x), layer.routes(x)
    rows = x.flatten(0, 1)
    found = [(rows == row).all(1).nonzero().item() for part in recorder.seen for row in part]
    assert len(found) == len(set(found)) == int(routes.kept.sum())
    assert set(found) == set(routes.kept.flatten().nonzero().squeeze(1).tolist())
    assert all(len(part) <= 3 * layer.capacity(17) for part in recorder.seen)
    for i in range(N):
        wanted = (routes.expert == i).sum(1)  # (B,)
        taken = ((routes.expert == i) & routes.kept).sum(1)
        assert torch.equal(taken, wanted.clamp(max=layer.capacity(17)))
    expected = torch.where(routes.kept, routes.probability, 0.0).unsqueeze(-1) * 2 * x
    torch.testing.assert_close(y, expected)
    assert (y[~routes.kept] == 0).all()
    assert bool((~routes.kept).any()) == (factor < 10)


def test_capacity_by_hand() -> None:
    layer = switch(1.25).train()
    assert [layer.capacity(time) for time in (1, 3, 4, 16, 17)] == [1, 1, 2, 5, 6]  # ⌈1.25·T/4⌉
    assert SwitchExperts(D, F, 11, 1.1).capacity(10) == 1  # 1.1·10/11 is 1, though not in floating point


def test_dropping_is_causal_and_by_row() -> None:
    layer = switch(0.6).train()
    x = some_states(3, 12)
    y = layer(x)
    later = x.clone()
    later[:, 8:] = some_states(3, 4, seed=7)
    torch.testing.assert_close(layer(later)[:, :8], y[:, :8])
    torch.testing.assert_close(layer(x[1:2]), y[1:2])
    assert not layer.routes(x).kept[:, :8].all()


@both
def test_in_evaluation_one_token_at_a_time_equals_all_at_once(build: Callable[..., RoutedExperts]) -> None:
    layer = build().eval()
    x = some_states(2, 13)
    one_by_one = torch.cat([layer(x[:, t : t + 1]) for t in range(13)], dim=1)
    torch.testing.assert_close(layer(x), one_by_one)
    if isinstance(layer, SwitchExperts):
        assert layer.routes(x).kept.all()
        assert not layer.train().routes(x).kept.all()


def test_even_routing_costs_alpha() -> None:
    even = torch.eye(N).mul(50).repeat(3, 1).unsqueeze(0)  # 12 tokens, each expert 3 times and with probability 1
    torch.testing.assert_close(balance_loss([even], top_k=1), torch.tensor(1.0))
    layer = switch(balance_coef=0.01)
    torch.testing.assert_close(layer.penalty([even]), torch.tensor(0.01))
    torch.testing.assert_close(layer.penalty([torch.zeros(2, 7, N)]), torch.tensor(0.01))  # P = 1/N, whatever f is
    one_expert = torch.tensor([50.0, 0, 0, 0]).expand(1, 12, N)
    torch.testing.assert_close(balance_loss([one_expert], top_k=1), torch.tensor(float(N)))
    # By hand: f = (1, 0), P = (3/4, 1/4), N = 2.
    torch.testing.assert_close(
        balance_loss([torch.tensor([[[3.0, 1.0]]]).log()], top_k=1), torch.tensor(2 * (1 * 0.75 + 0 * 0.25))
    )


def test_losses_ignore_padding() -> None:
    logits = some_states(3, 9)[..., :N]
    mask = torch.arange(9) < torch.tensor([9, 5, 2]).unsqueeze(1)
    real = logits[mask].unsqueeze(0)
    for top_k in (1, 2):
        masked = balance_loss([logits, logits + 1], top_k=top_k, mask=mask)
        torch.testing.assert_close(masked, balance_loss([real, real + 1], top_k=top_k))
    torch.testing.assert_close(z_loss(logits, mask=mask), z_loss(real))
    assert not torch.isclose(z_loss(logits), z_loss(real), rtol=1e-3)
    nothing = torch.zeros(3, 9, dtype=torch.bool)
    assert balance_loss([logits], top_k=2, mask=nothing) == z_loss(logits, mask=nothing) == 0


@both
def test_learning_from_the_penalty_alone_balances_the_experts(build: Callable[..., RoutedExperts]) -> None:
    layer, x = build(balance_coef=1.0), some_states(4, 32) + 0.7
    with torch.no_grad():
        layer.router.weight[0] += 2.0  # most tokens want expert 0

    def largest_share() -> float:
        chosen = layer.forward_with_logits(x)[1].argmax(-1).flatten()  # (128,)
        return chosen.bincount(minlength=N).max().item() / len(chosen)

    assert largest_share() > 0.65
    optimizer = torch.optim.SGD(layer.router.parameters(), lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        layer.forward_with_penalty(x)[1].backward()
        optimizer.step()
    assert largest_share() < 0.4


@both
def test_activation_checkpointing_changes_nothing(build: Callable[..., RoutedExperts]) -> None:
    layer, x = build().train(), some_states(2, 9)

    def gradients(through_checkpoint: bool) -> list[Tensor]:
        layer.zero_grad()
        run = layer.forward_with_penalty
        y, penalty = checkpoint(run, x, use_reentrant=False) if through_checkpoint else run(x)
        (y.square().sum() + 10 * penalty).backward()
        return [parameter.grad.clone() for parameter in layer.parameters()]  # type: ignore[union-attr]

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


@both
def test_experts_without_tokens_have_gradients_of_zeros(build: Callable[..., RoutedExperts]) -> None:
    layer = build().train()
    layer(some_states(1, 1)).sum().backward()
    gradients = [layer.get_parameter(f"experts.{name}").grad for name, _ in layer.experts.named_parameters()]
    n_busy = 2 if isinstance(layer, SparseExperts) else 1
    for gradient in gradients:
        assert int(gradient.flatten(1).any(1).sum()) == n_busy


def test_routing_is_exact_under_autocast() -> None:
    layer, x = sparse(), some_states(2, 50)
    exact = layer.forward_with_logits(x)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, logits = layer.forward_with_logits(x)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, exact)
    torch.testing.assert_close(y.float(), layer(x), atol=0.1, rtol=0.1)


def test_impossible_sizes_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        SparseExperts(D, F, 4, 5, balance_coef=float("nan"))
    assert "5 expert(s) a token must be 1 to n_experts=4" in str(caught.value)
    assert "balance_coef=nan must be at least 0" in str(caught.value)
    with pytest.raises(ConfigError, match=r"capacity_factor=0\.0 must be above 0"):
        SwitchExperts(D, F, 4, 0.0)
