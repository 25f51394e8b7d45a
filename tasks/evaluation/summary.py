"""From answers to figures: what stands in `metrics/evaluate.json`, by plain arithmetic over rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, TypedDict

from tasks.evaluation.bootstrap import mean_interval
from tasks.evaluation.prompts import Prompt, is_text


class Answer(TypedDict):
    """One model's answer to one prompt, with what was measured of it.

    `n_tokens` leaves out the end token; `divergence` is None where it was not measured.
    """

    answer: str
    n_tokens: int
    ended: bool
    score: float
    correct: bool
    well_formed: bool
    reward: float
    divergence: float | None


def outcomes(answers: Sequence[Answer], opponent: Sequence[Answer]) -> list[float]:
    """1 where the judge's score is above the opponent's on the same prompt, ½ where equal, 0 below."""
    return [
        0.5 if mine["score"] == theirs["score"] else float(mine["score"] > theirs["score"])
        for mine, theirs in zip(answers, opponent, strict=True)
    ]


def _mean(values: Iterable[float]) -> float | None:
    """The mean, or None where there is nothing to take it of: a figure that was not measured is not 0."""
    held = list(values)
    return fmean(held) if held else None


def _chrf(answers: Sequence[Answer], prompts: Sequence[Prompt]) -> float | None:
    """Corpus chrF2, 0 to 100 (Popović 2015), as sacrebleu computes it."""
    if not answers:
        return None
    from sacrebleu.metrics import CHRF

    score = CHRF().corpus_score([a["answer"] for a in answers], [[p["target"] for p in prompts]]).score
    return float(score)


def _by_task(prompts: Sequence[Prompt], answers: Sequence[Answer], won: Sequence[float]) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for task in sorted({prompt["task"] for prompt in prompts}):
        rows = [i for i, prompt in enumerate(prompts) if prompt["task"] == task]
        tasks[task] = {
            "n": len(rows),
            "exact_match": None if is_text(task) else fmean(float(answers[i]["correct"]) for i in rows),
            "well_formed": fmean(float(answers[i]["well_formed"]) for i in rows),
            "win_rate_vs_sft": fmean(won[i] for i in rows),
        }
    return tasks


def model_metrics(
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    sft_answers: Sequence[Answer],
    *,
    bits_per_byte: float,
    divergence: float | None,
    n_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The figures of one model. `divergence` None: take the mean of what was measured on its samples.

    Intervals of all models resample the prompts alike (same seed), so that differences between models are not
    blurred by different draws.
    """
    maths = [i for i, prompt in enumerate(prompts) if not is_text(prompt["task"])]
    text = [i for i, prompt in enumerate(prompts) if is_text(prompt["task"])]
    won = outcomes(answers, sft_answers)
    divergences = [answer["divergence"] for answer in answers if answer["divergence"] is not None]
    win_rate = mean_interval(won, n_resamples=n_resamples, seed=seed)
    metrics: dict[str, Any] = {
        "bits_per_byte": bits_per_byte,
        "exact_match": None,
        "exact_match_low": None,
        "exact_match_high": None,
        "chrf": _chrf([answers[i] for i in text], [prompts[i] for i in text]),
        "reward": fmean(answer["reward"] for answer in answers),
        "win_rate_vs_sft": win_rate.mean,
        "win_rate_low": win_rate.low,
        "win_rate_high": win_rate.high,
        "tie_rate": fmean(float(outcome == 0.5) for outcome in won),
        "win_rate_maths": _mean(won[i] for i in maths),
        "win_rate_docs": _mean(won[i] for i in text),
        "kl_to_sft": fmean(divergences) if divergence is None else divergence,
        "mean_length": fmean(answer["n_tokens"] for answer in answers),
        "ended": fmean(float(answer["ended"]) for answer in answers),
        "well_formed": fmean(float(answer["well_formed"]) for answer in answers),
        "n_maths": len(maths),
        "n_docs": len(text),
        "n_kl": len(divergences) if divergence is None else 0,
        "by_task": _by_task(prompts, answers, won),
    }
    if maths:
        correct = mean_interval([float(answers[i]["correct"]) for i in maths], n_resamples=n_resamples, seed=seed)
        metrics |= {
            "exact_match": correct.mean,
            "exact_match_low": correct.low,
            "exact_match_high": correct.high,
        }
    return metrics


def best_of_n_divergence(n: int) -> float:
    """log n − (n−1)/n nats: KL of the best of n from one draw (Stiennon et al. 2020, appendix G.3).

    Exact for scores without ties; an upper bound where answers repeat (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def samples(
    prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]], *, n_samples: int
) -> list[dict[str, Any]]:
    """A few prompts with every model's answer: the first of each task in turn, chosen before anyone answered."""
    turn: dict[str, int] = {}
    order: list[tuple[int, str, int]] = []
    for i, prompt in enumerate(prompts):
        turn[prompt["task"]] = turn.get(prompt["task"], -1) + 1
        order.append((turn[prompt["task"]], prompt["task"], i))
    chosen = sorted(i for _, _, i in sorted(order)[:n_samples])
    return [
        {
            **prompts[i],
            "answers": {
                model: {key: rows[i][key] for key in ("answer", "correct", "well_formed", "score", "n_tokens")}
                for model, rows in answers.items()
            },
        }
        for i in chosen
    ]


def all_finite(metrics: Any) -> bool:
    """Whether every number below `metrics` is finite."""
    if isinstance(metrics, Mapping):
        return all(all_finite(value) for value in metrics.values())
    return not isinstance(metrics, float) or math.isfinite(metrics)
