"""Two data-parallel workers of one thread against one worker of one thread, and against one of two threads.

What the machine itself allows is measured too: two processes at once that train a model each and exchange nothing.

Run: `.venv/bin/python -m benchmarks.workers [STEPS] [ROUNDS]`. The decoder of params.yaml on random tokens, 32 rows of
`pretrain.seq_len` tokens a step in four micro-batches; the kinds take turns. Prints tokens/s and their ratios.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
APART = "2 workers at once, a model each"
# Workers, threads of each
KINDS = {"1 worker, 1 thread": (1, 1), "2 workers, 1 thread each": (2, 1), "1 worker, 2 threads": (1, 2), APART: (1, 1)}
ROWS, ACCUMULATION = 32, 4


def work(rank: int, size: int, threads: int, n_steps: int, folder: str) -> None:
    """Train `n_steps` steps as worker `rank` of `size`; the first writes (tokens/s, losses) to `folder`."""
    import torch
    import torch.distributed as dist

    from axon_models.decoder.model import Decoder
    from tasks.parameters import load
    from tasks.steps.pretrain import config_of_shape
    from tasks.training import loop
    from tasks.training.batches import Batch
    from tasks.training.device import set_threads
    from tasks.training.losses import stream_loss
    from tasks.training.optimizer import adamw
    from tasks.training.parallel import Objective, World

    params = load(ROOT)
    set_threads(threads)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    model = Decoder(config_of_shape(params.model, params.tokenizer.vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    world = World(rank, size)
    objective = loop.spread(Objective(model, stream_loss), world, "none", params.precision)
    optimizer = adamw(model, learning_rate=1e-3, beta2=0.95, weight_decay=0.1)
    recipe = loop.Recipe(
        stage="benchmark",
        n_steps=n_steps,
        learning_rate=1e-3,
        warmup_steps=1,
        weight_decay=0.1,
        clip_norm=1.0,
        accumulation=ACCUMULATION,
        evaluate_every=1,
        precision=params.precision,
    )
    n_tokens = ROWS * params.pretrain.seq_len
    losses = []
    for step in range(n_steps + 2):
        if step == 2:
            world.total([0.0])
            started = time.monotonic()
        generator = torch.Generator().manual_seed(step)
        both = torch.randint(params.tokenizer.vocab_size, (ROWS, params.pretrain.seq_len + 1), generator=generator)
        rows = Batch(tensors={"tokens": both[:, :-1], "targets": both[:, 1:]}, n_targets=n_tokens, n_tokens=n_tokens)
        losses.append(loop.gradients(objective, optimizer, rows, recipe, torch.device("cpu"), world)[0])
        optimizer.step()
    if not rank:
        speed = n_steps * n_tokens / (time.monotonic() - started)
        (Path(folder) / "found.json").write_text(json.dumps([speed, losses]))


def measure(size: int, threads: int, n_steps: int) -> tuple[float, list[float]]:
    """(tokens/s, losses) of `size` workers of `threads` threads."""
    with _started(size, threads, n_steps) as read:
        return read()


def measure_apart(n_steps: int) -> tuple[float, list[float]]:
    """(tokens/s of both, losses of one) of two workers of one thread that know nothing of each other."""
    with _started(1, 1, n_steps) as one, _started(1, 1, n_steps) as other:
        speed, losses = one()
        return speed + other()[0], losses


@contextmanager
def _started(size: int, threads: int, n_steps: int) -> Iterator[Callable[[], tuple[float, list[float]]]]:
    """Workers under way; gives what waits for them and reads what they have found."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        workers = [spawn.Process(target=work, args=(rank, size, threads, n_steps, folder)) for rank in range(size)]
        for worker in workers:
            worker.start()

        def read() -> tuple[float, list[float]]:
            for worker in workers:
                worker.join()
            speed, losses = json.loads((Path(folder) / "found.json").read_text())
            return speed, losses

        yield read


def main() -> None:
    n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    n_rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    losses: dict[str, list[float]] = {}
    for _ in range(n_rounds):
        for kind, (size, threads) in KINDS.items():
            speed, losses[kind] = measure_apart(n_steps) if kind == APART else measure(size, threads, n_steps)
            speeds[kind].append(speed)
    first = next(iter(KINDS))
    print("| workers | tokens/s (median) | range | against the first | largest difference of losses |")
    print("| --- | --- | --- | --- | --- |")
    for kind, values in speeds.items():
        ratios = [value / base for value, base in zip(values, speeds[first], strict=True)]
        apart = max(abs(a - b) for a, b in zip(losses[kind], losses[first], strict=True))
        print(
            f"| {kind} | {statistics.median(values):,.0f} | {min(values):,.0f} to {max(values):,.0f} | "
            f"{statistics.median(ratios):.2f} | {apart:.1e} |"
        )
    print(json.dumps({"tokens_per_s": speeds, "precision": "that of params.yaml"}))


if __name__ == "__main__":
    main()
