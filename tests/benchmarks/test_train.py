"""What `benchmarks.train` counts and compares, against hand arithmetic and against the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from axon_models import checkpoint
from benchmarks import contestants, peak
from benchmarks.contestants import Spec
from benchmarks.flops import Shape, mfu, training_flops_per_token
from benchmarks.train import SIZES, Entry, entries, fastest, synthetic_tokens, table, verdict

SMALL = Shape(
    d_model=8, n_layers=2, heads=4, kv_heads=2, d_feed_forward=12, vocab_size=10, seq_len=16, batch_size=2
)  # fmt: skip


@pytest.fixture(autouse=True)
def _settings_of_torch() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_flops_by_hand() -> None:
    # A block: queries 8·8, keys and values 8·4 each, output 8·8: 192; feed-forward 3·8·12 = 288. Output matrix 10·8.
    assert SMALL.n_multiplied == 2 * (192 + 288) + 80 == 1040
    assert SMALL.n_parameters == 1040 + 5 * 8
    # 6·1040 = 6240; attention 12 · 2 layers · 4 heads · 2 dimensions · 16 keys = 3072.
    assert training_flops_per_token(SMALL) == 6240 + 3072
    assert mfu(SMALL, tokens_per_s=100.0, peak_flops=1_862_400.0) == pytest.approx(0.5)


@pytest.mark.parametrize("name", SIZES)
def test_predicted_parameters_are_those_of_the_model(name: str) -> None:
    model = contestants.fresh_decoder(SIZES[name])
    assert SIZES[name].n_parameters == sum(p.numel() for p in model.parameters())


def test_gpt2_gets_blocks_as_large() -> None:
    # Llama's block has 480 weights; GPT-2's attention 4·64 = 256, so (480 − 256) / 16 = 14 rows twice.
    assert SMALL.gpt2_inner == 14


def test_synthetic_tokens_have_a_law_and_a_structure() -> None:
    tokens = synthetic_tokens(40_000, 50)
    assert np.array_equal(tokens, synthetic_tokens(40_000, 50))
    assert not np.array_equal(tokens, synthetic_tokens(40_000, 50, seed=1))
    counts = np.zeros((50, 50))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    rows = counts / counts.sum(1, keepdims=True)
    assert (rows.max(1) > 0.45).all(), "after each token one other comes about every second time"
    assert sorted(rows.argmax(1)) == list(range(50)), "each follows one other"


def test_peak_is_the_largest_of_the_sizes() -> None:
    found = peak.measure(1, sizes=(16, 32), n_bytes=2**16)
    assert set(found) == {"float32", "bfloat16", "memory"}
    assert all(value > 0 for value in found.values())


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    shape = SIZES["tiny"]
    np.save(tmp_path / "tokens.npy", synthetic_tokens(8 * shape.tokens_per_step, shape.vocab_size))
    checkpoint.save(contestants.fresh_decoder(shape), tmp_path / "weights")
    return Spec(
        contestant="axon",
        precision="float32",
        weights=str(tmp_path / "weights"),
        tokens=str(tmp_path / "tokens.npy"),
        n_steps=4,
        threads=1,
        shape=asdict(shape),
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_axon_and_llama_have_the_same_loss_curve(spec: Spec, attention: str) -> None:
    """Same weights, rows, optimiser and clipping: the benchmark compares the same work."""
    own = contestants.measure(spec)
    theirs = contestants.measure(replace(spec, contestant="llama", attention=attention))
    assert len(own["losses"]) == len(theirs["losses"]) == 6
    assert own["losses"] == pytest.approx(theirs["losses"], abs=1e-4)
    assert abs(own["losses"][-1] - own["losses"][0]) > 0.01, "the weights have to move, or nothing is compared"


def test_every_way_of_axon_s_step_has_its_curve(spec: Spec) -> None:
    plain = contestants.measure(spec)["losses"]
    assert contestants.measure(replace(spec, recompute=True))["losses"] == plain
    assert contestants.measure(replace(spec, weights=""))["losses"] == plain  # the weights of seed 0, saved or not


def test_gpt2_learns_from_the_same_rows(spec: Spec) -> None:
    found = contestants.measure(replace(spec, contestant="gpt2", attention="sdpa"))
    assert found["losses"][-1] < found["losses"][0]


def _run(speed: float, losses: list[float], first_step_s: float = 1.0) -> dict:
    return {
        "tokens_per_s": speed, "first_step_s": first_step_s, "peak_mib": 300.0, "rise_mib": 100.0, "losses": losses,
    }  # fmt: skip


def test_the_fastest_entry_of_each_goes_on_and_is_compared(spec: Spec) -> None:
    tried = entries(spec, ["axon", "llama"], compiled=True)
    assert len(tried) == 2 + 4 + 3
    speeds = {
        ("axon", "", "float32"): 100.0,
        ("axon", "", "bfloat16"): 200.0,
        ("llama", "sdpa", "float32"): 50.0,
        ("llama", "eager", "float32"): 80.0,
        ("llama", "sdpa", "bfloat16"): 70.0,
        ("llama", "eager", "bfloat16"): 60.0,
    }
    for e in tried:
        own = e.spec.contestant == "axon"
        compiled = 250.0 if own else 65.0
        speed = compiled if e.spec.compiled else speeds[e.spec.contestant, e.spec.attention, e.spec.precision]
        e.runs.append(_run(speed, [5.0, 4.0 if own else 4.25], 1.0 + 9.0 * e.spec.compiled))
    chosen = fastest(tried)
    assert [(e.spec.label, e.spec.precision) for e in chosen] == [
        ("axon", "bfloat16"), ("llama (eager)", "float32"), ("axon (compiled)", "float32"),
        ("llama (sdpa, compiled)", "bfloat16"),
    ]  # fmt: skip
    chosen[0].runs.append(_run(240.0, [5.0, 4.0]))
    chosen[1].runs.append(_run(60.0, [5.0, 4.25]))
    text = verdict(tried, chosen)
    # Rounds: 200/80 = 2.5 and 240/60 = 4.
    assert "llama (eager) in float32: 3.25 times its tokens/s (2.50 to 4.00 in 2 rounds)" in text
    assert "Largest difference of losses from llama (sdpa)'s, bfloat16: 2.5e-01." in text
    # Compiled in float32: 2.5 times; 64 tokens a step take 0.64 s less 0.256 s, so 9 s are back after 23 steps.
    assert "torch.compile of axon in float32: 2.50 times the speed, 9 s more at first; it pays after 23 steps." in text


def test_the_table_has_medians_ranges_and_mfu(spec: Spec) -> None:
    runs = [_run(speed, [5.0, 4.0]) for speed in (90.0, 100.0, 130.0)]
    peak_flops = {"float32": 400.0 * training_flops_per_token(SIZES["tiny"])}
    line = table(SIZES["tiny"], [Entry(spec=spec, runs=runs)], peak_flops).splitlines()[2]
    assert line == "| axon | float32 | 3 | 100 | 90 to 130 | 25% | 300 | 100 | 5.0000 | 4.0000 |"
