"""The decoder in the words of Hugging Face: config.json and tensor names of every family of checkpoints, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.families.expected import expected_tensors
from axon_models.decoder.families.family import Family
from axon_models.decoder.families.gpt import GPT2, OPENAI_GPT
from axon_models.decoder.families.llama import LLAMA, MISTRAL, MIXTRAL
from axon_models.decoder.families.own import own_family
from axon_models.decoder.families.phi import PHI
from axon_models.errors import CheckpointError, raise_all

_FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "openai-gpt": OPENAI_GPT,
    "mistral": MISTRAL,
    "mixtral": MIXTRAL,
    "phi": PHI,
    **{name: own_family(name) for name in ("pygpt", "gpt3_sparse", "switch")},
}
BY_TYPE = {family.model_type: name for name, family in _FAMILIES.items()}


def family_of(config: DecoderConfig) -> Family:
    return _FAMILIES[config.family]


def to_json(config: DecoderConfig, *, bos_id: int, eos_id: int, pad_id: int, n_labels: int) -> dict[str, Any]:
    """`config.json`; n_labels > 0 says that a head of so many numbers stands beside the language model.

    Raises `CheckpointError` for a config that its family cannot express.
    """
    if config.family not in _FAMILIES:
        raise CheckpointError(f"family={config.family!r} is not one of {', '.join(_FAMILIES)}")
    family = family_of(config)
    labels = {f"LABEL_{i}": i for i in range(n_labels)}
    # transformers' default is two labels, so one label has to be spelt out.
    head = {"id2label": {str(i): name for name, i in labels.items()}, "label2id": labels} if n_labels else {}
    tree = {
        "architectures": [family.classifier if n_labels else family.causal],
        "model_type": family.model_type,
        **family.to_json(config),
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "dtype": "float32",
        "use_cache": True,
        **head,
    }
    again = family.from_json(tree)
    names = [field.name for field in fields(config) if getattr(again, field.name) != getattr(config, field.name)]
    lost = [f"{n}={getattr(config, n)!r} would be read as {getattr(again, n)!r}" for n in names]
    raise_all(CheckpointError, f"a checkpoint of model type {family.model_type} cannot hold this decoder", lost)
    return tree


def from_json(tree: Mapping[str, Any]) -> DecoderConfig:
    """The config in a `config.json` of a known model type; what this decoder cannot do is refused, all at once."""
    model_type = tree.get("model_type")
    if model_type not in list(BY_TYPE):
        known = " or ".join(map(repr, BY_TYPE))
        raise CheckpointError(f"config.json: model_type={model_type!r} is not supported, only {known}")
    return _FAMILIES[BY_TYPE[model_type]].from_json(tree)


def shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a Hugging Face checkpoint of this config holds."""
    return {name: tuple(tensor.shape) for name, tensor in _cut(config, expected_tensors(config)).items()}


def to_tensors(config: DecoderConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's state dict cut into Hugging Face's tensors (float32, on the CPU)."""
    found = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in state.items()}
    return {name: tensor.contiguous() for name, tensor in _cut(config, found).items()}


def _cut(config: DecoderConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cut: dict[str, Tensor] = {}
    for ours, piece in family_of(config).pieces(config).items():
        cut.update(zip(piece.names, piece.cut(state[ours]), strict=True))
    return cut


def from_tensors(config: DecoderConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's state dict (float32) from Hugging Face's tensors, whose names and shapes have been checked."""
    pieces = family_of(config).pieces(config).items()
    return {ours: piece.join([tensors[name].float() for name in piece.names]) for ours, piece in pieces}
