"""The learning rate by hand, and what is decayed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.training.optimizer import adamw, load_state_tensors, state_tensors, warmup_cosine


def test_warm_up_and_cosine_by_hand():
    def rate(step):
        return warmup_cosine(step, n_steps=104, warmup_steps=4, peak=1.0, floor=0.1)

    assert [rate(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(4) == 1.0
    assert rate(54) == pytest.approx(0.55)  # half-way: the mean of peak and floor
    assert rate(104) == pytest.approx(0.1)
    assert rate(500) == pytest.approx(0.1)


def test_only_matrices_are_decayed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.linear, self.norm = nn.Embedding(5, 4), nn.Linear(4, 4), nn.RMSNorm(4)

    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = adamw(net, learning_rate=0.1, beta2=0.95, weight_decay=0.5)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"linear.weight"}
    torch.testing.assert_close(net.linear.weight.detach(), before["linear.weight"] * 0.95)


def test_optimiser_state_comes_back_bit_for_bit():
    def train(net, optimizer, n):
        for i in range(n):
            optimizer.zero_grad()
            net(torch.full((2, 4), float(i + 1))).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    net = nn.Linear(4, 4)
    optimizer = adamw(net, learning_rate=0.1, beta2=0.95, weight_decay=0.1)
    train(net, optimizer, 3)
    twin = nn.Linear(4, 4)
    twin.load_state_dict(net.state_dict())
    twin_optimizer = adamw(twin, learning_rate=0.1, beta2=0.95, weight_decay=0.1)
    load_state_tensors(twin, twin_optimizer, state_tensors(net, optimizer))
    train(net, optimizer, 3)
    train(twin, twin_optimizer, 3)
    assert torch.equal(net.weight, twin.weight)
