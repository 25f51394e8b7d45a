"""A small but complete set of artifacts for tests of the report: what the stages leave, with plausible numbers."""

# ruff: noqa: E501  (tables read better in one line)

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
from pathlib import Path
from typing import Any

from tasks.data import records
from tasks.files import write_bytes, write_json, write_text

MODELS = ("base", "sft", "sft_continued", "ppo", "dpo", "best_of_n")
KINDS = ("addition", "comparison", "docs", "equation", "fraction", "latex", "subtraction")
FIGURES: dict[str, tuple[float, float, float, float, float, float]] = {
    # exact match, win rate, chrF, bits per byte, KL, length
    "base": (0.0075, 0.112, 9.8, 1.9312, 38.42, 61.2),
    "sft": (0.6125, 0.5, 24.1, 2.0417, 0.0, 13.7),
    "sft_continued": (0.645, 0.528, 24.4, 2.0533, 0.41, 13.9),
    "ppo": (0.6625, 0.561, 23.2, 2.0498, 1.27, 12.8),
    "dpo": (0.6325, 0.517, 23.9, 2.0466, 0.86, 15.1),
    "best_of_n": (0.7275, 0.604, 24.0, 2.0417, math.log(4) - 0.75, 13.2),
}


def _evaluation() -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for place, (name, (exact, won, chrf, bits, divergence, length)) in enumerate(FIGURES.items()):
        spread = 0.0 if name == "sft" else 0.034 + 0.001 * place
        metrics[name] = {
            "bits_per_byte": bits, "chrf": chrf, "reward": -1.5 + 2.1 * exact, "tie_rate": 0.41,
            "exact_match": exact, "exact_match_low": max(0.0, exact - 0.047), "exact_match_high": exact + 0.046,
            "win_rate_vs_sft": won, "win_rate_low": won - spread, "win_rate_high": won + spread,
            "win_rate_maths": won, "win_rate_docs": won, "kl_to_sft": divergence, "mean_length": length,
            "ended": 0.04 if name == "base" else 0.97, "well_formed": 0.1 if name == "base" else 0.95,
            "n_maths": 400, "n_docs": 80, "n_too_long": 3, "n_kl": 120, "n_text_bytes": 451_203,
            "by_task": {
                kind: {
                    "n": 80 if kind == "docs" else 66,
                    "exact_match": None if kind == "docs" else min(1.0, exact * (0.6 + 0.15 * at)),
                    "well_formed": 0.95,
                    "win_rate_vs_sft": won,
                }
                for at, kind in enumerate(KINDS)
            },
        }  # fmt: skip
    return metrics


def _curve(root: Path, stage: str, n_steps: int, start: float, end: float, extra: str = "") -> None:
    rng = random.Random(stage)
    lines = [f"step,tokens,loss,learning_rate,grad_norm,validation_{extra or 'loss'}"]
    lines.append(f"0,,,,,{start!r}")
    for step in range(1, n_steps + 1):
        level = end + (start - end) * math.exp(-6 * step / n_steps)
        held_out = repr(level * 1.02) if step % max(1, n_steps // 5) == 0 else ""
        lines.append(f"{step},{step * 4096},{level + rng.gauss(0, 0.05) * level!r},0.001,{0.7!r},{held_out}")
    write_text(root / "metrics" / "curves" / f"{stage}.csv", "\n".join(lines) + "\n")


def _ppo_curve(root: Path) -> None:
    rng = random.Random(5)
    columns = ("reward", "kl", "policy_loss", "value_loss", "clip_fraction", "entropy", "length")
    lines = ["step," + ",".join(columns)]
    for step in range(1, 21):
        values = (0.2 + 0.03 * step, 0.05 * step, -0.02, 0.9 / step, 0.08, 1.2 - 0.01 * step, 13.0)
        lines.append(f"{step}," + ",".join(repr(v + rng.gauss(0, 0.02)) for v in values))
    write_text(root / "metrics" / "curves" / "ppo.csv", "\n".join(lines) + "\n")


def _weights(path: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2600, 1000]}}).encode()
    write_bytes(path, struct.pack("<Q", len(header)) + header)


def _samples(odd_answer: str) -> list[dict[str, Any]]:
    asked = [
        ("addition", "What is 47 + 38?", "85", ["47 47 47 47 47 47", "85", "The answer is 85.", "85", "47 + 38 = 85", "85"]),
        ("docs", "What does pandas.DataFrame.drop_duplicates do?", "Return DataFrame with duplicate rows removed.",
         ["The following is a list", "Return a DataFrame with the given axis.", "Return the duplicate values of the axis.",
          "Return DataFrame with the rows removed.", "Return a new DataFrame with duplicate values.",
          "Return DataFrame with duplicate values removed."]),
        ("latex", "Write in LaTeX: 3/4", "\\frac{3}{4}", [odd_answer, "\\frac{3}{4}", "\\frac{3}{4}", "$\\frac{3}{4}$", "3/4", "\\frac{3}{4}"]),
        ("comparison", "Which is larger, 61 or 16?", "61", ["61 or 16 or 61", "16", "61", "61 is larger.", "The answer is 61.", "61"]),
    ]  # fmt: skip
    return [
        {
            "record_id": "00" * 16, "task": task, "prompt": prompt, "reference": target, "target": target,
            "answers": {
                model: {"answer": text, "correct": target in text, "well_formed": model != "base", "score": 1.0, "n_tokens": 5}
                for model, text in zip(MODELS, texts, strict=True)
            },
        }
        for task, prompt, target, texts in asked
    ]  # fmt: skip


def write(root: Path, *, odd_answer: str = "<b>&amp;</b>", scale: int = 1) -> None:
    """Write everything that the report reads below `root`; `odd_answer` is what the base model says once."""
    write_json(root / "metrics" / "evaluate.json", _evaluation())
    baselines = {"token_unigram": 2.98, "byte_3gram": 2.97, "zlib": 1.97, "xz": 1.66, "token_3gram": 1.64}
    write_json(
        root / "metrics" / "tokenizer.json", {"vocab_size": 4096, "bytes_per_token": 3.61, "baselines": baselines}
    )
    write_json(root / "metrics" / "pretrain.json", {"bits_per_byte": 1.9288, "loss": 3.21, "tokens": 2048000})
    write_json(root / "metrics" / "preferences.json", {"n_prompts": 1200, "pairs": 3127, "ties": 2412})
    write_json(root / "metrics" / "reward_model.json", {"pairwise_accuracy": 0.8135, "loss": 0.41})
    for stage, n_steps, start, end in (
        ("sft", 400, 4.2, 0.5),
        ("sft_continued", 60, 0.52, 0.48),
        ("dpo", 70, 0.69, 0.55),
    ):
        write_json(root / "metrics" / f"{stage}.json", {"loss": end, "tokens": 4096 * n_steps})
        _curve(root, stage, n_steps, start, end)
    write_json(root / "metrics" / "ppo.json", {"reward_last": 0.81, "kl_last": 1.02})
    _curve(root, "pretrain", 500, 8.3, 3.2, "bits_per_byte")
    _curve(root, "reward_model", 150, 0.7, 0.42, "pairwise_accuracy")
    _ppo_curve(root)
    for name in ("pretrain", "sft", "reward_model", "dpo", "ppo", "sft_continued"):
        _weights(root / "models" / name / "model.safetensors")
        write_json(root / "models" / name / "config.json", {"architectures": ["LlamaForCausalLM"], "of": name})
    write_json(root / "tokenizer" / "tokenizer.json", {"version": "1.0"})
    write_bytes(root / "tokens" / "text.test.npy", b"\x93NUMPY")
    write_bytes(root / "preferences" / "comparisons.parquet", b"PAR1")
    write_json(root / "evaluation" / "samples.json", _samples(odd_answer))
    write_json(
        root / "data" / "manifest.json", {"text": {"read": 20311, "kept": 17102}, "steps": ["unicode", "length"]}
    )
    _write_data(root, scale)


def _write_data(root: Path, scale: int) -> None:
    packages = (
        ("matplotlib", "3.11.2", "PSF-based"),
        ("numpy", "2.4.6", "BSD-3-Clause"),
        ("torch", "2.13.0", "BSD-3-Clause"),
    )
    rng = random.Random(1)
    text: dict[str, list[Any]] = {name: [] for name in records.TEXT_COLUMNS}
    for number in range(60 * scale):
        package, version, license = packages[number % 3]
        body = f"Return the {number}-th value. " * rng.randint(2, 9)
        row = {
            "record_id": hashlib.sha256(body.encode()).digest()[:16], "source": "python_docs", "license": license,
            "split": "train" if number % 7 else "test", "package": package, "version": version, "file": "a.py",
            "symbol": f"f{number}", "text": body,
        }  # fmt: skip
        for name, value in row.items():
            text[name].append(value)
    records.write(root / "data" / "text.parquet", text)
    demonstrations: dict[str, list[Any]] = {name: [] for name in records.DEMONSTRATION_COLUMNS}
    for number in range(90 * scale):
        kind = KINDS[number % len(KINDS)]
        docs = kind == "docs"
        row = {
            "record_id": hashlib.sha256(f"d{number}".encode()).digest()[:16],
            "source": "python_docs" if docs else "maths", "license": "BSD-3-Clause" if docs else "CC0-1.0",
            "split": ("train", "train", "preference", "validation", "test")[number % 5], "task": kind,
            "package": "numpy" if docs else "", "version": "2.4.6" if docs else "", "file": "", "symbol": "",
            "prompt": f"What is {number} + 1?", "answer": str(number + 1), "target": str(number + 1),
        }  # fmt: skip
        for name, value in row.items():
            demonstrations[name].append(value)
    records.write(root / "data" / "demonstrations.parquet", demonstrations)
    rejects = {
        "source": ["maths"] * 3 + ["python_docs"] * 5, "record_id": [bytes(16)] * 8, "detail": [""] * 8, "text": ["x"] * 8,
        "reason": ["exact_duplicate"] * 3 + ["too_short"] * 2 + ["near_duplicate"] * 3,
    }  # fmt: skip
    records.write(root / "data" / "rejects.parquet", rejects)
