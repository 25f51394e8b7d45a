"""Bootstrap, bits per byte, divergence and win rates against hand arithmetic and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Decoder
from tasks.evaluation.bits_per_byte import Document, bits_per_byte, chunks
from tasks.evaluation.bootstrap import mean_interval
from tasks.evaluation.divergence import sequence_divergence, token_divergence
from tasks.evaluation.likelihood import total_nats
from tasks.evaluation.prompts import Prompt, balanced, choose, shard_seed, shards
from tasks.evaluation.summary import Answer, all_finite, best_of_n_divergence, model_metrics, outcomes, samples


def tiny_decoder(seed: int) -> Decoder:
    config = DecoderConfig(
        vocab_size=32, d_model=16, n_layers=2, heads=2, kv_heads=1, d_feed_forward=32, max_positions=64, init_std=0.3
    )
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()


class Bigram:
    """A "model" whose next token depends on the last alone, with probabilities (V, V)."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.output_weight = table, torch.eye(len(table))

    def hidden(self, tokens: Tensor) -> Tensor:
        return self.table.log()[tokens]

    __call__ = hidden


def answer(score: float, **changes: Any) -> Answer:
    plain = Answer(
        answer="7",
        n_tokens=2,
        ended=True,
        score=score,
        correct=score >= 1,
        well_formed=True,
        reward=score,
        divergence=0.5,
    )
    return plain | changes  # type: ignore[return-value]


def prompt(task: str, name: str, text: str = "?") -> Prompt:
    return Prompt(record_id=name, task=task, prompt=text, reference="7", target="7")


@pytest.mark.parametrize(("n", "n_right"), [(400, 120), (80, 40), (200, 190)])
def test_interval_of_a_share_is_the_binomial_one(n: int, n_right: int) -> None:
    found = mean_interval([1.0] * n_right + [0.0] * (n - n_right), n_resamples=20_000, seed=3)
    share = n_right / n
    # Resampling n draws of 0/1 with replacement is exactly a binomial draw.
    assert found.mean == pytest.approx(share)
    assert found.low == pytest.approx(binom.ppf(0.025, n, share) / n, abs=1.01 / n)
    assert found.high == pytest.approx(binom.ppf(0.975, n, share) / n, abs=1.01 / n)


def test_interval_of_equal_values_has_no_width() -> None:
    found = mean_interval([0.5] * 7, n_resamples=300, seed=0)
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)


def test_interval_depends_on_the_seed_alone() -> None:
    values = [float(v) for v in np.random.default_rng(0).normal(size=50)]
    first, again = (mean_interval(values, n_resamples=500, seed=1) for _ in range(2))
    assert first == again
    assert first != mean_interval(values, n_resamples=500, seed=2)


def test_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([], n_resamples=100, seed=0)


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_token() -> None:
    stream = np.arange(21, dtype=np.uint16) % 8
    nats = total_nats(lambda tokens: torch.zeros(*tokens.shape, 8), stream, seq_len=5, separator=0)
    assert nats == pytest.approx(21 * math.log(8))
    assert bits_per_byte([nats], [63]) == pytest.approx(21 * 3 / 63)


def test_a_bigram_model_by_hand() -> None:
    table = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.25, 0.5]])
    # 0 (the separator) | 1 1 2 | 0: p(1|0) p(1|1) p(2|1) p(0|2)
    by_hand = -math.log2(0.25 * 0.75 * 0.125 * 0.25)
    for seq_len in (2, 3, 4, 7):  # a window's first token still sees the token before it
        nats = total_nats(Bigram(table), np.array([1, 1, 2, 0], dtype=np.uint16), seq_len=seq_len, separator=0)
        assert nats / math.log(2) == pytest.approx(by_hand, rel=1e-6)


def test_windows_of_a_decoder_equal_one_token_at_a_time() -> None:
    model, seq_len = tiny_decoder(0), 6
    stream = np.random.default_rng(1).integers(0, 32, size=15).astype(np.uint16)
    slow, context = 0.0, [0]
    with torch.no_grad():
        for place, token in enumerate(stream.tolist()):
            if place % seq_len == 0:
                context = context[-1:]
            logprobs = model(torch.tensor([context]))[0, -1].log_softmax(-1)
            slow -= float(logprobs[token])
            context.append(token)
    assert total_nats(model, stream, seq_len=seq_len, separator=0) == pytest.approx(slow, rel=1e-5)


def test_chunks_hold_whole_documents_in_the_order_of_their_id() -> None:
    documents = [Document(bytes([9 - i]), offset=10 * i, length=10, n_bytes=30 + i) for i in range(5)]
    dealt = chunks(documents, n_chunks=2, tokens_per_chunk=15)
    assert [chunk.documents for chunk in dealt] == [[(40, 10), (30, 10)], [(20, 10), (10, 10)]]
    assert [chunk.n_bytes for chunk in dealt] == [34 + 33, 32 + 31]
    assert [len(chunk.documents) for chunk in chunks(documents, n_chunks=9, tokens_per_chunk=25)] == [3, 2]


def test_bits_per_byte_of_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        bits_per_byte([], [])


def test_divergence_of_identical_models_is_exactly_zero() -> None:
    found = sequence_divergence(tiny_decoder(0), tiny_decoder(0), [[1, 2, 3], [4]], [[5, 6], [7, 8, 9]], pad_id=1)
    assert found == [0.0, 0.0]


def test_divergence_by_hand() -> None:
    model = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    reference = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    after_0 = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    after_1 = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert token_divergence(model.log(), reference.log()).tolist() == pytest.approx([after_0, after_1])
    # Prompt 1 0, answer 1 1 0: its tokens follow 0, 1 and 1. The prompt's own tokens do not count.
    found = sequence_divergence(Bigram(model), Bigram(reference), [[1, 0], [1]], [[1, 1, 0], [0]], pad_id=0)
    assert found == pytest.approx([after_0 + 2 * after_1, after_1], rel=1e-5)


def test_divergence_of_decoders_is_positive_and_ignores_what_is_beside() -> None:
    model, other = tiny_decoder(0), tiny_decoder(1)
    alone = sequence_divergence(model, other, [[1, 2]], [[3, 4, 5]], pad_id=1)
    beside = sequence_divergence(model, other, [[1, 2], [9] * 20], [[3, 4, 5], [8] * 20], pad_id=1)
    assert alone[0] > 0
    assert beside[0] == pytest.approx(alone[0], rel=1e-4)


def test_best_of_n_divergence_is_that_of_the_order_statistic() -> None:
    assert best_of_n_divergence(1) == 0.0
    # Rank u of the best of n has density n·u^(n−1) on (0, 1): KL to uniform by numerical integration.
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = 4 * u**3
    assert best_of_n_divergence(4) == pytest.approx(float((density * np.log(density)).mean()), abs=1e-6)


def test_outcomes_count_wins_and_half_ties() -> None:
    mine, theirs = [answer(s) for s in (1.0, 0.5, 0.2)], [answer(s) for s in (0.3, 0.5, 0.9)]
    assert outcomes(mine, theirs) == [1.0, 0.5, 0.0]


def metrics_of(answers: list[Answer], against: list[Answer], **changes: Any) -> dict[str, Any]:
    prompts = [prompt("addition", "a"), prompt("addition", "b"), prompt("latex", "c"), prompt("docs", "d")]
    settings: dict[str, Any] = {"bits_per_byte": 2.0, "divergence": None, "n_resamples": 400, "seed": 1} | changes
    return model_metrics(prompts, answers, against, **settings)


def test_summary_by_hand() -> None:
    sft = [answer(s) for s in (1.0, 0.5, 0.5, 0.4)]
    model = [answer(1.0), answer(1.0), answer(0.2), answer(0.4, answer="7 or so", n_tokens=6, ended=False)]
    found = metrics_of(model, sft)
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["win_rate_vs_sft"] == pytest.approx((0.5 + 1 + 0 + 0.5) / 4)
    assert found["tie_rate"] == 0.5
    assert (found["win_rate_maths"], found["win_rate_docs"]) == (0.5, 0.5)
    assert found["win_rate_low"] <= found["win_rate_vs_sft"] <= found["win_rate_high"]
    assert found["mean_length"] == 3.0
    assert found["ended"] == 0.75
    assert found["kl_to_sft"] == 0.5
    assert found["reward"] == pytest.approx((1 + 1 + 0.2 + 0.4) / 4)
    assert found["by_task"]["addition"] == {"n": 2, "exact_match": 1.0, "well_formed": 1.0, "win_rate_vs_sft": 0.75}
    assert found["by_task"]["docs"]["exact_match"] is None
    assert 0 < found["chrf"] < 100
    assert metrics_of(model, sft, divergence=0.25)["kl_to_sft"] == 0.25
    some = [answer(1.0, divergence=None), *model[1:3], answer(1.0, divergence=2.0)]
    assert (metrics_of(some, sft)["kl_to_sft"], metrics_of(some, sft)["n_kl"]) == (1.0, 3)
    assert all_finite(found)
    assert not all_finite({"by_task": {"x": math.nan}})


def test_a_model_against_itself_wins_half_with_no_doubt() -> None:
    sft = [answer(s) for s in (1.0, 0.5, 0.5, 0.4)]
    found = metrics_of(sft, sft)
    assert (found["win_rate_low"], found["win_rate_vs_sft"], found["win_rate_high"]) == (0.5, 0.5, 0.5)


def test_samples_take_the_first_prompt_of_each_task_in_turn() -> None:
    prompts = [prompt(task, f"{task}{i}") for task in ("addition", "docs", "latex") for i in range(3)]
    shown = samples(prompts, {"sft": [answer(1.0)] * 9}, n_samples=4)
    assert [row["record_id"] for row in shown] == ["addition0", "addition1", "docs0", "latex0"]
    assert shown[0]["answers"]["sft"]["answer"] == "7"


def test_prompts_are_balanced_over_tasks_in_hash_order() -> None:
    many = [prompt("addition", f"{i:02x}") for i in range(9, -1, -1)]
    few = [prompt("latex", "ff")]
    chosen = balanced(many + few, 5)
    assert [(p["task"], p["record_id"]) for p in chosen] == [
        ("addition", "00"), ("addition", "01"), ("addition", "02"), ("addition", "03"), ("latex", "ff"),
    ]  # fmt: skip
    assert len(balanced(many + few, 99)) == 11


def test_prompts_that_do_not_fit_are_counted_and_passed_over() -> None:
    rows = [prompt("addition", "0", "short"), prompt("docs", "1", "long" * 9), prompt("docs", "2", "short")]
    chosen, n_too_long = choose(rows, n_maths=5, n_docs=5, fits=lambda text: len(text) < 9)
    assert [p["record_id"] for p in chosen] == ["0", "2"]
    assert n_too_long == 1


def test_shards_keep_order_and_never_mix_maths_with_prose() -> None:
    rows = [prompt("addition", str(i)) for i in range(5)] + [prompt("docs", str(i)) for i in range(5, 8)]
    cut = shards(rows, 2)
    assert [p for shard in cut for p in shard] == rows
    assert [len(shard) for shard in cut] == [2, 2, 1, 2, 1]


def test_seeds_of_shards_differ() -> None:
    seeds = {shard_seed(seed, name, i) for seed in (7, 8) for name in ("ppo", "dpo") for i in range(20)}
    assert len(seeds) == 80
    assert all(0 <= seed < 2**31 for seed in seeds)
