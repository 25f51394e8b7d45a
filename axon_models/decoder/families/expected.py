"""The names and shapes of a decoder's own tensors, without any memory for them."""

from __future__ import annotations

import torch
from torch import Tensor

from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Decoder


def expected_tensors(config: DecoderConfig) -> dict[str, Tensor]:
    """The state dict of a decoder of this config, on the meta device."""
    with torch.device("meta"):
        return dict(Decoder(config).state_dict())
