"""The highest learning rate of pretraining and fine-tuning where `params.yaml` has null: that of the kind of model."""

from __future__ import annotations

from axon_models.decoder.config import DecoderConfig
from axon_models.layers.language_model import Sizes

LEARNING_RATES = {"pretrain": 3.0e-3, "sft": 1.2e-3}
# Where each block ends with its norm, gradients are large near the output at the start (Xiong et al. 2020).
# At the rates above such a model learns little more than how frequent tokens are (docs/zoo_default.md).
LEARNING_RATES_POST_NORM = {"pretrain": 1.0e-3, "sft": 6.0e-4}


def own_learning_rate(stage: str, config: Sizes) -> float:
    """What `learning_rate: null` of `stage` (pretrain or sft) in params.yaml means for a model of `config`."""
    post_norm = isinstance(config, DecoderConfig) and config.block == "post_norm"
    return (LEARNING_RATES_POST_NORM if post_norm else LEARNING_RATES)[stage]
