"""No loss or validation of a training stage ever holds the scores of all its tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from axon_models.decoder.model import Decoder
from axon_models.decoder.presets import x_llama
from axon_models.objectives.cross_entropy import CHUNK
from tasks.alignment.rollouts import answer_statistics
from tasks.training.losses import bits_per_byte, packed_loss, packed_validation, stream_loss
from tasks.training.packing import packed_batch
from tests.tasks.test_training_packing import _examples

V, ROWS, LENGTH = 701, 8, 96  # 768 tokens, three chunks


class LargestScores(TorchDispatchMode):
    """The most numbers in any tensor, forward or backward, that has a dimension of the vocabulary's size."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor) and V in x.shape]
        self.numbers = max([self.numbers, *sizes])
        return made


def model() -> Decoder:
    found = Decoder(x_llama(vocab_size=V, d_model=16, n_layers=1, heads=2, max_positions=128))
    found.init_weights(torch.Generator().manual_seed(0))
    return found


def drawn(*shape: int) -> torch.Tensor:
    return torch.randint(6, V, shape, generator=torch.Generator().manual_seed(1))


def packed() -> Any:
    rows = [_examples(8) for _ in range(60)]
    return packed_batch(rows, seq_len=LENGTH, pad_id=1, device=torch.device("cpu"))


def stream(module: Decoder) -> None:
    stream_loss(module, {"tokens": drawn(ROWS, LENGTH), "targets": drawn(ROWS, LENGTH)}).backward()


def answers(module: Decoder) -> None:
    batch = packed()
    assert batch.n_targets > 2 * CHUNK
    packed_loss(module, batch.tensors).backward()


def validation(module: Decoder) -> None:
    with torch.no_grad():
        packed_validation(module, [packed()])


def text(module: Decoder) -> None:
    with torch.no_grad():
        bits_per_byte(module, drawn(ROWS * LENGTH).numpy(), 1_000, seq_len=LENGTH, batch_size=ROWS, separator=0)


def logprobs(module: Decoder) -> None:
    tokens, mask = drawn(ROWS, LENGTH), torch.ones(ROWS, LENGTH - 1, dtype=torch.bool)
    answer_statistics(module, tokens, mask, 1.0)[0].sum().backward()


def all_at_once(module: Decoder) -> None:
    F.cross_entropy(module(drawn(ROWS, LENGTH)).flatten(0, 1), drawn(ROWS * LENGTH)).backward()


def largest(work: Callable[[Decoder], None]) -> int:
    with LargestScores() as seen:
        work(model())
    return seen.numbers


@pytest.mark.parametrize("work", [stream, answers, validation, text, logprobs])
def test_scores_are_made_in_chunks(work: Callable[[Decoder], None]) -> None:
    assert 0 < largest(work) <= CHUNK * V


def test_scores_of_all_tokens_would_be_seen() -> None:
    assert largest(all_at_once) == ROWS * LENGTH * V
