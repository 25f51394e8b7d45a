"""Rows whose weights are rounded to bfloat16, against the float32 modules and the same modules in bfloat16."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from axon_models.decoder import presets as decoders
from axon_models.decoder.config import RopeScaling
from axon_models.decoder.model import Decoder
from axon_models.decoder.presets import config_of
from axon_models.generation import products
from axon_models.generation.answers import Request
from axon_models.generation.batcher import Batcher
from axon_models.generation.beams import BeamSettings, beam_search
from axon_models.generation.prepared_rows import PreparedRows
from axon_models.generation.products import OneRow, Packed, Plain, Product, layout
from axon_models.generation.rows import ModuleRows, Rows, rows_for
from axon_models.layers.language_model import LanguageModel
from tests.axon_models.small import randomise, small_decoder, small_preset, some_tokens

PROMPTS = [some_tokens(n, seed=n).tolist() for n in (3, 20, 1, 11, 33)]
SHAPES: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha": {"kv_heads": 6},
    "untied": {"tied_embeddings": False, "n_layers": 4},
    "odd": {"d_model": 30, "heads": 5, "kv_heads": 5, "vocab_size": 131},
}


def logits_of(rows: Rows, prompts: list[list[int]], n_steps: int) -> Tensor:
    """All logits of some steps, (T, B, V), the same tokens whatever the logits are."""
    tokens = some_tokens(n_steps, len(prompts), seed=6)
    with torch.inference_mode():
        found = [rows.add(prompts), *(rows.step(tokens[step]) for step in range(n_steps))]
    return torch.stack([logits.float() for logits in found])


def error(found: Tensor, reference: Tensor) -> float:
    """The root of the mean square of the difference, over the logits' own deviation."""
    return float((found - reference).square().mean().sqrt() / reference.std())


def three(model: LanguageModel, prompts: list[list[int]], chunk: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the modules in float32, of the modules in bfloat16, and of prepared rows in bfloat16."""
    sizes: dict[str, Any] = {"n_rows": len(prompts), "length": 64, "chunk": chunk}
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    kinds = (
        ModuleRows(model, **sizes),
        ModuleRows(rounded, **sizes),
        rows_for(model, **sizes, dtype=torch.bfloat16),
    )
    assert isinstance(kinds[2], PreparedRows)
    exact, in_bfloat16, found = (logits_of(rows, prompts, 9) for rows in kinds)
    return exact, in_bfloat16, found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[1:2]], ids=["five_rows", "one_row"])
@pytest.mark.parametrize("chunk", [64, 7])
def test_bfloat16_is_no_further_from_float32_than_modules_in_bfloat16(
    shape: str, prompts: list[list[int]], chunk: int
) -> None:
    exact, in_bfloat16, found = three(small_decoder(**SHAPES[shape]), prompts, chunk)
    # The stream of sums and the norms stay in float32 here, so there is less to round.
    assert 1e-4 < error(found, exact) < 1.1 * error(in_bfloat16, exact)
    assert error(found, in_bfloat16) < 2 * error(in_bfloat16, exact)


def test_the_error_is_that_of_rounding_each_factor_once() -> None:
    """Rounding moves a factor by at most 2⁻⁹ of it, 2⁻⁹/√3 in the mean square; a product has two, independent.

    A layer adds four products to the stream (the mean of two at least behind one another), the scores one more: errors
    of n products in a row add like √n. Twice that is allowed for attention, whose weights react to errors of scores.
    """
    model = randomise(Decoder(config_of("x_llama", vocab_size=67, d_model=64, n_layers=4, heads=4, kv_heads=2,
                                        d_feed_forward=128, max_positions=64, init_std=0.05)))  # fmt: skip
    exact, _, found = three(model, PROMPTS)
    n_products = 4 * model.config.n_layers + 1
    assert error(found, exact) < 2 * (2 * n_products) ** 0.5 * 2**-9 / 3**0.5


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[4:]], ids=["five_rows", "one_row"])
@pytest.mark.parametrize("preset", sorted(decoders.PRESETS))
def test_every_preset_is_no_further_from_float32_than_its_modules_in_bfloat16(
    preset: str, prompts: list[list[int]]
) -> None:
    """In the median over rows and steps: rounding decides some router's near tie the other way, and that row is off."""
    exact, in_bfloat16, found = three(small_preset(preset), prompts, 7)
    errors, of_modules = ((logits - exact).square().mean(-1).sqrt().median() for logits in (found, in_bfloat16))
    assert 1e-4 < errors < 1.1 * of_modules


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_kind_of_decoder_is_rounded_as_a_copy(dtype: torch.dtype) -> None:
    model = small_decoder(rope_scaling=RopeScaling(kind="dynamic", factor=2.0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = rows_for(model, n_rows=5, length=64, chunk=64, dtype=dtype)
    assert isinstance(rows, ModuleRows)
    by_hand = ModuleRows(copy.deepcopy(model).to(dtype), n_rows=5, length=64, chunk=64)
    assert torch.equal(logits_of(rows, PROMPTS, 4), logits_of(by_hand, PROMPTS, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_each_kind_of_product_is_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    for inputs, outputs in ((24, 60), (37, 24), (64, 1408), (16, 521)):
        weight = torch.randn(outputs, inputs, generator=generator)
        kinds: list[tuple[Product, torch.dtype]] = [
            (kind(weight.to(dtype)), dtype)
            for kind in (Plain, OneRow, Packed)
            for dtype in (torch.float32, torch.bfloat16)
        ]
        for product, dtype in kinds:
            for n in (1, 2, 19):
                x = torch.randn(n, inputs, generator=generator).to(dtype)
                exact = x.double() @ weight.to(dtype).double().t()
                near = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2**-8, "rtol": 2**-8}
                torch.testing.assert_close(product.of(x).double(), exact, **near)
                out, total = torch.empty(n, outputs), torch.full((n, outputs), 3.0)
                product.into(x, out)
                product.onto(x, total)
                torch.testing.assert_close(out.double(), exact, **near)
                torch.testing.assert_close(total.double() - 3, exact, **near)


def test_what_a_build_of_torch_lacks_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {layout(torch.float32, 1), layout(torch.bfloat16, 1)} == {OneRow}
    monkeypatch.setattr(products, "_packs", lambda dtype: True)
    assert {layout(torch.float32, 2), layout(torch.bfloat16, 2)} == {Packed}
    monkeypatch.setattr(products, "_packs", lambda dtype: False)
    assert {layout(torch.float32, 2), layout(torch.bfloat16, 2)} == {Plain}
    exact, in_bfloat16, found = three(small_decoder(), PROMPTS)
    assert error(found, exact) < 1.1 * error(in_bfloat16, exact)


def test_answers_and_beams_take_the_type() -> None:
    model = small_decoder()
    batcher = Batcher(model, max_rows=1, dtype=torch.bfloat16)
    batcher.submit(Request(prompt=PROMPTS[1], max_new_tokens=12))
    ((_, answer),) = batcher.run()
    rows = rows_for(model, n_rows=1, length=64, chunk=512, dtype=torch.bfloat16)
    expected = []
    with torch.inference_mode():
        logits = rows.add([PROMPTS[1]])
        for _ in range(12):
            expected.append(int(logits.argmax()))
            logits = rows.step(torch.tensor(expected[-1:]))
    assert list(answer.tokens) == expected
    (best,) = beam_search(model, PROMPTS[1], max_new_tokens=12, settings=BeamSettings(beams=1), dtype=torch.bfloat16)
    assert list(best.tokens) == expected
