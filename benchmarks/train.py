"""Training steps side by side: Axon's Llama and GPT-2 against transformers' Llama and GPT-2, and litgpt.

Run: `.venv/bin/python -m benchmarks.train [--sizes 2.6M,5.5M] [--rounds 3] [--steps 12] [--litgpt PYTHON]`.

Each training runs in a process of its own, with one environment for all (Axon's settings of glibc's allocator); the
contestants take turns. In the first round each is tried in float32 and in bfloat16 autocast, and with each way of
attention that it has; the fastest is its entry in the rounds that follow. Llama and litgpt start from Axon's own
weights (the two GPT-2 have weights of their own), on the same rows in the same order, so their losses can be compared.

litgpt needs an older huggingface-hub than transformers, so it has an environment of its own, whose Python is given:
`python3.11 -m venv DIR && DIR/bin/pip install torch==2.13.0 && DIR/bin/pip install litgpt`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import contestants
from benchmarks.contestants import Spec
from benchmarks.flops import Shape, mfu

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "2.6M": Shape(d_model=192, n_layers=5, heads=6, kv_heads=2, d_feed_forward=480),
    "5.5M": Shape(d_model=256, n_layers=6, heads=4, kv_heads=2, d_feed_forward=704),
    "30M": Shape(d_model=512, n_layers=9, heads=8, kv_heads=4, d_feed_forward=1536),
    "5.5M-T1024": Shape(d_model=256, n_layers=6, heads=4, kv_heads=2, d_feed_forward=704, seq_len=1024, batch_size=4),
    "tiny": Shape(
        d_model=32, n_layers=2, heads=4, kv_heads=2, d_feed_forward=64, vocab_size=256, seq_len=32, batch_size=2
    ),
}
PRECISIONS = ("float32", "bfloat16")
ATTENTIONS = {"axon": ("",), "axon-gpt2": ("",), "llama": ("sdpa", "eager"), "gpt2": ("sdpa", "eager"), "litgpt": ("",)}
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(256 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def synthetic_tokens(n: int, vocab_size: int, seed: int = 0) -> NDArray[np.uint16]:
    """(n,) token ids: half of them follow from the one before, the others are drawn by Zipf's law.

    So there is a unigram distribution and a bigram structure to learn, and the loss falls as on text.
    """
    generator = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, vocab_size + 1)
    drawn = generator.choice(vocab_size, size=n, p=weights / weights.sum())
    follower = generator.permutation(vocab_size)
    follows = generator.random(n) < 0.5
    tokens = drawn.astype(np.uint16)
    for i in np.flatnonzero(follows[1:]) + 1:
        tokens[i] = follower[tokens[i - 1]]
    return tokens


def run(module: str, *arguments: str, python: str = sys.executable) -> Any:
    """The JSON in the last line that a module prints, run in a process of its own; what it says where it fails."""
    environment = {**os.environ, **MEMORY, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [python, "-m", module, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {result.returncode}:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


@dataclass(kw_only=True)
class Entry:
    """What was measured of one contestant in one precision and with one way of attention."""

    spec: Spec
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        return [run["tokens_per_s"] for run in self.runs]

    @property
    def losses(self) -> list[float]:
        losses: list[float] = self.runs[0]["losses"]
        return losses

    def measure(self, pythons: dict[str, str]) -> None:
        python = pythons.get(self.spec.contestant, sys.executable)
        self.runs.append(run("benchmarks.contestants", contestants.to_json(self.spec), python=python))
        print(
            f"  {self.spec.label}, {self.spec.precision}: {self.speeds[-1]:,.0f} tokens/s", file=sys.stderr, flush=True
        )


def entries(base: Spec, names: Sequence[str], *, compiled: bool) -> list[Entry]:
    """Every contestant in every precision and way of attention.

    compiled: by torch.compile as well, Axon in both precisions, the others in bfloat16 and with torch's own attention.
    """
    found = [
        Entry(spec=replace(base, contestant=name, precision=precision, attention=attention))
        for name in names
        for precision in PRECISIONS
        for attention in ATTENTIONS[name]
    ]
    if compiled:
        plain = [e.spec for e in found if e.spec.attention != "eager"]
        chosen = [spec for spec in plain if spec.contestant == "axon" or spec.precision == "bfloat16"]
        found += [Entry(spec=replace(spec, compiled=True)) for spec in chosen]
    return found


def fastest(tried: Sequence[Entry]) -> list[Entry]:
    """Of every contestant (the compiled one apart) the entry that was fastest in the first round."""
    best: dict[tuple[str, bool], Entry] = {}
    for entry in tried:
        key = (entry.spec.contestant, entry.spec.compiled)
        if key not in best or entry.speeds[0] > best[key].speeds[0]:
            best[key] = entry
    return list(best.values())


def table(shape: Shape, tried: Sequence[Entry], peak: dict[str, float]) -> str:
    """All entries in Markdown; those of more than one round have a range. MFU is against the precision's own peak."""
    columns = "contestant precision rounds tokens/s range MFU peak,_MiB above_imports,_MiB first_loss last_loss"
    names = [name.replace("_", " ") for name in columns.split()]
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for e in tried:
        speed, memory = statistics.median(e.speeds), max(r["peak_mib"] for r in e.runs)
        utilised = mfu(shape, speed, peak[e.spec.precision])
        cells = (
            e.spec.label, e.spec.precision, str(len(e.runs)), f"{speed:,.0f}",
            f"{min(e.speeds):,.0f} to {max(e.speeds):,.0f}", f"{utilised:.0%}", f"{memory:,.0f}",
            f"{max(r['rise_mib'] for r in e.runs):,.0f}", f"{e.losses[0]:.4f}", f"{e.losses[-1]:.4f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(tried: Sequence[Entry], chosen: Sequence[Entry]) -> str:
    """Axon against the best peer, round by round, and its losses against those with the same weights at the start."""
    (own,) = [e for e in chosen if e.spec.contestant == "axon" and not e.spec.compiled]
    lines = []
    peers = [e for e in chosen if not e.spec.contestant.startswith("axon")]
    if peers:
        best = max(peers, key=lambda e: statistics.median(e.speeds))
        ratios = [a / b for a, b in zip(own.speeds, best.speeds, strict=True)]
        lines.append(
            f"Axon against the best peer, {best.spec.label} in {best.spec.precision}: {statistics.median(ratios):.2f} "
            f"times its tokens/s ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)."
        )
    gpts = [e for e in chosen if e.spec.contestant.endswith("gpt2") and not e.spec.compiled]
    if len(gpts) == 2:
        ratios = [a / b for a, b in zip(gpts[0].speeds, gpts[1].speeds, strict=True)]
        lines.append(
            f"Axon's GPT-2 against {gpts[1].spec.label} in {gpts[1].spec.precision}: {statistics.median(ratios):.2f} "
            f"times its tokens/s ({min(ratios):.2f} to {max(ratios):.2f})."
        )
    for e in tried:
        if e.spec.contestant in ("llama", "litgpt"):
            (same,) = [o for o in tried if o.spec == replace(e.spec, contestant="axon", attention="")]
            apart = max(abs(a - b) for a, b in zip(same.losses, e.losses, strict=True))
            lines.append(f"Largest difference of losses from {e.spec.label}'s, {e.spec.precision}: {apart:.1e}.")
    for e in tried:
        if e.spec.compiled:
            (plain,) = [o for o in tried if o.spec == replace(e.spec, compiled=False)]
            extra = e.runs[0]["first_step_s"] - plain.runs[0]["first_step_s"]
            n, fast, slow = own.spec.shape, e.speeds[0], plain.speeds[0]
            saved = n["batch_size"] * n["seq_len"] * (1 / slow - 1 / fast)  # seconds a step
            pays = f"it pays after {extra / saved:,.0f} steps" if saved > 0 else "it never pays"
            lines.append(
                f"torch.compile of {e.spec.contestant} in {e.spec.precision}: {fast / slow:.2f} times the speed, "
                f"{extra:.0f} s more at first; {pays}."
            )
    return "\n".join(lines)


def compare(name: str, given: argparse.Namespace, names: Sequence[str], peak: dict[str, float]) -> dict[str, Any]:
    """Measure one size in all rounds and print its table."""
    from axon_models import checkpoint

    shape = SIZES[name]
    with tempfile.TemporaryDirectory() as folder:
        stream = np.load(given.tokens) if given.tokens else None
        if stream is None:
            stream = synthetic_tokens(shape.tokens_per_step * (given.steps + contestants.N_WARM) + 1, shape.vocab_size)
        np.save(Path(folder) / "tokens.npy", stream)
        checkpoint.save(contestants.fresh_decoder(shape), Path(folder) / "weights")
        base = Spec(
            contestant="axon",
            precision="float32",
            weights=str(Path(folder) / "weights"),
            tokens=str(Path(folder) / "tokens.npy"),
            n_steps=given.steps,
            threads=given.threads,
            shape=asdict(shape),
        )
        tried = entries(base, names, compiled=given.compile)
        pythons = {"litgpt": given.litgpt}
        for entry in tried:
            entry.measure(pythons)
        chosen = fastest(tried)
        for _ in range(given.rounds - 1):
            for entry in chosen:
                entry.measure(pythons)
    print(f"\n## {name}: {shape.n_parameters:,} parameters, {shape.batch_size} × {shape.seq_len} tokens a step\n")
    print(table(shape, tried, peak) + "\n")
    print(verdict(tried, chosen), flush=True)
    return {
        "size": name,
        "entries": [{"label": e.spec.label, "precision": e.spec.precision, "runs": e.runs} for e in tried],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="2.6M,5.5M,30M,5.5M-T1024", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help=f"timed ones; {contestants.N_WARM} come before")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--litgpt", default="", metavar="PYTHON", help="of an environment with litgpt")
    parser.add_argument("--tokens", default="", metavar="FILE", help="token ids (.npy) in place of the synthetic ones")
    parser.add_argument("--compile", action="store_true", help="each by torch.compile as well")
    given = parser.parse_args()
    sizes = given.sizes.split(",")
    unknown = [name for name in sizes if name not in SIZES]
    if unknown:
        parser.error(f"--sizes {','.join(unknown)}: not a size; known: {', '.join(SIZES)}")
    if given.rounds < 1 or given.steps < 1:
        parser.error(f"--rounds {given.rounds} and --steps {given.steps} must both be at least 1")
    names = [name for name in ATTENTIONS if name != "litgpt" or given.litgpt]
    if not given.litgpt:
        print("litgpt is left out: give the Python of an environment that has it, --litgpt DIR/bin/python.")
    peak = run("benchmarks.peak", "--threads", str(given.threads))
    products = ", ".join(f"{peak[p] / 1e9:,.0f} GFLOP/s in {p}" for p in PRECISIONS)
    print(f"{given.threads} threads; matrix products at {products}; memory at {peak['memory'] / 1e9:,.1f} GB/s.")
    found = [compare(name, given, names, peak) for name in sizes]
    print(json.dumps({"threads": given.threads, "peak": peak, "sizes": found}))


if __name__ == "__main__":
    main()
