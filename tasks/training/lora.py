"""Low-rank adapters: W stays as it is, and W + (alpha/rank)·B·A is trained (Hu et al. 2021, "LoRA", section 4.1).

`peft` holds the adapters while a stage trains. What a stage leaves is merged, so nobody who reads it knows of them.
"""
# I inputs, O outputs, r rank

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from axon_models.layers.language_model import LanguageModel
from axon_models.model_files import write_tensors
from tasks.errors import UserError
from tasks.files import write_json
from tasks.training.sampling import seed_of

if TYPE_CHECKING:
    from peft.tuners.lora import LoraModel

    from tasks.parameter_sections import Lora
    from tasks.steps.context import StepContext


class Adapters:
    """Adapters in the linear layers of a decoder, whose own weights are frozen from here on.

    A (r, I) is drawn from `seed` alone, as `peft` and `torch.nn.Linear` draw; B (O, r) is zero, so that the decoder
    computes what it did. Raises `UserError` where `peft` is not installed or a target has no linear layers.
    """

    def __init__(self, model: LanguageModel, settings: Lora, *, seed: int) -> None:
        self._model = model
        self._tuner = _tuner(model, settings)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in self.weights().items():
                if name.endswith("lora_A.weight"):
                    drawn = torch.empty(tensor.shape)  # on the CPU, whose generator is the same everywhere
                    tensor.copy_(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator))

    def weights(self) -> dict[str, Tensor]:
        """`LAYER.lora_A.weight` and `LAYER.lora_B.weight` of every layer that has an adapter."""
        return {
            name.replace(".default.", "."): p.detach() for name, p in self._model.named_parameters() if p.requires_grad
        }

    def save(self, directory: Path) -> None:
        """Write the adapters as `peft.set_peft_model_state_dict` takes them for the decoder that they were made for."""
        directory.mkdir()
        write_tensors(directory / "adapter_model.safetensors", self.weights())
        tree = self._tuner.peft_config["default"].to_dict()
        # Sets have another order in every process.
        write_json(
            directory / "adapter_config.json", {k: sorted(v) if isinstance(v, set) else v for k, v in tree.items()}
        )

    def merge(self) -> None:
        """Add every adapter to the weight that it belongs to, and leave the plain decoder."""
        self._tuner.merge_and_unload()
        self._model.requires_grad_(True)


def attach(context: StepContext, stage: str, model: LanguageModel) -> Adapters | None:
    """The adapters that `stage` is to train in place of the weights of `model`; None where `lora` is null."""
    settings = context.params.lora
    if settings is None:
        return None
    return Adapters(model, settings, seed=seed_of(context.params.seed, stage, "lora"))


def _tuner(model: LanguageModel, settings: Lora) -> LoraModel:
    try:
        from peft import LoraConfig  # seconds, since it imports transformers
        from peft.tuners.lora import LoraModel
    except ModuleNotFoundError as error:
        raise UserError(
            f"lora in params.yaml needs a library that is not installed ({error.name}); install it with: "
            "pip install --constraint constraints.txt --editable '.[lora]', or set lora: null"
        ) from None
    layers = [name for target in settings.targets for name in _linears(model, target)]
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=layers, bias="none")
    return LoraModel(model, config, "default")


def _linears(model: LanguageModel, target: str) -> list[str]:
    """The linear layers of `target`, by their names within a block: attention.qkv, …"""
    part = getattr(model.blocks[0], target)
    found = [f"{target}.{name}" for name, module in part.named_children() if isinstance(module, nn.Linear)]
    if model.config.experts is not None and target == "feed_forward":  # its router is one that is not called
        found = []
    if not found:
        raise UserError(f"lora.targets names {target}, which has no linear layers in this model; leave it out")
    return found
