"""The sizes of the papers: their parameters counted by the config, by a model without memory, and by who published."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OpenAIGPTConfig,
    PhiConfig,
)

from axon_models.decoder.hugging_face import shapes, to_json
from axon_models.decoder.model import Decoder
from axon_models.decoder.sizes import SIZES
from axon_models.presets import PRESETS, build, config_of

# The numbers of parameters of the released checkpoints (a tied matrix once); papers round them.
PUBLISHED = {
    "gpt_117m": 116_534_784,
    "gpt2_124m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200,
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_33b": 32_528_943_616,
    "llama_65b": 65_285_660_672,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "mistral_7b": 7_241_732_096,
    "mixtral_8x7b": 46_702_792_704,
    "phi_1": 1_418_270_720,
    "phi_1_5": 1_418_270_720,
    "phi_2": 2_779_683_840,
}
# GPT-3 was not released; these are of table 2.1 of its paper, which counts no more exactly than this.
ROUNDED = {
    "gpt3_125m": (125e6, 1e6),
    "gpt3_350m": (350e6, 7e6),
    "gpt3_760m": (760e6, 1e6),
    "gpt3_1_3b": (1.3e9, 0.05e9),
    "gpt3_2_7b": (2.7e9, 0.05e9),
    "gpt3_6_7b": (6.7e9, 0.05e9),
    "gpt3_13b": (13e9, 0.2e9),
    "gpt3_175b": (175e9, 0.5e9),
}


@cache
def meta(name: str) -> Decoder:
    with torch.device("meta"):
        return Decoder(SIZES[name]())


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_as_many_as_published(name: str) -> None:
    built = sum(parameter.numel() for parameter in meta(name).parameters())
    assert SIZES[name]().n_parameters == built
    if name in PUBLISHED:
        assert built == PUBLISHED[name]
    else:
        wanted, rounding = ROUNDED[name]
        assert abs(built - wanted) < rounding


def test_every_size_is_held_against_a_published_number() -> None:
    assert PUBLISHED.keys() | ROUNDED.keys() == SIZES.keys()


def test_a_token_goes_through_two_of_eight_experts() -> None:
    """Jiang et al. 2024: 47B parameters, of which 13B are active."""
    config = SIZES["mixtral_8x7b"]()
    assert round(config.n_parameters / 1e9) == 47
    assert round(config.n_active_parameters / 1e9) == 13
    dense = SIZES["mistral_7b"]()
    assert dense.n_active_parameters == dense.n_parameters


THEIRS: dict[str, Any] = {
    "gpt_117m": OpenAIGPTConfig(),
    "gpt2_124m": GPT2Config(),
    "llama_7b": LlamaConfig(),
    "mistral_7b": MistralConfig(),
    "mixtral_8x7b": MixtralConfig(),
    "phi_1": PhiConfig(),
}


@pytest.mark.parametrize("name", THEIRS)
def test_transformers_own_defaults_have_as_many_parameters(name: str) -> None:
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(THEIRS[name])
    assert theirs.num_parameters() == SIZES[name]().n_parameters


@pytest.mark.parametrize("name", ["gpt2_1558m", "llama2_70b", "mixtral_8x7b", "phi_2"])
def test_transformers_reads_our_config_of_a_size_as_the_same_shapes(name: str) -> None:
    config = SIZES[name]()
    tree = to_json(config, bos_id=0, eos_id=1, pad_id=2, n_labels=0)
    kinds = {"gpt2": GPT2Config, "llama": LlamaConfig, "mixtral": MixtralConfig, "phi": PhiConfig}
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(kinds[config.family](**tree))
    found = {n: tuple(p.shape) for n, p in theirs.named_parameters() if "experts" not in n and "mlp.gate." not in n}
    ours = {n: shape for n, shape in shapes(config).items() if "block_sparse_moe" not in n}
    assert found == ours


@pytest.mark.parametrize("preset", PRESETS)
def test_the_predicted_count_of_a_small_preset_is_the_built_models(preset: str) -> None:
    for sizes in ({}, {"d_model": 48, "heads": 4, "n_layers": 3, "vocab_size": 77, "max_positions": 40}):
        config = config_of(preset, **sizes)
        with torch.device("meta"):
            assert config.n_parameters == sum(p.numel() for p in build(config).parameters())
