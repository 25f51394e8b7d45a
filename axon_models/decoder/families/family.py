"""What a family of checkpoints is: its words for a config, and the tensors that ours are cut into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from axon_models.decoder.config import DecoderConfig, RopeScaling
from axon_models.errors import CheckpointError, ConfigError, raise_all

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """One of our tensors: the names of theirs that it is made of, how to cut it into them and how to join them."""

    names: tuple[str, ...]
    cut: Callable[[Tensor], Sequence[Tensor]]
    join: Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of checkpoint, by the `model_type` of its config.json.

    to_json and from_json: the keys of config.json that a config determines, and back; from_json raises
    `CheckpointError` with all that the decoder cannot do. pieces: for each of our tensors what it is there.
    prefix: what some writers leave out before a name, but for the names in `outside`. ignored: the ends of names of
    tables that follow from the config, which some writers keep.
    """

    model_type: str
    causal: str  # the class of the language model, and of the one with a scalar head
    classifier: str
    to_json: Callable[[DecoderConfig], dict[str, Any]]
    from_json: Callable[[Mapping[str, Any]], DecoderConfig]
    pieces: Callable[[DecoderConfig], dict[str, Piece]]
    prefix: str = ""
    outside: tuple[str, ...] = ("lm_head.", "score.")
    ignored: tuple[str, ...] = ()

    def named(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """`tensors`, or what is known of each, by their full names, without those that are ignored."""
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(self.ignored or ("\0",))}
        if not self.prefix or any(name.startswith(self.prefix) for name in kept):
            return kept
        return {name if name.startswith(self.outside) else self.prefix + name: tensor for name, tensor in kept.items()}


def whole(name: str) -> Piece:
    return Piece((name,), lambda ours: [ours], lambda theirs: theirs[0])


def turned(name: str) -> Piece:
    """A matrix that is stored with its inputs first, as in the first GPTs."""
    return Piece((name,), lambda ours: [ours.t()], lambda theirs: theirs[0].t())


def stacked(names: Sequence[str], rows: Sequence[int]) -> Piece:
    """Several tensors one below the other, of so many rows each."""
    return Piece(tuple(names), lambda ours: ours.split(list(rows)), lambda theirs: torch.cat(list(theirs)))


def with_bias(name: str) -> Piece:
    """A matrix and its bias, which is our last column."""

    def join(theirs: Sequence[Tensor]) -> Tensor:
        weight, bias = theirs
        return torch.cat([weight, bias.unsqueeze(1)], dim=1)

    return Piece((f"{name}.weight", f"{name}.bias"), lambda ours: [ours[:, :-1], ours[:, -1]], join)


def per_expert(names: Sequence[Sequence[str]], rows: Sequence[int]) -> Piece:
    """The tensors of all experts in one: names[e] are those of expert e, which stand one below the other."""
    n = len(rows)

    def cut(ours: Tensor) -> list[Tensor]:
        return [part for one in ours.unbind() for part in one.split(list(rows))]

    def join(theirs: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.cat(list(theirs[i : i + n])) for i in range(0, len(theirs), n)])

    return Piece(tuple(name for one in names for name in one), cut, join)


def both(pieces: Mapping[str, Piece], *, of: str, named: str) -> dict[str, Piece]:
    """Weight and bias alike: {"attention.qkv": …} becomes pieces of `of`.attention.qkv.weight and .bias.

    `named` stands before their names. A bias has one dimension, so it is stored as it is.
    """
    found = {}
    for ours, piece in pieces.items():
        for kind in ("weight", "bias"):
            names = tuple(f"{named}{name}.{kind}" for name in piece.names)
            cut = piece if kind == "weight" or len(names) > 1 else whole("")
            found[f"{of}{ours}.{kind}"] = Piece(names, cut.cut, cut.join)
    return found


def sizes_of(
    tree: Mapping[str, Any], words: Mapping[str, str], needed: Mapping[str, tuple[Any, Sequence[Any]]]
) -> dict[str, Any]:
    """The sizes of a config.json by our names. `words`: theirs by ours; `needed`: (found, allowed) values by key.

    Raises `CheckpointError` with every value that is not allowed and every size that is missing.
    """
    wrong = [
        f"{key}={value!r} is not supported, only {' or '.join(map(repr, allowed))}"
        for key, (value, allowed) in needed.items()
        if value not in allowed
    ]
    missing = [f"{theirs} is missing" for theirs in words.values() if theirs not in tree]
    raise_all(CheckpointError, "config.json", wrong + missing)
    return {ours: tree[theirs] for ours, theirs in words.items()}


def checked(**values: Any) -> DecoderConfig:
    """The config of these values, or a `CheckpointError` that says what is wrong with them."""
    try:
        return DecoderConfig(**values)
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from error


def rope_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """rope_parameters of transformers 5, or what version 4 wrote for them."""
    found = dict(tree.get("rope_scaling") or {})
    found.update(tree.get("rope_parameters") or {})
    found.setdefault("rope_type", found.get("type", "default"))
    found.setdefault("rope_theta", tree.get("rope_theta", 10000.0))
    return found


def scaling_of(rope: Mapping[str, Any], positions: int) -> dict[str, Any]:
    """`rope_scaling` and `max_positions` of a config; positions: max_position_embeddings, the trained length."""
    kind, factor = rope["rope_type"], rope.get("factor", 1.0)
    if kind == "default":
        return {"max_positions": positions}
    reached = int(positions * factor) if kind == "dynamic" and isinstance(positions, int) else positions
    try:
        return {"max_positions": reached, "rope_scaling": RopeScaling(kind=kind, factor=factor)}
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"config.json: {error}") from error


def rope_json(config: DecoderConfig) -> dict[str, Any]:
    """rope_theta is read by transformers 4; version 5 reads rope_parameters."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        parameters |= {"rope_type": config.rope_scaling.kind, "factor": config.rope_scaling.factor}
    return {
        "max_position_embeddings": trained_length(config),
        "rope_theta": config.rope_theta,
        "rope_parameters": parameters,
    }


def trained_length(config: DecoderConfig) -> int:
    """What Hugging Face calls max_position_embeddings: with dynamic scaling, the length before any scaling."""
    is_dynamic = config.rope_scaling is not None and config.rope_scaling.kind == "dynamic"
    return config.trained_positions if is_dynamic else config.max_positions
