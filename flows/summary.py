"""What a run says in the end: the table of stages, sample answers side by side, and what to do next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from flows.progress import duration
from tasks import registry
from tasks.files import read_json

_FIGURES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "data": ("data/manifest.json", lambda m: _data_figure(m["splits"])),
    "tokenizer": (
        "metrics/tokenizer.json",
        lambda m: f"{m['vocab_size']:,} tokens, {m['bytes_per_token']['train']:.2f} bytes each",
    ),
    "pretrain": (
        "metrics/pretrain.json",
        lambda m: f"{m['bits_per_byte']:.3f} bits per byte (validation), {m['n_parameters'] / 1e6:.2f} M parameters",
    ),
    "sft": ("metrics/sft.json", lambda m: f"validation loss {m['validation_loss']:.3f}"),
    "preferences": (
        "metrics/preferences.json",
        lambda m: f"{m['pairs']:,} pairs of answers, {m['correct']:.2f} of the answers correct",
    ),
    "reward_model": (
        "metrics/reward_model.json",
        lambda m: f"pairwise accuracy {m['pairwise_accuracy']:.3f} (held-out prompts)",
    ),
    "ppo": ("metrics/ppo.json", lambda m: f"reward {m['reward_first']:.2f} → {m['reward_last']:.2f}"),
    "dpo": ("metrics/dpo.json", lambda m: f"implicit reward right in {m['reward_accuracy']:.3f} of validation pairs"),
    "sft_continued": ("metrics/sft_continued.json", lambda m: f"validation loss {m['validation_loss']:.3f}"),
    "evaluate": (
        "metrics/evaluate.json",
        lambda m: "exact match " + ", ".join(f"{name} {m[name]['exact_match']:.2f}" for name in m),
    ),
    "report": ("report/report.html", lambda _: "report/report.html"),
}


def _data_figure(splits: Mapping[str, Any]) -> str:
    n = {kind: sum(split["records"] for split in splits[kind].values()) for kind in ("text", "demonstrations")}
    return f"{n['text']:,} texts, {n['demonstrations']:,} demonstrations"


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


def print_samples(console: Console, root: Path, n: int = 3) -> None:
    """A few test prompts, a column each, with every model's answer below; right answers are ticked."""
    path = root / "evaluation" / "samples.json"
    samples = read_json(path)[:n] if path.is_file() else []
    if not samples:
        return
    table = Table(title="Sample conversations", title_justify="left", title_style="bold", pad_edge=False, box=SIMPLE)
    table.add_column("model")
    for sample in samples:
        table.add_column(plain(sample["prompt"]), ratio=1, overflow="fold")
    for name in samples[0]["answers"]:
        answers = [sample["answers"][name] for sample in samples]
        cells = [("[green]✓[/green] " if a["correct"] else "  ") + plain(a["answer"]) for a in answers]
        table.add_row(name, *cells)
    console.print()
    console.print(table)


def plain(text: str, limit: int = 90) -> str:
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
