"""Activation checkpointing: the same bits, and less kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from axon_models.decoder.model import Decoder
from tasks.training.device import autocast
from tasks.training.losses import packed_loss, stream_loss
from tasks.training.recomputation import recompute_activations
from tests.axon_models.small import small_decoder, some_tokens

LOSSES = {"stream": stream_loss, "packed": packed_loss}


def _rows(length: int) -> dict[str, Tensor]:
    """Three rows of two segments each, with answers at every third place."""
    places = torch.arange(length)
    return {
        "tokens": some_tokens(3, length),
        "targets": some_tokens(3, length, seed=3),
        "positions": places.remainder(length // 2).expand(3, length),
        "segments": (places // (length // 2)).expand(3, length),
        "weights": (places % 3 == 0).float().expand(3, length),
    }


def _gradients(model: Decoder, loss: str, precision: str, length: int) -> tuple[dict[str, Tensor], int]:
    """Gradients by parameter, the loss among them, and the bytes that are kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.zero_grad(set_to_none=True)
    device = torch.device("cpu")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), autocast(device, precision):
        total = LOSSES[loss](model, _rows(length))
    total.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return {"loss": total.detach(), **found}, sum(kept.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_have_the_same_bits(loss: str, precision: str) -> None:
    model = small_decoder(n_layers=3, max_positions=160)
    plain, kept = _gradients(model, loss, precision, 150)  # two chunks of queries
    names = [name for name, _ in model.named_parameters()]
    recompute_activations(model)
    again, kept_again = _gradients(model, loss, precision, 150)
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    assert [name for name, _ in model.named_parameters()] == names
    assert kept_again < kept / 3


def test_the_inputs_of_blocks_are_what_a_further_layer_keeps() -> None:
    """Of each layer (B·T·D) numbers of four bytes; everything else belongs to the embedding, the norm and the loss."""
    kept = []
    for n_layers in (2, 3, 4):
        model = small_decoder(n_layers=n_layers, max_positions=160)
        recompute_activations(model)
        kept.append(_gradients(model, "stream", "float32", 150)[1])
    assert kept[1] - kept[0] == kept[2] - kept[1] == 3 * 150 * 24 * 4


def test_nothing_changes_without_gradients() -> None:
    model = small_decoder()
    tokens = some_tokens(2, 11)
    with torch.no_grad():
        expected = model(tokens)
        recompute_activations(model)
        assert torch.equal(model(tokens), expected)
