"""What the figures say, in words that claim no more than the figures do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.reports.text import interval, model_title, number


def win_rate_word(name: str, figures: Mapping[str, Any]) -> str:
    """One of "reference", "better", "worse", "no evidence"."""
    if name == "sft":
        return "reference"
    if figures["win_rate_low"] > 0.5:
        return "better"
    return "worse" if figures["win_rate_high"] < 0.5 else "no evidence"


def win_rate_sentence(name: str, figures: Mapping[str, Any], n_samples: int) -> str:
    """What the win rate of a model shows, and what it does not."""
    who = model_title(name, n_samples)
    spread = f"{number(figures['win_rate_vs_sft'])} ({interval(figures['win_rate_low'], figures['win_rate_high'])})"
    return {
        "reference": f"{who} is what the others are compared with.",
        "better": f"{who}: {spread}. The interval lies above 0.5: better than SFT on these prompts.",
        "worse": f"{who}: {spread}. The interval lies below 0.5: worse than SFT on these prompts.",
        "no evidence": f"{who}: {spread}. The interval includes 0.5: no evidence of a difference from SFT.",
    }[win_rate_word(name, figures)]


def beside_baselines(bits: float, baselines: Mapping[str, float]) -> str:
    """Between which compressors a model stands: "below zlib (1.97), above xz (1.66)"."""
    ordered = sorted(baselines.items(), key=lambda entry: (entry[1], entry[0]))
    beaten = [f"{baseline_title(name)} ({number(value)})" for name, value in ordered if value > bits]
    ahead = [f"{baseline_title(name)} ({number(value)})" for name, value in ordered if value <= bits]
    parts = ([f"below {beaten[0]}"] if beaten else []) + ([f"not below {ahead[-1]}"] if ahead else [])
    return ", ".join(parts)


def baseline_title(name: str) -> str:
    titles = {
        "token_unigram": "token unigram",
        "byte_3gram": "byte 3-gram",
        "token_3gram": "token 3-gram",
    }
    return titles.get(name, name.replace("_", " "))


def better_aligned(evaluation: Mapping[str, Any]) -> str:
    """Of ppo and dpo, the one that the judge prefers; dpo when they are equal."""
    return max(("dpo", "ppo"), key=lambda name: evaluation[name]["win_rate_vs_sft"])
