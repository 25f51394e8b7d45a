"""The decoder: token ids in, scores of the next token out.

The blocks are built once from the config (`build.py`); `forward` only runs them. A new variant is another module.
"""
# B batch, T time, S time of keys, D model, H heads, G kv groups, V vocabulary

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from axon_models.decoder import build
from axon_models.decoder.config import DecoderConfig
from axon_models.layers.attend import Attend, as_bias, banded, both_seen, causal, in_band, masked
from axon_models.layers.block import Block as Block  # what a model is made of, for those who deal with parts of it
from axon_models.layers.cache import KVCache
from axon_models.layers.language_model import Cache, LanguageModel
from axon_models.layers.moe.routing import RoutedExperts
from axon_models.layers.moe.switch import SwitchExperts
from axon_models.layers.rolling_cache import RollingCache


class Decoder(LanguageModel):
    """A causal language model. Weights are float32 and undefined in value until `init_weights` or `load`.

    A mask may also be additive. Layers with a window see no more than that of it. Where the output has a bias, `hidden`
    has a one behind each state (`output_weight`).
    """

    config: DecoderConfig

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = build.added_positions(config)
        self.rotary = build.rotary(config)
        self.blocks = nn.ModuleList(build.block(config) for _ in range(config.n_layers))
        self.norm = build.final_norm(config)
        # A tied model has no second matrix, so that no parameter has two names.
        self._output_name = "embedding.weight" if config.tied_embeddings else "output.weight"
        if not config.tied_embeddings:
            self.output = nn.Linear(self.hidden_width, config.vocab_size, bias=False)
        self._before_output = _WithOne() if config.output_bias else nn.Identity()

    @property
    def output_weight(self) -> Tensor:
        """What scores are made with: hidden · output_weightᵀ. (V, D), the embedding's matrix if tied.

        An output's bias is its last column, (V, D+1), for the one that `hidden` then ends with.
        """
        return self.get_parameter(self._output_name)

    @property
    def hidden_width(self) -> int:
        """The last dimension of `hidden`: D, or D+1 where the output has a bias."""
        return self.config.d_model + self.config.output_bias

    @property
    def padded_positions(self) -> int:
        """As in `LanguageModel`: with dynamic scaling angles depend on a row's length, past the trained one."""
        scaling = self.config.rope_scaling
        is_dynamic = scaling is not None and scaling.kind == "dynamic"
        return self.config.trained_positions if is_dynamic else self.config.max_positions

    def init_weights(self, generator: Generator) -> None:
        """Normal weights of deviation `init_std`, those that write to the residual stream smaller by √(2·n_layers).

        The scaling is GPT-2's (Radford et al. 2019, section 2.3); where each block ends with a norm there is none
        (Radford et al. 2018, section 4.1). Gains are 1 and biases 0. The result depends on `generator` alone.
        """
        std = self.config.init_std
        residual_std = std if self.config.block == "post_norm" else std / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
            else:
                writes_residual = name.endswith(_WRITING)
                nn.init.normal_(parameter, std=residual_std if writes_residual else std, generator=generator)
        if self.config.output_bias:
            nn.init.zeros_(self.output.weight[:, -1])

    def drop_no_tokens(self) -> None:
        """From here on no expert is ever full in training, as it never is in evaluation; weights stay as they are."""
        for module in self.modules():
            if isinstance(module, SwitchExperts):
                module.capacity_factor = float(module.n_experts)

    def new_cache(
        self,
        batch: int,
        length: int,
        *,
        rolling: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Cache:
        """An empty cache for `batch` rows of up to `length` positions, by default of the weights' type and device.

        rolling: keep no more than the model's window, whatever the length; raises `ValueError` for a model with a
        layer that sees everything. What `hidden` is then to be given is told in `RollingCache`.
        """
        config, weight = self.config, self.embedding.weight
        kind, place = dtype or weight.dtype, device or weight.device
        if not rolling:
            return KVCache(
                n_layers=config.n_layers,
                batch=batch,
                length=length,
                kv_heads=config.kv_heads,
                head_dim=config.head_dim,
                dtype=kind,
                device=place,
            )
        if None in config.windows or config.window is None:
            raise ValueError("a rolling cache keeps a window of positions, but this model has layers that see them all")
        return RollingCache(
            n_layers=config.n_layers,
            batch=batch,
            window=config.window,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            dtype=kind,
            device=place,
        )

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """What enters the first block, (B, T, D), of tokens (B, T)."""
        x: Tensor = self.positions(self.embedding(tokens), positions)
        return x

    def hidden_and_penalty(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`hidden`, and for each row what its router adds to the mean loss of its tokens, (B,); None without a router.

        counted (B, T) bool: the tokens that are no padding, None for all. A row's penalty depends on that row alone,
        so that a step is the same however its rows are dealt out; of a single row it is the penalty of the literature.
        """
        x = self.embed(tokens, positions)
        x, router_logits = self._run(x, slice(None), positions, mask, None)
        return self.before_output(self.norm(x)), self._penalty(router_logits, counted)

    def _penalty(self, router_logits: list[Tensor], counted: Tensor | None) -> Tensor | None:
        if not router_logits:
            return None
        experts: RoutedExperts = self.blocks[0].feed_forward  # type: ignore[assignment]
        rows = [slice(row, row + 1) for row in range(len(router_logits[0]))]
        masks = [None if counted is None else counted[row] for row in rows]
        each = [experts.penalty([z[row] for z in router_logits], mask) for row, mask in zip(rows, masks, strict=True)]
        return torch.stack(each)  # (B,)

    def before_output(self, states: Tensor) -> Tensor:
        """`hidden` of `states`."""
        hidden: Tensor = self._before_output(states)
        return hidden

    def through(
        self,
        x: Tensor,
        blocks: slice,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """The states x (B, T, D) after some consecutive blocks; other arguments as in `hidden`."""
        return self._run(x, blocks, positions, mask, cache)[0]

    def _run(
        self, x: Tensor, blocks: slice, positions: Tensor | None, mask: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The states x (B, T, D) after some blocks, and the router logits (B, T, N) of those that have a router."""
        rotation = self.rotary.first(x.shape[1]) if positions is None else self.rotary.at(positions)
        attends, routed = self._attends(x, positions, mask, cache)[blocks], []
        for block, attend in zip(self.blocks[blocks], attends, strict=True):
            x, router_logits = block(x, rotation, attend)
            routed.append(router_logits)
        return x, [logits for logits in routed if logits is not None]

    def _attends(self, x: Tensor, positions: Tensor | None, mask: Tensor | None, cache: Cache | None) -> list[Attend]:
        """The `Attend` of each layer; layers with the same window share one mask."""
        windows, n_tokens = self.config.windows, x.shape[1]
        if isinstance(cache, RollingCache):  # it knows the one window that all layers have
            return cache.attends(positions, mask, n_tokens)
        by_window: dict[int | None, list[Attend]] = {}
        for window in dict.fromkeys(windows):
            if cache is None:
                by_window[window] = [_attend(mask, n_tokens, window, x.device)] * len(windows)
            else:
                by_window[window] = cache.attends(positions, _cached_mask(cache, positions, mask, n_tokens, window))
        return [by_window[window][layer] for layer, window in enumerate(windows)]


def _attend(mask: Tensor | None, n_tokens: int, window: int | None, device: torch.device) -> Attend:
    """How tokens see one another, their places in the row being 0 … n_tokens−1."""
    if mask is None:
        return causal if window is None or window >= n_tokens else partial(banded, window=window)
    if window is None:
        return partial(masked, bias=as_bias(mask))
    places = torch.arange(n_tokens, device=device)[None]
    return partial(masked, bias=as_bias(both_seen(mask, in_band(places, mask.shape[-1], window))))


def _cached_mask(
    cache: KVCache, positions: Tensor | None, mask: Tensor | None, n_tokens: int, window: int | None
) -> Tensor | None:
    """`mask` over the slots of a cache, slot s holding position s, without what lies before the window."""
    if window is None or (mask is None and positions is None and n_tokens <= window):
        return mask
    device = cache.keys.device
    places = torch.arange(n_tokens, device=device)[None] if positions is None else positions
    if mask is None:
        return in_band(places, n_tokens if positions is None else cache.keys.shape[3], window)
    return both_seen(mask, in_band(places, mask.shape[-1], window))


_WRITING = ("attention.output.weight", "feed_forward.down.weight", "feed_forward.experts.down")


class _WithOne(nn.Module):
    """(..., D) to (..., D+1): a one behind each state, which the output's bias is multiplied with."""

    def forward(self, states: Tensor) -> Tensor:
        return F.pad(states, (0, 1), value=1.0)
