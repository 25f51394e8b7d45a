"""A model for the same tokens under other ids, and for a few that it did not know."""
# V vocabulary, D model

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from axon_models.layers.language_model import LanguageModel
from axon_models.presets import build

NEW = -1


def renumbered(model: LanguageModel, rows: Sequence[int]) -> LanguageModel:
    """The model whose token i is token `rows[i]` of `model`, on its device and in evaluation mode.

    Row i of the embedding, and of the output where that is a matrix of its own, is row `rows[i]`; where `rows` has
    `NEW`, it is the mean of all old rows, so that a new token takes little from the others (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models"). Raises `ValueError` for a row that is not there.
    """
    n_old = model.config.vocab_size
    wrong = sorted({row for row in rows if not (row == NEW or 0 <= row < n_old)})
    if wrong or not rows:
        raise ValueError(f"rows must be from 0 to {n_old - 1}, or {NEW} for new ones, but there are {wrong or 'none'}")
    taken = torch.tensor(rows)  # (V,)
    state = model.state_dict()
    for name in ("embedding.weight", "output.weight"):
        if name in state:
            old = state[name]  # (V before, D), the output with D+1 where it has a bias
            mean = old.double().mean(0).to(old.dtype)
            place = taken.to(old.device)
            state[name] = torch.where((place == NEW)[:, None], mean, old[place.clamp(min=0)])
    config: Any = model.config
    changed = build(replace(config, vocab_size=len(rows))).to(model.embedding.weight.device)
    changed.load_state_dict(state)
    return changed.eval()
