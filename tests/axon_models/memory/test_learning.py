"""What memory is for: a text that repeats itself at a distance longer than a segment."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from axon_models.memory.config import TransformerXLConfig
from axon_models.memory.model import TransformerXL
from axon_models.memory.segments import segment_loss, segments, text_losses

PERIOD, SEGMENT, N_SYMBOLS = 12, 8, 8


def texts(n: int, generator: Generator) -> Tensor:
    """(n, 48): twelve random symbols, four times over. A segment of 8 never holds a symbol and its repetition."""
    return torch.randint(0, N_SYMBOLS, (n, PERIOD), generator=generator).repeat(1, 4)


def new_model(generator: Generator) -> TransformerXL:
    sizes = {"d_model": 32, "n_layers": 2, "heads": 2, "d_feed_forward": 64}
    lengths = {"max_positions": 4 * PERIOD, "segment_length": SEGMENT, "memory_length": 2 * SEGMENT}
    model = TransformerXL(TransformerXLConfig(vocab_size=N_SYMBOLS, init_std=0.1, **sizes, **lengths))
    model.init_weights(generator)
    return model


def trained(n_steps: int) -> TransformerXL:
    generator = Generator().manual_seed(5)
    model = new_model(generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(n_steps):
        batch, memory = texts(16, generator), None
        for inputs, targets in segments(batch, SEGMENT):
            loss, memory = segment_loss(model, inputs, targets, memory)
            optimizer.zero_grad()
            (loss / targets.numel()).backward()
            optimizer.step()
    return model.eval()


def test_with_memory_a_model_foretells_what_it_cannot_foretell_without() -> None:
    model = trained(n_steps=100)
    held_out = texts(64, Generator().manual_seed(6))
    repeated = slice(PERIOD - 1, None)  # losses from the first repeated symbol on

    def mean_loss(memory_length: int) -> float:
        losses = text_losses(model, held_out, segment_length=SEGMENT, memory_length=memory_length)
        return losses[:, repeated].mean().item()

    chance = math.log(N_SYMBOLS)
    assert mean_loss(2 * SEGMENT) < 0.2 * chance
    assert mean_loss(0) > 0.9 * chance


def test_whole_rows_teach_the_memory_too() -> None:
    """As the pipeline pretrains: a step has all segments of its rows, and no gradient goes from one to another."""
    generator = Generator().manual_seed(5)
    model = new_model(generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(300):
        rows = texts(16, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
    forgetful = TransformerXL(replace(model.config, memory_length=0))
    forgetful.load_state_dict(model.state_dict())
    held_out, losses = texts(64, Generator().manual_seed(6)), []
    with torch.no_grad():
        for reader in (model, forgetful):
            each = F.cross_entropy(reader(held_out[:, :-1]).mT, held_out[:, 1:], reduction="none")  # (B, T)
            losses.append(each[:, PERIOD - 1 :].mean().item())
    assert losses[0] < 0.2 * math.log(N_SYMBOLS)
    assert losses[1] > 0.9 * math.log(N_SYMBOLS)
