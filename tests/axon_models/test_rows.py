"""Prepared single-token steps and the modules' own against full recomputation, wherever rows stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from axon_models.decoder import config as configs
from axon_models.decoder.model import Decoder
from axon_models.decoder.presets import config_of
from axon_models.errors import ScoresError
from axon_models.generation import caches, prepared, stores
from axon_models.generation.answers import Request
from axon_models.generation.batcher import Batcher
from axon_models.generation.caches import FIRST_SLOTS, GrowingKVCache, grown, move_rows
from axon_models.generation.prepared import can_prepare
from axon_models.generation.prepared_rows import PreparedRows
from axon_models.generation.rows import ModuleRows, Rows, rows_for
from axon_models.generation.stores_by_window import store_for
from axon_models.layers.cache import KVCache
from axon_models.layers.language_model import Cache
from axon_models.layers.rolling_cache import RollingCache
from tests.axon_models.small import randomise, small_decoder, some_tokens

KINDS: dict[str, Callable[..., Rows]] = {"prepared": PreparedRows, "modules": ModuleRows}
SHAPES: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha": {"kv_heads": 6},
    "mqa": {"kv_heads": 1},
    "odd": {"d_model": 30, "heads": 5, "kv_heads": 5, "n_layers": 1, "vocab_size": 131},
    "untied": {"tied_embeddings": False},
    "other_theta_and_eps": {"rope_theta": 500.0, "norm_eps": 1e-1},
}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "pygpt": ("pygpt", {}),
    "gpt": ("gpt", {}),
    "gpt2": ("gpt2", {}),
    "gpt2_of_odd_heads": ("gpt2", {"d_model": 35, "heads": 5}),
    "gpt3_sparse": ("gpt3_sparse", {"window": 6}),
    "linear": ("x_llama", {"rope_scaling": configs.RopeScaling(kind="linear", factor=2.0)}),
    "mistral": ("mistral", {"window": 6}),
    "window_of_one": ("mistral", {"window": 1}),
    "mixtral": ("mixtral", {"window": 6}),
    "switch": ("switch", {}),
    "phi": ("phi", {}),
    "phi_of_few_heads": ("phi", {"kv_heads": 2, "d_model": 48}),
}
PROMPTS = [some_tokens(n, seed=n).tolist() for n in (3, 20, 1, 11, 33)]


def recomputed(model: Decoder, texts: list[list[int]]) -> Tensor:
    """The logits after each text, all of it computed at once: (B, V)."""
    with torch.no_grad():
        return torch.stack([model(torch.tensor([text]))[0, -1] for text in texts])


def assert_near(logits: Tensor, reference: Tensor) -> None:
    assert reference.std() > 0.3
    torch.testing.assert_close(logits, reference, atol=1e-5 * float(reference.abs().max()), rtol=0)


@torch.inference_mode()
def follow(model: Decoder, rows: Rows, n_steps: int) -> None:
    """Add prompts, step, drop and double rows, add again; hold every logit against full recomputation."""
    texts = [list(prompt) for prompt in PROMPTS[:3]]
    assert_near(rows.add(PROMPTS[:3]), recomputed(model, texts))
    tokens = some_tokens(n_steps, 5, seed=6)

    def steps(columns: range) -> None:
        for step in columns:
            chosen = tokens[step, : len(texts)]
            logits = rows.step(chosen)
            for text, token in zip(texts, chosen.tolist(), strict=True):
                text.append(token)
            assert_near(logits, recomputed(model, texts))

    def keep(order: list[int]) -> None:
        rows.keep(order)
        texts[:] = [list(texts[row]) for row in order]

    steps(range(3))
    keep([2, 1])  # the last takes the place of one that ended
    texts += [list(prompt) for prompt in PROMPTS[3:]]
    assert_near(rows.add(PROMPTS[3:]), recomputed(model, texts[2:]))
    steps(range(3, 6))
    keep([1, 1, 0, 3, 1])  # as beams do
    steps(range(6, n_steps))
    keep([3])
    steps(range(n_steps - 1, n_steps))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_full_recomputation(shape: str, kind: str) -> None:
    model = small_decoder(**SHAPES[shape])
    follow(model, KINDS[kind](model, n_rows=5, length=64, chunk=64, growing=False), 9)


def of_preset(name: str) -> Decoder:
    preset, sizes = PRESETS[name]
    shape = {"vocab_size": 67, "d_model": 24, "n_layers": 3, "heads": 6, "max_positions": 64, "init_std": 0.3}
    return randomise(Decoder(config_of(preset, **{**shape, **sizes}))).eval()


@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
@pytest.mark.parametrize("name", PRESETS)
def test_prepared_rows_of_every_preset_are_full_recomputation(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and answers shorter than a window, longer, and several times as long; buffers grow on the way."""
    monkeypatch.setattr(stores, "FIRST_SLOTS", 4)
    monkeypatch.setattr(stores, "_STEP", 4)
    rows = rows_for(of_preset(name), n_rows=5, length=64, chunk=chunk)
    assert isinstance(rows, PreparedRows)
    follow(of_preset(name), rows, 15)


@pytest.mark.parametrize("name", PRESETS)
def test_a_single_prepared_row_of_every_preset_is_full_recomputation(name: str) -> None:
    model = of_preset(name)
    rows, text = rows_for(model, n_rows=1, length=64, chunk=8), list(PROMPTS[1])
    assert isinstance(rows, PreparedRows)
    with torch.inference_mode():
        assert_near(rows.add([text]), recomputed(model, [text]))
        for token in range(20):
            text.append(token)
            assert_near(rows.step(torch.tensor([token])), recomputed(model, [text]))
        rows.keep([])
        assert_near(rows.add([[5, 6]]), recomputed(model, [[5, 6]]))


@pytest.mark.parametrize("n_rows", [1, 2])
def test_layers_with_a_window_hold_no_more_than_it(n_rows: int) -> None:
    sizes: dict[str, Any] = {"n_rows": n_rows, "length": 64, "growing": True, "dtype": torch.float32}
    held = store_for(of_preset("mistral").config, **sizes)
    held.reserve(60)
    assert held.slots == [6, 6, 6]
    held = store_for(of_preset("gpt3_sparse").config, **sizes)
    held.reserve(60)
    assert held.slots == [64, 6, 64]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 5, 16, 1000])
def test_prompts_filled_in_chunks_are_full_recomputation(kind: str, chunk: int) -> None:
    model = small_decoder()
    follow(model, KINDS[kind](model, n_rows=5, length=64, chunk=chunk, growing=False), 7)


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_grow_while_rows_are_written(kind: str) -> None:
    model = small_decoder(max_positions=4 * FIRST_SLOTS)
    rows = KINDS[kind](model, n_rows=2, length=3 * FIRST_SLOTS, chunk=50)
    prompts = [some_tokens(n).tolist() for n in (FIRST_SLOTS - 2, 5)]
    with torch.inference_mode():
        rows.add(prompts)
        logits = torch.empty(0)
        for step in range(FIRST_SLOTS + 5):  # past 64 slots, and past twice as many
            for text in prompts:
                text.append(step % 60)
            logits = rows.step(torch.tensor([step % 60] * 2))
    assert_near(logits, recomputed(model, prompts))


@pytest.mark.parametrize("lengths", [(129, 5), (150, 140), (200, 7), (97, 250)])
@pytest.mark.parametrize("n_rows", [2, 5])
def test_first_prompts_of_any_length_get_room(lengths: tuple[int, int], n_rows: int) -> None:
    """Keys grow by 32 slots and values by doubling, and both must hold what is written next."""
    model = small_decoder(max_positions=300)
    rows = PreparedRows(model, n_rows=n_rows, length=300, chunk=512)
    prompts = [some_tokens(n, seed=n).tolist() for n in lengths]
    with torch.inference_mode():
        assert_near(rows.add(prompts), recomputed(model, prompts))
        for step in range(20):
            for text in prompts:
                text.append(step)
            assert_near(rows.step(torch.tensor([step, step])), recomputed(model, prompts))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_in_the_place_of_a_longer_one_sees_nothing_of_it(kind: str) -> None:
    model = small_decoder()
    rows = KINDS[kind](model, n_rows=3, length=64, chunk=64)
    kept, longer, shorter = (some_tokens(n, seed=n).tolist() for n in (30, 40, 2))
    with torch.inference_mode():
        rows.add([kept, longer])
        rows.keep([0])
        rows.add([shorter])
        for token in (7, 8):
            logits = rows.step(torch.tensor([token, token]))
    assert_near(logits, recomputed(model, [[*kept, 7, 8], [*shorter, 7, 8]]))


def windowed(preset: str = "mistral", window: int = 6, **settings: Any) -> Decoder:
    sizes = {"vocab_size": 67, "d_model": 24, "n_layers": 3, "heads": 6, "kv_heads": 2, "max_positions": 64}
    return randomise(Decoder(config_of(preset, window=window, **sizes, **settings))).eval()


def cache_of(rows: Rows) -> Cache:
    assert isinstance(rows, ModuleRows)
    return rows._cache


@pytest.mark.parametrize("chunk", [1, 4, 5, 16, 1000])
@pytest.mark.parametrize(("preset", "window"), [("mistral", 6), ("mistral", 1), ("mistral", 40), ("mixtral", 6)])
def test_rows_of_a_window_are_full_recomputation(
    preset: str, window: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and answers shorter than the window, longer, and several times as long, in rows that change places."""
    monkeypatch.setattr(caches, "FIRST_SLOTS", 4)  # so that buffers grow to the window, and then roll
    model = windowed(preset, window)
    rows = rows_for(model, n_rows=5, length=64, chunk=chunk, prepare=False)
    cache = cache_of(rows)
    assert isinstance(cache, RollingCache)
    assert cache.keys.shape[3] == min(window, 4) + 1
    follow(model, rows, 15)
    assert cache.keys.shape[3] == window + 1


@pytest.mark.parametrize("prepare", [True, False])
def test_a_row_of_a_window_sees_nothing_of_what_stood_in_its_place(prepare: bool) -> None:
    model = windowed(window=20)
    rows = rows_for(model, n_rows=2, length=64, chunk=64, prepare=prepare)
    longer, shorter = (some_tokens(n, seed=n).tolist() for n in (10, 2))
    with torch.inference_mode():
        rows.add([longer, longer])
        rows.keep([])
        rows.add([shorter])
        logits = rows.step(torch.tensor([7]))
    assert_near(logits, recomputed(model, [[*shorter, 7]]))


def test_a_row_in_the_place_of_one_that_was_no_number_is_well() -> None:
    model = windowed(tied_embeddings=False)
    with torch.no_grad():
        model.embedding.weight[66] = float("inf")
    batcher = Batcher(model, max_rows=2)
    batcher.submit(Request(prompt=[66, 1, 2, 3, 4, 5], max_new_tokens=3))
    with pytest.raises(ScoresError):
        list(batcher.run())
    batcher.submit(Request(prompt=[5, 6, 7], max_new_tokens=3))
    ((_, answer),) = batcher.run()
    fresh = Batcher(model, max_rows=2)
    fresh.submit(Request(prompt=[5, 6, 7], max_new_tokens=3))
    assert [found.tokens for _, found in fresh.run()] == [answer.tokens]


def test_a_window_is_rolled_only_where_it_saves_something_and_all_layers_have_it() -> None:
    def kind(model: Decoder, **settings: Any) -> type:
        return type(cache_of(rows_for(model, n_rows=1, length=64, chunk=8, prepare=False, **settings)))

    assert kind(windowed(window=63)) is RollingCache
    assert kind(windowed(window=64)) is GrowingKVCache
    assert kind(windowed(window=6), growing=False) is KVCache
    sizes = {"vocab_size": 67, "d_model": 24, "n_layers": 2, "heads": 6, "max_positions": 64, "window": 6}
    assert kind(Decoder(config_of("gpt3_sparse", **sizes))) is GrowingKVCache


def test_growing_stops_at_the_length() -> None:
    buffer = torch.arange(12.0).view(1, 1, 1, 6, 2)
    assert grown(buffer, 6, 20) is buffer
    wider = grown(buffer, 7, 20)
    assert wider.shape[-2] == 12
    assert torch.equal(wider[..., :6, :], buffer)
    assert not wider[..., 6:, :].any()
    assert grown(buffer, 7, 9).shape[-2] == 9
    with pytest.raises(ValueError, match="21 slots of keys and values are asked for, at most 20"):
        grown(buffer, 21, 20)


def test_moved_rows_are_those_that_the_order_names() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        buffer = torch.rand(3, 6, 2, 5, 4, generator=generator)
        order = torch.randint(0, 6, (4,), generator=generator).tolist()
        moved = buffer.clone()
        move_rows(moved, order, 5)
        assert torch.equal(moved[:, :4], buffer[:, order])


def test_prepared_rows_are_taken_for_the_decoder_that_they_know() -> None:
    known = small_decoder()
    assert isinstance(rows_for(known, n_rows=1, length=8, chunk=8), PreparedRows)
    assert isinstance(rows_for(known, n_rows=1, length=8, chunk=8, prepare=False), ModuleRows)
    assert not can_prepare(small_decoder().to(torch.bfloat16))
    other = small_decoder()
    other.blocks[1].feed_forward = torch.nn.Identity()
    assert isinstance(rows_for(other, n_rows=1, length=8, chunk=8), ModuleRows)


def test_a_setting_that_is_not_known_is_not_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Later(configs.DecoderConfig):
        novelty: int = 0

    monkeypatch.setattr(prepared, "DecoderConfig", Later)
    model = small_decoder()
    for novelty, expected in ((0, True), (3, False)):
        model.config = Later(**{**vars(model.config), "novelty": novelty})
        assert can_prepare(model) is expected


def test_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype=torch.float16 must be torch.float32 or torch.bfloat16"):
        rows_for(small_decoder(), n_rows=1, length=8, chunk=8, dtype=torch.float16)
