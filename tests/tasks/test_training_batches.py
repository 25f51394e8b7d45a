"""Sampling is stateless: batch k is a function of (seed, k), and an epoch shows every row once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.errors import UserError
from tasks.training.batches import Batch, pad_rows, stream_batch
from tasks.training.sampling import Buckets, rows_of_batch


def test_an_epoch_shows_every_row_once_also_when_a_batch_spans_two_epochs():
    rows = np.concatenate([rows_of_batch(k, n_rows=10, batch_size=4, seed=3) for k in range(5)])  # two epochs
    assert sorted(rows[:10]) == list(range(10))
    assert sorted(rows[10:]) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()


def test_a_batch_depends_on_seed_and_number_only():
    first = rows_of_batch(7, n_rows=100, batch_size=8, seed=1).tolist()
    for k in range(5):
        rows_of_batch(k, n_rows=50, batch_size=8, seed=k)
    assert rows_of_batch(7, n_rows=100, batch_size=8, seed=1).tolist() == first
    assert rows_of_batch(7, n_rows=100, batch_size=8, seed=2).tolist() != first


def test_targets_of_a_stream_are_the_tokens_that_follow():
    stream = np.arange(1000, dtype=np.uint16)
    batch = stream_batch(stream, 3, batch_size=4, seq_len=16, seed=5, device=torch.device("cpu"))
    assert batch.tensors["tokens"].shape == (4, 16)
    assert torch.equal(batch.tensors["targets"], batch.tensors["tokens"] + 1)
    assert batch.n_targets == 64


def test_blocks_of_an_epoch_do_not_overlap():
    stream = np.arange(161, dtype=np.uint16)  # nine blocks of 16, and the room that the phase takes
    batches = [stream_batch(stream, k, batch_size=3, seq_len=16, seed=0, device=torch.device("cpu")) for k in range(3)]
    seen = torch.cat([b.tensors["tokens"].flatten() for b in batches])
    assert len(seen.unique()) == len(seen) == 144


def test_a_stream_that_is_too_short_is_refused():
    with pytest.raises(UserError, match="too few for rows of 16"):
        stream_batch(np.zeros(20, np.uint16), 0, batch_size=1, seq_len=16, seed=0, device=torch.device("cpu"))


@pytest.mark.parametrize("n_parts", [1, 2, 3, 7, 20])
def test_micro_batches_hold_every_row_once(n_parts):
    batch = Batch(tensors={"x": torch.arange(7)}, n_targets=7, n_tokens=7)
    parts = batch.split(n_parts)
    assert torch.cat([part["x"] for part in parts]).tolist() == list(range(7))
    assert len(parts) == min(n_parts, 7)


def test_buckets_show_every_row_once_an_epoch_and_pad_less_than_chance():
    lengths = np.random.default_rng(0).integers(1, 100, 103).tolist()
    buckets = Buckets(lengths, batch_size=4, seed=9)
    epoch = [buckets.rows(k) for k in range(buckets.n_batches)]
    assert sorted(row for rows in epoch for row in rows) == list(range(103))

    def padded(batches):
        return sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)

    by_chance = [list(range(i, min(i + 4, 103))) for i in range(0, 103, 4)]
    assert padded(epoch) < 0.8 * padded(by_chance)
    assert Buckets(lengths, batch_size=4, seed=9).rows(30) == buckets.rows(30)


def test_rows_are_padded_to_a_multiple():
    assert pad_rows([[7, 8], [9]], pad_id=1, multiple=4).tolist() == [[7, 8, 1, 1], [9, 1, 1, 1]]
