"""Packed rows train as the same examples would one by one."""

from __future__ import annotations

import pytest
import torch

from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Decoder
from tasks.training.examples import Example, first_fit, pack
from tasks.training.losses import packed_loss
from tasks.training.packing import block_causal_mask, packed_batch


def _examples(n: int) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(n):
        length = int(torch.randint(4, 12, (), generator=generator))
        tokens = torch.randint(6, 40, (length,), generator=generator).tolist()
        found.append(Example(record_id=i.to_bytes(16, "big"), tokens=tokens, prompt_length=2))
    return found


def test_first_fit_by_hand():
    # 5 opens row 0; 6 does not fit beside it; 4 fills row 0; 3 fills row 1; 2 opens row 2.
    assert first_fit([5, 6, 4, 3, 2], capacity=9) == [[0, 2], [1, 3], [4]]


def test_first_fit_refuses_what_no_row_can_hold():
    with pytest.raises(ValueError, match="item 1 has length 10"):
        first_fit([3, 10], capacity=9)


def test_packing_depends_on_content_and_seed_not_on_file_order():
    examples = _examples(30)
    rows, n_too_long = pack(examples, seq_len=24, seed=1)
    assert pack(examples[::-1], seq_len=24, seed=1)[0] == rows
    assert pack(examples, seq_len=24, seed=2)[0] != rows
    assert n_too_long == 0
    assert sorted(e.record_id for row in rows for e in row) == [e.record_id for e in examples]


def test_too_long_examples_are_counted():
    rows, n_too_long = pack(_examples(30), seq_len=6, seed=1)
    assert n_too_long == sum(len(e.tokens) > 7 for e in _examples(30)) > 0
    assert all(len(e.tokens) <= 7 for row in rows for e in row)


def test_the_loss_is_on_answers_only():
    example = Example(record_id=b"", tokens=[10, 11, 12, 13, 14], prompt_length=3)
    batch = packed_batch([[example, example]], seq_len=10, pad_id=1, device=torch.device("cpu"))
    assert batch.tensors["weights"].tolist() == [[0, 0, 1, 1, 0, 0, 1, 1, 0, 0]]
    assert batch.tensors["targets"][0, 2:4].tolist() == [13, 14]
    assert batch.tensors["positions"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 0, 0]]
    assert (batch.n_targets, batch.n_tokens) == (4, 8)


def test_the_mask_is_causal_within_a_segment():
    mask = block_causal_mask(torch.tensor([[0, 0, 1, -1]]))[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_a_packed_row_has_the_loss_and_gradient_of_its_examples_one_by_one():
    config = DecoderConfig(
        vocab_size=40, d_model=16, n_layers=2, heads=4, kv_heads=2, d_feed_forward=24, max_positions=64
    )
    model = Decoder(config).double()
    model.init_weights(torch.Generator().manual_seed(0))
    examples = _examples(4)
    gradients = []
    for rows in ([examples], [[e] for e in examples]):
        model.zero_grad()
        batch = packed_batch(rows, seq_len=48, pad_id=1, device=torch.device("cpu"))
        loss = packed_loss(model, batch.tensors)
        loss.backward()
        gradients.append((loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    torch.testing.assert_close(gradients[0], gradients[1])
