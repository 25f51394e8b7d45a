from __future__ import annotations

import subprocess
import sys

import pytest

from axon_models.decoder.config import DecoderConfig, Experts, RopeScaling
from axon_models.decoder.presets import config_of
from axon_models.errors import ConfigError
from tests.axon_models.small import SIZES, small_decoder


def test_all_mistakes_are_reported_together_with_value_limit_and_place() -> None:
    with pytest.raises(ConfigError) as caught:
        DecoderConfig(**{**SIZES, "heads": 5, "kv_heads": 3})
    message = str(caught.value)
    assert "heads=5 must divide d_model=24; edit model.heads in params.yaml" in message
    assert "kv_heads=3 must divide heads=5; edit model.kv_heads in params.yaml" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vocab_size": 0}, "vocab_size=0 must be a whole number"),
        ({"n_layers": True}, "n_layers=True must be a whole number"),
        ({"rope_theta": float("nan")}, "rope_theta=nan must be a positive number"),
        ({"heads": 8, "kv_heads": 8}, "d_model/heads=3 must be even"),
        ({"heads": 4, "rotary_fraction": 0.5}, "d_model/heads·0.5=3 must be even"),
        ({"rotary_fraction": 0.0}, "rotary_fraction=0.0 must be above 0"),
        ({"d_model": 21, "heads": 3, "kv_heads": 3, "positions": "sinusoidal"}, "d_model=21 must be even"),
        ({"norm": "batch"}, "norm='batch' must be one of rms, layer; edit model.norm"),
        ({"window": 0}, "window=0 must be a whole number"),
        ({"pretraining_tp": 2}, "pretraining_tp=2 must divide d_feed_forward=37; edit pretraining_tp in config.json"),
        ({"rope_scaling": RopeScaling(kind="linear", factor=0.5)}, "rope_scaling.factor=0.5 must be a number"),
        ({"rope_scaling": RopeScaling(kind="yarn", factor=2.0)}, "rope_scaling.kind='yarn' must be one of linear"),  # type: ignore[arg-type]
        ({"positions": "learned", "rope_scaling": RopeScaling(kind="linear", factor=2)}, "is for rotary positions"),
        ({"output_bias": True}, "only an output of its own has a bias"),
        ({"experts": Experts(n=0, per_token=1)}, "experts=0 must be a whole number"),
        ({"experts": Experts(n=4, per_token=5)}, "experts_per_token=5 must be from 1 to experts=4"),
        ({"experts": Experts(n=4, per_token=2, routing="switch")}, "experts_per_token=2 must be 1"),
        ({"experts": Experts(n=4, per_token=1, routing="switch")}, "feed_forward='swiglu' must be 'relu'"),
        ({"experts": Experts(n=4, per_token=1), "block": "parallel"}, "block='parallel' must be 'pre_norm'"),
    ],
)
def test_a_size_out_of_range_is_refused(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        DecoderConfig(**{**SIZES, **changes})


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 1}, {"tied_embeddings": False}, {"n_layers": 3}])
def test_the_predicted_parameter_count_is_the_built_models(changes: dict[str, object]) -> None:
    model = small_decoder(**changes)
    assert model.config.n_parameters == sum(p.numel() for p in model.parameters())


def test_presets() -> None:
    assert config_of("x_llama").n_parameters == 2_662_464
    assert config_of("x_llama", n_layers=2).n_layers == 2
    with pytest.raises(ConfigError, match="did you mean 'x_llama'"):
        config_of("xllama")


def test_configs_and_the_package_import_without_torch() -> None:
    code = "import sys, axon_models, axon_models.decoder.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
