"""What a comparison of ours with a model of transformers consists of: logits, gradients, padding, caches."""
# B batch, T time, V vocabulary

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from axon_models.checkpoint import save
from axon_models.decoder.families.family import Piece
from axon_models.decoder.hugging_face import family_of
from axon_models.decoder.model import Decoder
from axon_models.decoder.presets import config_of
from axon_models.model_files import PAD_ID
from tests.axon_models.small import randomise, some_tokens

SIZES: dict[str, Any] = {"vocab_size": 67, "d_model": 24, "n_layers": 3, "heads": 4, "max_positions": 64}


def small(preset: str, **sizes: Any) -> Decoder:
    """A small decoder of a preset, with weights, gains and biases large enough that every one matters."""
    model = Decoder(config_of(preset, **{**SIZES, "init_std": 0.3, **sizes}))
    return randomise(model)


def reference(ours: Decoder, directory: Path) -> Any:
    """The model of transformers that reads what `save` writes of `ours`."""
    save(ours, directory)
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def without_padding(tokens: torch.Tensor) -> torch.Tensor:
    """transformers' embedding keeps the padding token's vector from learning, which ours has no reason to do."""
    return torch.where(tokens == PAD_ID, PAD_ID + 1, tokens)


def assert_same(
    ours: Decoder, theirs: Any, *, shape: tuple[int, int] = (3, 23), pieces: Mapping[str, Piece] | None = None
) -> None:
    """Equal logits, within 1e-4, and equal gradients of the cross-entropy, within 1e-3 of their size.

    pieces: what our tensors are in `theirs`, by default what they are in the files of their family.
    """
    tokens = without_padding(some_tokens(*shape))
    real = torch.ones_like(tokens, dtype=torch.bool)
    _assert_same(ours, theirs, tokens, real, ours(tokens), theirs(tokens).logits, pieces)


def assert_same_when_padded(ours: Decoder, theirs: Any, *, pieces: Mapping[str, Piece] | None = None) -> None:
    """Rows of several lengths, padded at the right and at the left: as `assert_same`, and equal to each row alone.

    The loss is of real tokens behind real ones. At the right ours is told nothing of the padding, which no real token
    sees. At the left it gets the positions in the texts and a mask, as `theirs` does on either side.
    """
    texts, places, lengths = without_padding(some_tokens(4, 17)), torch.arange(17), torch.tensor([[17], [9], [2], [1]])
    for real in (places < lengths, places >= 17 - lengths):  # (B, T)
        tokens, positions = torch.where(real, texts, PAD_ID), (real.cumsum(1) - 1).clamp(min=0)
        mask = real[:, None, None] & torch.ones(17, 17, dtype=torch.bool).tril()  # (B, 1, T, T)
        logits = ours(tokens) if real[:, 0].all() else ours(tokens, positions=positions, mask=mask)
        wanted = theirs(tokens, attention_mask=real.long(), position_ids=positions).logits
        _assert_same(ours, theirs, tokens, real, logits, wanted, pieces)
        for row, n in enumerate(real):
            torch.testing.assert_close(logits[row, n], ours(tokens[row : row + 1, n])[0], atol=1e-4, rtol=0)


def _assert_same(
    ours: Decoder,
    theirs: Any,
    tokens: Tensor,
    real: Tensor,
    logits: Tensor,
    wanted: Tensor,
    pieces: Mapping[str, Piece] | None,
) -> None:
    """Of the logits (B, T, V) of two models, where tokens are `real` (B, T), and of the gradients of their losses."""
    assert wanted[real].std() > 0.3
    torch.testing.assert_close(logits[real], wanted[real], atol=1e-4, rtol=0)
    counted, targets = real[:, :-1] & real[:, 1:], tokens[:, 1:]
    losses = [F.cross_entropy(values[:, :-1][counted], targets[counted]) for values in (logits, wanted)]
    assert_same_gradients(ours, theirs, *losses, pieces=pieces)


def assert_same_gradients(
    ours: Decoder, theirs: Any, loss: Tensor, wanted: Tensor, *, pieces: Mapping[str, Piece] | None = None
) -> None:
    """The gradients of all parameters, of a loss of ours and one of theirs."""
    pieces = family_of(ours.config).pieces(ours.config) if pieces is None else pieces
    found, expected = cut(pieces, _gradients(ours, loss)), _gradients(theirs, wanted)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3)


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Zeros where the loss does not depend on a parameter, as on those of an expert without tokens."""
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(learning, torch.autograd.grad(loss, list(learning.values()), materialize_grads=True), strict=True))


def cut(pieces: Mapping[str, Piece], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors as those of theirs that they are made of."""
    parts: dict[str, Tensor] = {}
    for ours, tensor in tensors.items():
        parts.update(zip(pieces[ours].names, pieces[ours].cut(tensor), strict=True))
    return parts


def load_cut(theirs: Any, pieces: Mapping[str, Piece], ours: Decoder) -> None:
    """Our weights into a model of transformers that reads none of our files; none of its parameters is left out."""
    tensors = cut(pieces, ours.state_dict())
    assert tensors.keys() == {name for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    theirs.load_state_dict(tensors, strict=False)
    theirs.eval()


@torch.no_grad()
def assert_cached_is_uncached(
    ours: Decoder, *, rolling: bool = False, chunks: tuple[int, ...] = (9, 7, 1, 1, 5)
) -> None:
    """One pass over rows equals any chunks of them with a cache: pre-fill in chunks, then token by token."""
    n = sum(chunks)
    tokens = some_tokens(2, n)
    whole, cache = ours(tokens), ours.new_cache(2, n, rolling=rolling)
    start, parts = 0, []
    for length in chunks:
        positions = torch.arange(start, start + length).expand(2, -1)
        slots = torch.arange(start + length)
        mask = None if rolling or not start else (slots <= positions[:, :, None])[:, None]
        chunk = tokens[:, start : start + length]
        parts.append(ours(chunk, positions=positions if start else None, mask=mask, cache=cache))
        start += length
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=0)
