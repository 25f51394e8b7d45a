"""What a comparison of ours with a model of transformers consists of: logits, gradients, padding, caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from axon_models.checkpoint import save
from axon_models.decoder.hugging_face import to_tensors
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


def assert_same(ours: Decoder, theirs: Any, *, shape: tuple[int, int] = (3, 23)) -> None:
    """Equal logits, within 1e-4, and equal gradients of the cross-entropy, within 1e-3."""
    tokens = without_padding(some_tokens(*shape))
    logits, wanted = ours(tokens), theirs(tokens).logits
    assert wanted.std() > 0.3
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    for model, values in ((ours, logits), (theirs, wanted)):
        model.zero_grad()
        F.cross_entropy(values[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    found = dict(theirs.named_parameters())
    gradients = gradients_of(ours)
    assert gradients.keys() >= found.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, found[name].grad, atol=1e-3, rtol=1e-3)


def gradients_of(ours: Decoder) -> dict[str, torch.Tensor]:
    """The gradients by the names that transformers gives the parameters."""
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return to_tensors(ours.config, gradients)  # type: ignore[arg-type]


def assert_same_when_padded(ours: Decoder, theirs: Any) -> None:
    """Right-padded rows of several lengths: equal to transformers' with its attention mask, and to each row alone."""
    tokens, lengths = some_tokens(3, 17), torch.tensor([17, 9, 2])
    real = torch.arange(17) < lengths.unsqueeze(1)
    tokens = torch.where(real, tokens, PAD_ID)
    logits = ours(tokens)
    wanted = theirs(tokens, attention_mask=real.long()).logits
    torch.testing.assert_close(logits[real], wanted[real], atol=1e-4, rtol=0)
    for row, length in enumerate(lengths.tolist()):
        alone = ours(tokens[row : row + 1, :length])
        torch.testing.assert_close(logits[row, :length], alone[0], atol=1e-4, rtol=0)


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
