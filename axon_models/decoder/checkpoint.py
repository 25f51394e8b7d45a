"""Model directories of decoders: Hugging Face checkpoints, with or without a scalar head. Nothing is pickled."""
# D model

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from axon_models.decoder import hugging_face
from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Decoder
from axon_models.errors import CheckpointError, raise_all
from axon_models.layers.language_model import ScalarModel, scalar_head
from axon_models.model_files import (
    BOS_ID,
    EOS_ID,
    HEAD,
    PAD_ID,
    differences,
    homes_by_index,
    read_json,
    read_tensors,
    write_directory,
)

_OUTPUT = "lm_head.weight"


def save(
    model: Decoder,
    directory: str | Path,
    *,
    tokenizer_dir: str | Path | None = None,
    scalar_head: nn.Linear | Tensor | None = None,
) -> None:
    """Write `model` as a checkpoint of its family (`LlamaForCausalLM`, …) in float32; each file whole or not at all.

    With `scalar_head` (a linear layer of weight (1, D), or that weight) it is also a model for sequence classification
    with one label. The tokenizer's files are copied from `tokenizer_dir`. The bytes depend on the weights alone.
    Raises `CheckpointError` for a decoder that its family's config cannot express.
    """
    tensors = hugging_face.to_tensors(model.config, model.state_dict())
    if scalar_head is not None:
        tensors[HEAD] = scalar_head.weight if isinstance(scalar_head, nn.Linear) else scalar_head
    ids = {"bos_id": BOS_ID, "eos_id": EOS_ID, "pad_id": PAD_ID}
    tree = hugging_face.to_json(model.config, **ids, n_labels=0 if scalar_head is None else 1)
    write_directory(Path(directory), tree, tensors, tokenizer_dir)


def load(directory: str | Path, *, device: str | torch.device = "cpu") -> Decoder:
    """The decoder of a model directory, in float32 and in evaluation mode; a scalar head beside it is left unread.

    Reads every family of `decoder/families`: `model.safetensors`, whole or in shards, of any floating-point type.
    Raises `CheckpointError`, which lists everything that is wrong with the file where it is: no config or weights,
    pickled weights, tensors missing, unknown, of another shape or with NaN or infinity, sizes that do not fit.
    """
    config, tensors = _read(Path(directory), needs_head=False)
    return _decoder(config, tensors).to(device)


def load_scalar_model(directory: str | Path, *, device: str | torch.device = "cpu") -> ScalarModel:
    """As `load`, together with the scalar head; a directory without one raises `CheckpointError`."""
    config, tensors = _read(Path(directory), needs_head=True)
    head = scalar_head(config.d_model)
    head.load_state_dict({"weight": tensors[HEAD].float()})
    return ScalarModel(_decoder(config, tensors), head).eval().to(device)


def _decoder(config: DecoderConfig, tensors: dict[str, Tensor]) -> Decoder:
    model = Decoder(config)
    model.load_state_dict(hugging_face.from_tensors(config, tensors))
    return model.eval()


def _read(directory: Path, *, needs_head: bool) -> tuple[DecoderConfig, dict[str, Tensor]]:
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: there is no such model directory")
    tree = read_json(directory / "config.json")
    try:
        config = hugging_face.from_json(tree)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    tensors, homes = _read_tensors(directory, config)
    expected = hugging_face.shapes(config)
    if needs_head:
        expected[HEAD] = (1, config.d_model)
    else:
        tensors.pop(HEAD, None)
    untied = []
    if config.tied_embeddings and _OUTPUT in tensors:  # some writers store the tied matrix a second time
        (embedding,) = hugging_face.family_of(config).pieces(config)["embedding.weight"].names
        expected[_OUTPUT] = expected[embedding]
        untied = _untied(embedding, tensors, homes)
    raise_all(CheckpointError, str(directory), differences(expected, tensors, homes) + untied)
    return config, tensors


def _read_tensors(directory: Path, config: DecoderConfig) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a directory by their names in its family, and the file of each, as far as it is known."""
    tensors, homes = read_tensors(directory)
    named = hugging_face.family_of(config).named
    return named(tensors), {**named(homes_by_index(directory)), **named(homes)}


def _untied(embedding: str, tensors: Mapping[str, Tensor], homes: Mapping[str, str]) -> list[str]:
    """What to say if the output matrix of a tied model is another than its embedding; NaN and shapes apart."""
    one, other = tensors.get(embedding), tensors[_OUTPUT]
    if one is None or one.shape != other.shape:
        return []
    n_others = int(((one != other) & one.isfinite() & other.isfinite()).sum())
    if not n_others:
        return []
    return [
        f"{_OUTPUT} ({homes[_OUTPUT]}) differs from {embedding} ({homes[embedding]}) in {n_others} of {one.numel()} "
        "numbers, but config.json ties them; set tie_word_embeddings to false there if it is a matrix of its own"
    ]
