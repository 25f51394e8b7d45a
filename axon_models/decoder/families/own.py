"""Checkpoints of decoders that `transformers` has no class for: our own config and names, under `axon_<name>`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from axon_models.decoder.config import DecoderConfig, Experts, RopeScaling
from axon_models.decoder.families.expected import expected_tensors
from axon_models.decoder.families.family import Family, Piece, checked, whole
from axon_models.errors import CheckpointError, raise_all

_NOTE = "transformers has no class for this model; read it with axon_models.load(directory)"
_PARTS: dict[str, type[RopeScaling] | type[Experts]] = {"rope_scaling": RopeScaling, "experts": Experts}


def _to_json(config: DecoderConfig) -> dict[str, Any]:
    return {"note": _NOTE, "decoder": asdict(config)}


def _from_json(tree: Mapping[str, Any]) -> DecoderConfig:
    found = tree.get("decoder")
    if not isinstance(found, Mapping):
        raise CheckpointError("config.json: decoder is missing; it must hold the sizes")
    values = dict(found)
    wrong = _unknown(DecoderConfig, values, "decoder")
    for name, kind in _PARTS.items():
        part = values.get(name)
        if part is not None and not isinstance(part, Mapping):
            wrong.append(f"decoder.{name}={part!r} must hold an object or null")
        elif part is not None:
            wrong += _unknown(kind, part, f"decoder.{name}")
    raise_all(CheckpointError, "config.json", wrong)
    parts = {name: kind(**values[name]) for name, kind in _PARTS.items() if values.get(name) is not None}
    return checked(**{**values, **parts})


def _unknown(kind: type, values: Mapping[str, Any], where: str) -> list[str]:
    """What is missing for a dataclass (its defaults included, since a file holds all), and what it does not have."""
    known = {field.name for field in fields(kind)}
    missing = [f"{where}.{name} is missing" for name in sorted(known - values.keys())]
    return missing + [f"{where}.{name} is not known" for name in sorted(values.keys() - known)]


def own_family(name: str) -> Family:
    """The family of the decoder called `name`; tensors are named as in the decoder itself."""

    def pieces(config: DecoderConfig) -> dict[str, Piece]:
        return {ours: whole(ours) for ours in expected_tensors(config)}

    return Family(
        model_type=f"axon_{name}",
        causal="AxonDecoder",
        classifier="AxonDecoderWithScalarHead",
        to_json=_to_json,
        from_json=_from_json,
        pieces=pieces,
    )
