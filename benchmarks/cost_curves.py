"""What a training step costs against parameters, sequence length and batch, with the machine's limits drawn in.

Run: `.venv/bin/python -m benchmarks.cost_curves [--threads 2] [--steps 4] [--rounds 2] [--out docs/images]`. Measures
in processes of their own and in turns, prints tables and a line of JSON, and writes three figures into the folder:
cost_parameters.svg, cost_sequence.svg and cost_batch.svg. Each has tokens/s above and memory below. `--again FILE`
draws them from that line in an earlier run's output, and measures nothing. The limits:

- products: the measured peak of matrix products over the operations of a token (`benchmarks.flops`)
- optimiser: the measured memory bandwidth over what AdamW reads and writes at least once a step, 28 bytes a parameter
  (weight, gradient and two moments read, all but the gradient written), for all tokens of the step together
- memory: 16 bytes a parameter, which weight, gradient and two moments take
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contestants
from benchmarks.contestants import Spec
from benchmarks.flops import Shape, training_flops_per_token
from benchmarks.train import PRECISIONS, SIZES, run, synthetic_tokens

BYTES_PER_UPDATE, BYTES_KEPT = 28, 16  # of each parameter
WIDTHS = ((128, 4, 2, 2), (192, 5, 6, 2), (256, 6, 4, 2), (384, 8, 6, 2), (512, 9, 8, 4), (768, 12, 12, 4))


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Shapes along one axis; `at` reads the number that stands on it."""

    name: str
    axis: str
    at: Callable[[Shape], int]
    shapes: tuple[Shape, ...]


def curves() -> list[Curve]:
    """4,096 tokens a step along the first two axes, rows of 256 along the last; 5.5 M parameters in the last two."""
    base = SIZES["5.5M"]
    sizes = [
        Shape(d_model=d, n_layers=n, heads=heads, kv_heads=groups, d_feed_forward=-(-8 * d // 3 // 32) * 32)
        for d, n, heads, groups in WIDTHS
    ]
    lengths = [replace(base, seq_len=t, batch_size=4096 // t) for t in (64, 128, 256, 512, 1024, 2048)]
    batches = [replace(base, batch_size=b) for b in (1, 2, 4, 8, 16, 32)]
    return [
        Curve(name="parameters", axis="parameters", at=lambda s: s.n_parameters, shapes=tuple(sizes)),
        Curve(name="sequence", axis="tokens of a row", at=lambda s: s.seq_len, shapes=tuple(lengths)),
        Curve(name="batch", axis="rows of 256 tokens a step", at=lambda s: s.batch_size, shapes=tuple(batches)),
    ]


def smallest(curve: Curve) -> Curve:
    """The same axis at sizes that take a moment, to try the command."""
    tiny = SIZES["tiny"]
    shapes = {
        "parameters": (tiny, replace(tiny, d_model=64)),
        "sequence": (tiny, replace(tiny, seq_len=64)),
        "batch": (tiny, replace(tiny, batch_size=4)),
    }
    return replace(curve, shapes=shapes[curve.name])


def limits(shape: Shape, peak: dict[str, float]) -> dict[str, float]:
    """Tokens/s that no step of this shape can exceed, by what limits it."""
    of_products = {f"products, {p}": peak[p] / training_flops_per_token(shape) for p in PRECISIONS}
    update_s = BYTES_PER_UPDATE * shape.n_parameters / peak["memory"]
    return {**of_products, "optimiser": shape.tokens_per_step / update_s}


def floor_mib(shape: Shape) -> float:
    """MiB of weights, gradients and moments in float32."""
    return BYTES_KEPT * shape.n_parameters / 2**20


Kind = tuple[str, bool]  # precision, whether activations are recomputed
KINDS: tuple[Kind, ...] = (("float32", False), ("bfloat16", False), ("bfloat16", True))
Measured = dict[Kind, dict[str, float]]


def measure(curve: Curve, given: argparse.Namespace, tokens: str) -> list[Measured]:
    """For each shape: median tokens/s and largest memory above imports, in both precisions and, in bfloat16, with
    activations computed again."""
    runs: dict[tuple[int, Kind], list[dict[str, Any]]] = {}
    for _ in range(given.rounds):
        for i, shape in enumerate(curve.shapes):
            for kind in KINDS:
                spec = Spec(
                    contestant="axon",
                    precision=kind[0],
                    recompute=kind[1],
                    tokens=tokens,
                    n_steps=given.steps,
                    threads=given.threads,
                    shape=asdict(shape),
                )
                runs.setdefault((i, kind), []).append(run("benchmarks.contestants", contestants.to_json(spec)))
    found: list[Measured] = []
    for i, _ in enumerate(curve.shapes):
        of_shape: Measured = {}
        for kind in KINDS:
            speed = statistics.median(r["tokens_per_s"] for r in runs[i, kind])
            of_shape[kind] = {"tokens_per_s": speed, "mib": max(r["rise_mib"] for r in runs[i, kind])}
        found.append(of_shape)
    return found


def draw(curve: Curve, found: list[Measured], peak: dict[str, float], path: Path) -> None:
    """Write one figure as SVG; the same numbers give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(8, 8), layout="constrained")
    speed, memory = figure.subplots(2, 1, sharex=True)
    xs = [curve.at(shape) for shape in curve.shapes]
    colors = {"float32": "tab:orange", "bfloat16": "tab:blue"}
    for kind in KINDS:
        precision, recompute = kind
        style: dict[str, Any] = {"marker": "o", "color": colors[precision], "linestyle": ":" if recompute else "-"}
        label = f"{precision}{', activations recomputed' if recompute else ''}"
        speed.plot(xs, [of_shape[kind]["tokens_per_s"] for of_shape in found], label=label, **style)
        memory.plot(xs, [of_shape[kind]["mib"] for of_shape in found], label=label, **style)
    for name in limits(curve.shapes[0], peak):
        color = next((c for precision, c in colors.items() if precision in name), "tab:gray")
        ys = [limits(shape, peak)[name] for shape in curve.shapes]
        speed.plot(xs, ys, "--", color=color, linewidth=1, label=f"limit: {name}")
    memory.plot(xs, [floor_mib(s) for s in curve.shapes], "--", color="tab:gray", linewidth=1, label="16 B a parameter")
    for axes, label in ((speed, "tokens/s"), (memory, "MiB above imports")):
        axes.set(xscale="log", yscale="log", ylabel=label)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short(y)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    memory.set_xlabel(curve.axis)
    memory.set_xticks(xs, [short(x) for x in xs])
    memory.xaxis.minorticks_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": curve.name}):
        figure.savefig(path, metadata={"Date": None})


def short(number: float) -> str:
    """1328256 as 1.33 M, 2048 as 2,048."""
    return f"{number / 1e6:.3g} M" if number >= 1e6 else f"{number:,.0f}"


def table(curve: Curve, found: list[Measured], peak: dict[str, float]) -> str:
    """The numbers of a figure in Markdown, tokens/s with the part of the limit by products that is reached."""
    columns = "float32: tokens/s (of the limit)|MiB|bfloat16|MiB|bfloat16, recomputing|MiB|16 B a parameter"
    lines = [f"| {curve.axis} | {columns.replace('|', ' | ')} |", "|" + " --- |" * 8]
    for shape, of_shape in zip(curve.shapes, found, strict=True):
        cells = [f"{curve.at(shape):,}"]
        for (precision, _), values in of_shape.items():
            part = values["tokens_per_s"] / limits(shape, peak)[f"products, {precision}"]
            cells += [f"{values['tokens_per_s']:,.0f} ({part:.0%})", f"{values['mib']:,.0f}"]
        lines.append(f"| {' | '.join(cells)} | {floor_mib(shape):,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--tiny", action="store_true", help="sizes that take a moment, to try the command")
    parser.add_argument("--again", type=Path, metavar="FILE", help="the output of an earlier run: draw it, no more")
    given = parser.parse_args()
    chosen = list(map(smallest, curves())) if given.tiny else curves()
    if given.again:
        draw_again(chosen, json.loads(given.again.read_text().splitlines()[-1]), given.out)
        return
    peak = run("benchmarks.peak", "--threads", str(given.threads))
    every: dict[str, Any] = {"threads": given.threads, "peak": peak}
    with tempfile.TemporaryDirectory() as folder:
        for curve in chosen:
            n_steps = given.steps + contestants.N_WARM
            n_tokens = n_steps * max(shape.tokens_per_step for shape in curve.shapes) + 1
            path = Path(folder) / f"{curve.name}.npy"
            np.save(path, synthetic_tokens(n_tokens, curve.shapes[0].vocab_size))
            found = measure(curve, given, str(path))
            draw(curve, found, peak, given.out / f"cost_{curve.name}.svg")
            print(f"\n{table(curve, found, peak)}", flush=True)
            every[curve.name] = [
                {"at": curve.at(shape), **{key_of(kind): values for kind, values in of_shape.items()}}
                for shape, of_shape in zip(curve.shapes, found, strict=True)
            ]
    print(json.dumps(every))


def key_of(kind: Kind) -> str:
    """A kind in the line of JSON."""
    precision, recompute = kind
    return f"{precision}{', recomputing' if recompute else ''}"


def draw_again(chosen: list[Curve], every: dict[str, Any], out: Path) -> None:
    """The figures of `every`, the line of JSON of a run of the same shapes."""
    for curve in chosen:
        points = every[curve.name]
        if [point["at"] for point in points] != [curve.at(shape) for shape in curve.shapes]:
            raise SystemExit(f"the figures of {curve.name} were measured at other sizes; measure anew, without --again")
        found = [{kind: point[key_of(kind)] for kind in KINDS} for point in points]
        draw(curve, found, every["peak"], out / f"cost_{curve.name}.svg")


if __name__ == "__main__":
    main()
