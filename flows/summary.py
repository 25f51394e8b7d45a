"""What a run says in the end: the table of stages, sample answers side by side, and what to do next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.progress import duration
from tasks import registry
from tasks.files import read_json

_FIGURES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "data": (
        "data/manifest.json",
        lambda m: f"{m['n_text']:,} texts, {m['n_demonstrations']:,} demonstrations",
    ),
    "tokenizer": (
        "metrics/tokenizer.json",
        lambda m: f"{m['vocab_size']:,} tokens, {m['bytes_per_token']['train']:.2f} bytes each",
    ),
    "pretrain": (
        "metrics/pretrain.json",
        lambda m: f"{m['bits_per_byte']:.3f} bits per byte, {m['n_parameters'] / 1e6:.2f} M parameters",
    ),
    "sft": ("metrics/sft.json", lambda m: f"exact match {m['exact_match']:.3f} (validation)"),
    "preferences": (
        "metrics/preferences.json",
        lambda m: f"{m['n_pairs']:,} pairs, {m['correct']:.2f} correct",
    ),
    "reward_model": (
        "metrics/reward_model.json",
        lambda m: f"pairwise accuracy {m['pairwise_accuracy']:.3f}",
    ),
    "ppo": ("metrics/ppo.json", lambda m: f"reward {m['reward_first']:.2f} → {m['reward_last']:.2f}"),
    "dpo": ("metrics/dpo.json", lambda m: f"implicit-reward accuracy {m['accuracy']:.3f}"),
    "sft_continued": (
        "metrics/sft_continued.json",
        lambda m: f"exact match {m['exact_match']:.3f} (validation)",
    ),
    "evaluate": (
        "metrics/evaluate.json",
        lambda m: "exact match " + ", ".join(f"{name} {m[name]['exact_match']:.2f}" for name in m),
    ),
    "report": ("report/report.html", lambda _: "report/report.html"),
}


def key_figure(root: Path, stage: str) -> str:
    """The one figure of a stage that says how it went; empty if its metrics are not there."""
    path, describe = _FIGURES.get(stage, ("", lambda _: ""))
    if not path or not (root / path).is_file():
        return ""
    return describe(read_json(root / path) if path.endswith(".json") else None)


def print_table(console: Console, root: Path, graph: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("key figure")
    for name in graph:
        table.add_row(name, duration(seconds[name]) if name in seconds else "–", key_figure(root, name))
    table.add_row("[bold]all[/bold]", f"[bold]{duration(sum(seconds.values()))}[/bold]", "")
    console.print()
    console.print(table)


def print_samples(console: Console, root: Path, n: int = 4) -> None:
    """A few test prompts with every model's answer side by side."""
    path = root / "evaluation" / "samples.json"
    if not path.is_file():
        return
    samples = read_json(path)[:n]
    names = list(samples[0]["answers"]) if samples else []
    table = Table(title="Sample conversations", title_justify="left", show_lines=True, pad_edge=False)
    table.add_column("prompt", ratio=2, overflow="fold")
    for name in names:
        table.add_column(name, ratio=1, overflow="fold")
    for sample in samples:
        answers = [sample["answers"][name]["text"] for name in names]
        table.add_row(*(plain(text) for text in (sample["prompt"], *answers)))
    console.print()
    console.print(table)


def plain(text: str, limit: int = 160) -> str:
    """Text that rich prints as it is, without control characters, cut at `limit`."""
    from rich.markup import escape

    shown = "".join(c if c.isprintable() else " " for c in text)
    return escape(shown if len(shown) <= limit else shown[: limit - 1] + "…")


def print_next(console: Console, root: Path, version: registry.Version | None) -> None:
    console.print()
    if version is not None:
        aliases = ", ".join(version.aliases) or "no alias"
        state = "registered" if version.is_new else "already registered"
        console.print(f"[bold]{registry.NAME} version {version.version}[/bold] ({version.model}) {state}: {aliases}")
    console.print("Next:")
    console.print("  axon chat                 talk to the champion")
    console.print("  axon ui                   MLflow and Prefect pages")
    console.print(f"  {root / 'report' / 'report.html'}")
