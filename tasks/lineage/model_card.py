"""The model card of a CycloneDX ML-BOM: what its schema calls `modelCard`, filled from attested files alone.

The Python library of CycloneDX has no class for it, so it is made as the dictionary that the schema describes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tasks.lineage.facts import Facts
from tasks.lineage.statement import Statement

Read = Callable[[Statement, str], bytes]

# How a stage trains, in the words of the schema.
APPROACHES = {
    "pretrain": "self-supervised",
    "sft": "supervised",
    "sft_continued": "supervised",
    "reward_model": "supervised",
    "dpo": "supervised",
    "ppo": "reinforcement-learning",
}
_INTERVALS = {
    "exact_match": ("exact_match_low", "exact_match_high"),
    "win_rate_vs_sft": ("win_rate_low", "win_rate_high"),
}
METRICS = "metrics/evaluate.json"


def properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Name and value pairs in the order of the names; what is not a string is written as JSON, None left out."""
    return [
        {"name": f"axon:{name}", "value": value if isinstance(value, str) else json.dumps(value, sort_keys=True)}
        for name, value in sorted(values.items())
        if value is not None
    ]


def make(
    maker: Statement, model: str, evaluation: Statement | None, found: Facts, read: Read, datasets: list[str]
) -> dict[str, Any]:
    """The card of the output `model` of the statement `maker`; `datasets` are references to components."""
    config = json.loads(read(maker, f"{model}/config.json"))
    parameters: dict[str, Any] = {
        "task": "text-generation",
        "architectureFamily": config["model_type"],
        "modelArchitecture": ", ".join(config["architectures"]),
        "datasets": [{"ref": ref} for ref in datasets],
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    if maker.stage in APPROACHES:
        parameters["approach"] = {"type": APPROACHES[maker.stage]}
    card: dict[str, Any] = {
        "modelParameters": parameters,
        "properties": properties({**_shape(config), **_of_facts(found)}),
    }
    if evaluation is not None:
        measured = json.loads(read(evaluation, METRICS)).get(model.rpartition("/")[2])
        if measured:
            card["quantitativeAnalysis"] = {"performanceMetrics": performance(measured)}
            card["properties"] += properties(
                {f"evaluation:{name}": value for name, value in measured.items() if name.startswith("n_")}
            )
    return card


def performance(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`performanceMetrics`: every figure of the evaluation as text, with its interval where there is one."""
    bounds = {name for pair in _INTERVALS.values() for name in pair}
    figures = [
        _figure(name, value, "test", [measured.get(bound) for bound in _INTERVALS.get(name, ())])
        for name, value in sorted(measured.items())
        if isinstance(value, float | int) and name not in bounds and not name.startswith("n_")
    ]
    for task, values in sorted(measured.get("by_task", {}).items()):
        figures += [
            _figure(name, value, f"test/{task}", [])
            for name, value in sorted(values.items())
            if value is not None and name != "n"
        ]
    return figures


def _figure(name: str, value: float, part: str, interval: list[Any]) -> dict[str, Any]:
    figure: dict[str, Any] = {"type": name, "value": json.dumps(value), "slice": part}
    if len(interval) == 2 and None not in interval:
        figure["confidenceInterval"] = {
            "lowerBound": json.dumps(interval[0]),
            "upperBound": json.dumps(interval[1]),
        }
    return figure


def _shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes in a Hugging Face configuration."""
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
             "vocab_size", "max_position_embeddings", "dtype")  # fmt: skip
    return {f"model:{name}": config[name] for name in sizes if name in config}


def _of_facts(found: Facts) -> dict[str, Any]:
    """What the facts say of all data behind the model."""
    kinds = Counter(finding.kind for finding in found.findings)
    by_license: Counter[str] = Counter()
    for count in found.licenses:
        by_license[count.license] += count.total
    return {
        **{f"findings:{kind}": n for kind, n in kinds.items()},
        **{f"licences:{license}": n for license, n in by_license.items()},
        "overlap:words": found.overlap.words,
        "overlap:held_out_records": sum(found.overlap.n_items.values()),
        "overlap:records_shared_with_training": len(found.overlap.shared),
        "ancestors_without_statement": list(found.unstated) or None,
    }
