"""What the page and its Markdown twin both show: plain values, already rounded and put into words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.reports import composition, graph, plots, verdict
from tasks.reports.inputs import TRAINING_STAGES, Inputs
from tasks.reports.text import (
    MISSING,
    count,
    flatten,
    interval,
    millions,
    model_title,
    number,
    size,
    title,
)

KEY_FIGURES = {
    "tokenizer": "vocab_size",
    "pretrain": "bits_per_byte",
    "sft": "validation_token_accuracy",
    "preferences": "pairs",
    "reward_model": "pairwise_accuracy",
    "dpo": "reward_accuracy",
    "ppo": "reward_last",
    "sft_continued": "validation_token_accuracy",
}


def _tiles(inputs: Inputs, baselines: Mapping[str, float]) -> list[dict[str, str]]:
    evaluation, n = inputs.metrics["evaluate"], inputs.parameters["evaluate"]["n_samples"]
    sft, base = evaluation["sft"], evaluation["base"]
    best = verdict.better_aligned(evaluation)
    words = {
        "better": "the interval lies above 0.5",
        "worse": "the interval lies below 0.5",
        "no evidence": "the interval includes 0.5: no evidence of a difference",
    }
    within = interval(sft["exact_match_low"], sft["exact_match_high"])
    return [
        {
            "label": "Exact match, SFT",
            "value": number(sft["exact_match"]),
            "note": f"maths on held-out operands, 95 % interval {within or MISSING}; "
            f"the base model {number(base['exact_match'])}",
        },
        {
            "label": "Bits per byte, base",
            "value": number(base["bits_per_byte"]),
            "note": f"held-out text; {verdict.beside_baselines(base['bits_per_byte'], baselines) or 'no baselines'}",
        },
        {
            "label": "Pairs ordered rightly",
            "value": number(inputs.metrics["reward_model"].get("pairwise_accuracy")),
            "note": "by the reward model, on prompts it has not seen; a coin gets 0.50",
        },
        {
            "label": f"Win rate, {model_title(best, n)} against SFT",
            "value": number(evaluation[best]["win_rate_vs_sft"]),
            "note": f"95 % interval {interval(evaluation[best]['win_rate_low'], evaluation[best]['win_rate_high'])}; "
            f"{words[verdict.win_rate_word(best, evaluation[best])]}",
        },
    ]


def _comparison(evaluation: Mapping[str, Any], n_samples: int) -> list[dict[str, Any]]:
    rows = []
    for name, figures in evaluation.items():
        rows.append(
            {
                "name": name,
                "title": model_title(name, n_samples),
                "exact_match": number(figures["exact_match"]),
                "exact_match_interval": interval(figures["exact_match_low"], figures["exact_match_high"]),
                "win_rate": number(figures["win_rate_vs_sft"]),
                "win_rate_interval": interval(figures["win_rate_low"], figures["win_rate_high"]),
                "chrf": number(figures["chrf"], 1),
                "bits_per_byte": number(figures["bits_per_byte"], 3),
                "reward": number(figures["reward"]),
                "kl": number(figures["kl_to_sft"]),
                "length": number(figures["mean_length"], 1),
                "ended": number(figures["ended"]),
                "word": verdict.win_rate_word(name, figures),
                "sentence": verdict.win_rate_sentence(name, figures, n_samples),
                "left": f"{100 * figures['win_rate_low']:.2f}",
                "width": f"{100 * (figures['win_rate_high'] - figures['win_rate_low']):.2f}",
                "point": f"{100 * figures['win_rate_vs_sft']:.2f}",
            }
        )
    return rows


def _by_task(evaluation: Mapping[str, Any], n_samples: int) -> list[dict[str, Any]]:
    tasks = []
    for task, figures in sorted(evaluation["sft"]["by_task"].items()):
        if figures["exact_match"] is None:
            continue
        cells = [
            {
                "title": model_title(name, n_samples),
                "value": number(model["by_task"][task]["exact_match"]),
                "share": f"{100 * model['by_task'][task]['exact_match']:.1f}",
            }
            for name, model in evaluation.items()
        ]
        tasks.append({"task": title(task), "n": figures["n"], "cells": cells})
    return tasks


def _compression(evaluation: Mapping[str, Any], baselines: Mapping[str, float]) -> list[dict[str, Any]]:
    """Models and compressors from fewest bits to most; best_of_n has SFT's figure and is left out."""
    bars = [(number(value, 3), value, verdict.baseline_title(name), False) for name, value in baselines.items()]
    bars += [
        (number(figures["bits_per_byte"], 3), figures["bits_per_byte"], model_title(name, 0), True)
        for name, figures in evaluation.items()
        if name != "best_of_n"
    ]
    widest = max(value for _, value, _, _ in bars)
    return [
        {"label": label, "value": written, "share": f"{value / widest:.4f}", "is_model": is_model}
        for written, value, label, is_model in sorted(bars, key=lambda bar: (bar[1], bar[2]))
    ]


def _samples(inputs: Inputs, models: Mapping[str, Any], n_samples: int) -> list[dict[str, Any]]:
    shown = []
    for sample in inputs.samples:
        answers = []
        for name in models:
            answer = sample["answers"][name]
            mark = "right" if answer["correct"] else "formed" if answer["well_formed"] else "broken"
            answers.append(
                {"title": model_title(name, n_samples), "mark": mark, "text": answer["answer"], "name": name}
            )
        shown.append(
            {
                "task": title(sample["task"]),
                "is_text": sample["task"] in ("docs", "own"),
                "prompt": sample["prompt"],
                "target": sample["target"],
                "answers": answers,
            }
        )
    return shown


def _stages(inputs: Inputs) -> list[dict[str, str]]:
    rows = []
    for node in graph.NODES:
        key = KEY_FIGURES.get(node.name, "")
        value = inputs.metrics.get(node.name, {}).get(key)
        written = "" if value is None else count(value) if isinstance(value, int) else number(value, 3)
        rows.append(
            {
                "name": node.name,
                "does": node.does,
                "figure": f"{title(key)} {written}" if written else "",
                "parameters": millions(inputs.n_parameters[node.name]) if node.name in inputs.n_parameters else "",
            }
        )
    return rows


def _data_table(rows: list[composition.Row]) -> dict[str, Any]:
    splits = [split for split in composition.SPLITS if any(row.by_split.get(split) for row in rows)]
    table = [
        {
            "origin": row.origin,
            "detail": row.detail,
            "license": row.license,
            "counts": [count(row.by_split.get(split, 0)) for split in splits],
            "total": count(row.total),
            "chars": count(row.n_chars),
        }
        for row in rows
    ]
    sums = [count(sum(row.by_split.get(split, 0) for row in rows)) for split in splits]
    total, chars = count(sum(row.total for row in rows)), count(sum(row.n_chars for row in rows))
    return {"splits": [title(s) for s in splits], "rows": table, "sums": sums, "total": total, "chars": chars}


def _parameters(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sections in the order of params.yaml; values outside any section first, under no name."""
    loose = {name: value for name, value in parameters.items() if not isinstance(value, dict)}
    sections = {name: value for name, value in parameters.items() if isinstance(value, dict)}
    return [{"section": name, "rows": flatten(values)} for name, values in {"": loose, **sections}.items()]


def build(inputs: Inputs, data: composition.Composition) -> dict[str, Any]:
    """The whole view model; templates only lay it out."""
    evaluation, parameters = inputs.metrics["evaluate"], inputs.parameters
    # In the order of the parameters' reader, not of the sorted JSON: base first, best_of_n last.
    order = [name for name in ("base", "sft", "sft_continued", "dpo", "ppo", "best_of_n") if name in evaluation]
    evaluation = {name: evaluation[name] for name in order}
    baselines: dict[str, float] = inputs.metrics["tokenizer"].get("baselines", {})
    part = inputs.metrics["tokenizer"].get("baselines_of", {}).get("test")
    n_samples = parameters["evaluate"]["n_samples"]
    sft = evaluation["sft"]
    return {
        "n_parameters": millions(inputs.n_parameters["pretrain"]) if "pretrain" in inputs.n_parameters else MISSING,
        "rankings": "that a program gave"
        if parameters["preferences"]["judge"] == "programmatic"
        else "that were read from a file",
        "preset": parameters["pretrain"].get("init_from") or parameters["model"]["preset"],
        "vocab_size": count(inputs.metrics["tokenizer"]["vocab_size"]),
        "seed": parameters["seed"],
        "precision": parameters["precision"],
        "threads": parameters["threads"],
        "device": parameters["device"],
        "n_maths": sft["n_maths"],
        "n_docs": sft["n_docs"],
        "n_kl": evaluation["dpo"]["n_kl"],
        "n_too_long": sft["n_too_long"],
        "n_bootstrap": count(parameters["evaluate"]["n_bootstrap"]),
        "n_samples": n_samples,
        "max_new_tokens": parameters["preferences"]["max_new_tokens"],
        "text_size": size(sft["n_text_bytes"]),
        "baselines_text": f"{size(part['bytes'])} of the held-out text" if part else "all held-out text",
        "tiles": _tiles(inputs, baselines),
        "models": _comparison(evaluation, n_samples),
        "tasks": _by_task(evaluation, n_samples),
        "compression": _compression(evaluation, baselines),
        "curves": [
            {"stage": stage, "panels": plots.panels(stage, inputs.curves[stage])}
            for stage in TRAINING_STAGES
            if stage in inputs.curves
        ],
        "samples": _samples(inputs, evaluation, n_samples),
        "text": _data_table(data.text),
        "demonstrations": _data_table(data.demonstrations),
        "rejects": [{"source": s, "reason": title(r), "n": count(n)} for s, r, n in data.rejects],
        "n_rejects": count(sum(n for _, _, n in data.rejects)),
        "manifest": flatten(inputs.manifest),
        "graph": graph.draw(),
        "stages": _stages(inputs),
        "parameters": _parameters(parameters),
        "metrics": [{"stage": stage, "rows": flatten(figures)} for stage, figures in inputs.metrics.items()],
        "digests": [
            {"path": digest.path, "size": size(digest.n_bytes), "sha256": digest.sha256} for digest in inputs.digests
        ],
    }
