"""From multi-head to grouped-query and multi-query attention: what it costs in quality and brings in speed.

Run: `.venv/bin/python -m benchmarks.uptrain ROOT [--steps N] [--fraction 0.05] [--model DIR] [--from-scratch]
[--rounds 5] [--new-tokens 128] [--batches 1,32] [--threads N]`, ROOT a checkout in which `axon run tokenizer` is done;
nothing is written there.

A model of the shape in ROOT's params.yaml, but with as many key and value heads as queries have, is pretrained for
`--steps` (default: those of params.yaml), or `--model` is taken. It is uptrained as `axon uptrain` does it, with 2
heads and with 1, and as a control with all of its own: what more training alone brings. `--from-scratch` also pretrains
models with so few heads from the beginning, for all of the steps: three times as much training.

Bits per byte are of the held-out text that pretraining validates on. Each model writes the same number of tokens behind
the same prompts of held-out text, and they take turns; a time is that of a whole call, pre-fill included. Prints
markdown. The default is meant to fit into eight minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from axon_models import checkpoint
from axon_models.decoder.model import Decoder
from axon_models.generation.answers import Request
from axon_models.generation.batcher import Batcher
from axon_models.generation.caches import new_cache
from tasks.errors import UserError
from tasks.files import read_json
from tasks.parameters import Parameters, check, read_tree
from tasks.steps import pretrain, uptrain
from tasks.steps.context import StepContext
from tasks.tokenizers import shards
from tasks.training.device import set_threads

FEWER = (2, 1)
SHORTEST, LONGEST = 8, 96  # tokens of a prompt

Write = Callable[[list[list[int]]], None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model: its heads, bits per byte at each point, what decoding it takes. `speeds`: tokens/s by rows."""

    heads: int
    kv_heads: int
    pooled: float
    uptrained: float
    from_scratch: float | None
    cache_bytes: int  # keys and values of a token
    speeds: dict[int, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        if self.kv_heads == 1:
            return "multi-query"
        return "multi-head" if self.kv_heads == self.heads else f"grouped-query, {self.kv_heads}"


def counts_of(kv_heads: int) -> list[int]:
    """The numbers of key and value heads that are compared: those that there are, and the fewer that divide them."""
    return [kv_heads, *(fewer for fewer in FEWER if fewer < kv_heads and kv_heads % fewer == 0)]


def parameters_of(root: Path, n_steps: int | None) -> Parameters:
    """params.yaml of `root` with a multi-head model and so many steps of pretraining, measured first and last."""
    tree = read_tree(root / "params.yaml")
    section = tree["pretrain"]
    steps = section["n_steps"] if n_steps is None else n_steps
    warmup = min(round(section["warmup_steps"] * steps / section["n_steps"]), steps - 1)
    section |= {"n_steps": steps, "warmup_steps": warmup, "evaluate_every": steps, "init_from": None}
    tree["model"]["kv_heads"] = tree["model"]["heads"]
    return check(tree, where=f"{root / 'params.yaml'} with --steps {steps}")


class Work:
    """Folders below `folder` in which steps find the data of `root` and write what they make."""

    def __init__(self, root: Path, folder: Path, params: Parameters) -> None:
        self.root, self.folder, self.params = root, folder, params

    def context(self, name: str, params: Parameters) -> StepContext:
        place = self.folder / name
        place.mkdir(parents=True)
        for needed in ("tokens", "tokenizer"):
            (place / needed).symlink_to(self.root / needed)
        return StepContext(
            params=params,
            root=place,
            checkpoints=place / "checkpoints",
            checkpoint_every_s=float("inf"),
            report=lambda *_: None,
            fan_out=lambda *_: [],
        )

    def pretrained(self, kv_heads: int) -> tuple[Path, float]:
        """(the directory, bits per byte) of a model with so many heads, from the beginning."""
        shape = self.params.model.model_copy(update={"kv_heads": kv_heads})
        context = self.context(f"pretrained-{kv_heads}", self.params.model_copy(update={"model": shape}))
        with told(f"pretraining with {kv_heads} key and value heads, {self.params.pretrain.n_steps} steps"):
            pretrain.run(context)
        figures = read_json(context.root / "metrics" / "pretrain.json")
        return context.root / "models" / "pretrain", figures["bits_per_byte"]

    def uptrained(self, source: Path, kv_heads: int, fraction: float) -> tuple[Path, uptrain.Uptrained]:
        context = self.context(f"uptrained-{kv_heads}", self.params)
        out = context.root / "model"
        with told(f"uptraining with {kv_heads} key and value heads, {fraction:.0%} of the steps"):
            return out, uptrain.run(context, source, out, kv_heads=kv_heads, fraction=fraction)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Print what is done, and how long it took."""
    started = time.monotonic()
    print(f"{what} …", flush=True)
    yield
    print(f"  {time.monotonic() - started:.0f} s", flush=True)


def cache_bytes(module: Decoder) -> int:
    """Bytes of the keys and values of one token of one row, of the buffers that decoding makes."""
    cache = new_cache(module, 1, 1, growing=False)
    return sum(buffer.numel() * buffer.element_size() for buffer in (cache.keys, cache.values))


def prompts_of(stream: np.ndarray, n: int, longest: int, seed: int) -> list[list[int]]:
    """n prompts of SHORTEST to `longest` tokens of a text (N,), lengths evenly spread and shuffled, from anywhere."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(SHORTEST, longest, n).round().int() if n > 1 else torch.tensor([(SHORTEST + longest) // 2])
    lengths = lengths[torch.randperm(n, generator=generator)]
    starts = torch.randint(len(stream) - longest, (n,), generator=generator)
    return [
        stream[start : start + size].tolist() for start, size in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]


def writer(module: Decoder, n_rows: int, n_new: int) -> Write:
    batcher = Batcher(module, max_rows=n_rows)

    def write(prompts: list[list[int]]) -> None:
        for prompt in prompts:
            batcher.submit(Request(prompt=prompt, max_new_tokens=n_new))
        for _ in batcher.run():
            pass

    return write


def compare(
    modules: Mapping[int, Decoder], stream: np.ndarray, batches: Sequence[int], n_new: int, n_rounds: int
) -> dict[int, dict[int, list[float]]]:
    """Tokens/s of each round, by model and by the rows it writes at once; the models take turns."""
    room = min(module.config.max_positions for module in modules.values()) - n_new
    longest = min(LONGEST, room, len(stream) - 1)
    if longest < SHORTEST:
        raise UserError(f"--new-tokens {n_new} leaves {room} positions for a prompt; {SHORTEST} are needed")
    writers = {(key, n): writer(module, n, n_new) for key, module in modules.items() for n in batches}
    speeds: dict[int, dict[int, list[float]]] = {key: {n: [] for n in batches} for key in modules}
    for number in range(n_rounds + 1):
        for n in batches:
            prompts = prompts_of(stream, n, longest, number)
            for key in modules:
                started = time.perf_counter()
                writers[key, n](prompts)
                if number:  # the first round warms up
                    speeds[key][n].append(n * n_new / (time.perf_counter() - started))
    return speeds


def table(rows: Sequence[Row], batches: Sequence[int]) -> str:
    """Markdown, a line for each model."""
    is_whole = any(row.from_scratch is not None for row in rows)
    heads = ["attention", "bits per byte, heads pooled", "uptrained", *(["from scratch"] if is_whole else [])]
    heads += ["cache, bytes a token"]
    for n in batches:
        heads += [f"tokens/s, {n} row{'s' if n > 1 else ''} (median)", "range"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for row in rows:
        cells = [row.name, f"{row.pooled:.4f}", f"{row.uptrained:.4f}"]
        if is_whole:
            cells.append("–" if row.from_scratch is None else f"{row.from_scratch:.4f}")
        cells.append(f"{row.cache_bytes:,}")
        for n in batches:
            speeds = row.speeds[n]
            cells += [f"{statistics.median(speeds):,.0f}", f"{min(speeds):,.0f} to {max(speeds):,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measured(root: Path, folder: Path, params: Parameters, asked: argparse.Namespace) -> list[Row]:
    """Train, uptrain and decode; a row for each number of heads."""
    work = Work(root, folder, params)
    source = work.pretrained(params.model.heads)[0] if asked.model is None else asked.model
    config = checkpoint.load(source).config
    found = {kv_heads: work.uptrained(source, kv_heads, asked.fraction) for kv_heads in counts_of(config.kv_heads)}
    whole = {n: work.pretrained(n)[1] for n in found if asked.from_scratch and n != config.kv_heads}
    set_threads(asked.threads or params.threads)
    modules = {kv_heads: checkpoint.load(directory) for kv_heads, (directory, _) in found.items()}
    stream = shards.load_tokens(root / "tokens" / "text.test.npy")
    with told("decoding"):
        speeds = compare(modules, stream, asked.batches, asked.new_tokens, asked.rounds)
    return [
        Row(
            heads=config.heads,
            kv_heads=kv_heads,
            pooled=figures.pooled,
            uptrained=figures.uptrained,
            from_scratch=whole.get(kv_heads),
            cache_bytes=cache_bytes(modules[kv_heads]),
            speeds=speeds[kv_heads],
        )
        for kv_heads, (_, figures) in found.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="a checkout with tokens/ and tokenizer/")
    parser.add_argument("--steps", type=int, help="of pretraining (default: those of params.yaml)")
    parser.add_argument("--fraction", type=float, default=0.05, help="of these steps, for uptraining (default: 0.05)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--model", type=Path, help="a trained multi-head model directory, instead of training one")
    start.add_argument("--from-scratch", action="store_true", help="also pretrain with fewer heads from the beginning")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--batches", default="1,32", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--threads", type=int, help="for decoding (default: those of params.yaml)")
    asked = parser.parse_args(argv)
    root = asked.root.resolve()
    missing = [name for name in ("params.yaml", "tokens", "tokenizer") if not (root / name).exists()]
    if missing:
        parser.error(f"{root} has no {', '.join(missing)}; make it with `axon run tokenizer` there")
    with tempfile.TemporaryDirectory() as folder:
        try:
            params = parameters_of(root, asked.steps)
            rows = measured(root, Path(folder), params, asked)
        except UserError as error:
            raise SystemExit(f"uptrain: {error}") from None
    n_steps = params.pretrain.n_steps
    asked_for = {"n_steps": n_steps, "fraction": asked.fraction, "new_tokens": asked.new_tokens}
    print(f"\n{n_steps} steps, {asked.fraction:.0%} of them for uptraining; {params.precision} in training.\n")
    print(f"{table(rows, asked.batches)}\n\n{json.dumps(asked_for | {'rows': [asdict(row) for row in rows]})}")


if __name__ == "__main__":
    main()
