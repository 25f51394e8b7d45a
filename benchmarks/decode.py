"""Decoding against transformers' `generate`: the same weights, greedy, prompts of mixed lengths, batch 1, 8 and 64.

Run: `.venv/bin/python -m benchmarks.decode [--rounds 5] [--new-tokens 128] [--batches 1,8,64] [--requests 256]
[--threads 1,2] [--preset gpt2]`.

A decoder of 5.5 M parameters (x_llama: d_model 256, 6 layers, 4,096 tokens), or another preset that transformers has
a class for, as wide and deep, with random weights goes to transformers through a Hugging Face directory. All kinds,
each side in float32 and in bfloat16, are loaded once, write the same number of tokens behind the same prompts, and
take turns; a time is that of a whole call, pre-fill included. There is no end token, so all rows are written to the
end. A ratio is Axon's best kind to transformers' best kind, or of both in one precision. With several numbers of
`--threads` each kind is tried with each: where steps are short, a second thread may cost more than it brings. Random
weights give close scores, so that answers in bfloat16 soon differ; those of float32 should not.

Then a queue of `--requests` requests, prompts and answers of mixed lengths, through 64 rows: Axon lets a request in as
soon as a row is free, transformers takes 64 at a time in the order in which they come, and runs to the longest answer
of them. Only the tokens that were asked for count. This says what continuous batching is worth, and is no comparison
of equal work.

The limit of one row is that of reading every weight once for each token: the bytes of the weights in that precision
over the bandwidth of copying, read and written bytes counted, of a buffer far larger than the caches. Prints markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from axon_models.checkpoint import load, save
from axon_models.decoder.model import Decoder
from axon_models.decoder.presets import config_of
from axon_models.generation.answers import Request
from axon_models.generation.batcher import Batcher

SIZES: dict[str, Any] = {
    "vocab_size": 4096, "d_model": 256, "n_layers": 6, "heads": 4, "kv_heads": 2, "d_feed_forward": 704,
    "max_positions": 512,
}  # fmt: skip
PRESETS = ("x_llama", "gpt2", "mistral", "mixtral", "phi")
SHORTEST, LONGEST = 8, 96  # tokens of a prompt
SHORTEST_ANSWER, LONGEST_ANSWER = 16, 256
QUEUE_ROWS = 64
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BUFFER_BYTES = 256 * 2**20
PAD = 1

Work = tuple[list[list[int]], list[int]]  # prompts, new tokens of each
Write = Callable[[list[list[int]], list[int]], list[list[int]]]  # prompts, new tokens of each → answers


def prompts_of(n: int, seed: int) -> list[list[int]]:
    """n prompts of SHORTEST to LONGEST random tokens, evenly spread and shuffled."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(SHORTEST, LONGEST, n).round().int() if n > 1 else torch.tensor([(SHORTEST + LONGEST) // 2])
    shuffled = lengths[torch.randperm(n, generator=generator)].tolist()
    return [torch.randint(6, SIZES["vocab_size"], (length,), generator=generator).tolist() for length in shuffled]


def sizes_of(preset: str) -> dict[str, Any]:
    """Those of x_llama; widths that follow from others are the preset's own."""
    widths = () if preset == "x_llama" else ("kv_heads", "d_feed_forward")
    return {name: size for name, size in SIZES.items() if name not in widths}


def equal_answers(n: int, n_new: int, seed: int) -> Work:
    return prompts_of(n, seed), [n_new] * n


def mixed_answers(n: int, seed: int) -> Work:
    """n prompts, and answers of SHORTEST_ANSWER to LONGEST_ANSWER tokens, evenly spread and shuffled."""
    lengths = torch.linspace(SHORTEST_ANSWER, LONGEST_ANSWER, n).round().int()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1_000))
    return prompts_of(n, seed), lengths[order].tolist()


def ours(directory: Path, n_rows: int, dtype: torch.dtype) -> Write:
    batcher = Batcher(load(directory), max_rows=n_rows, dtype=dtype)

    def write(prompts: list[list[int]], n_new: list[int]) -> list[list[int]]:
        numbers = [
            batcher.submit(Request(prompt=prompt, max_new_tokens=n)) for prompt, n in zip(prompts, n_new, strict=True)
        ]
        answers = dict(batcher.run())
        return [list(answers[number].tokens) for number in numbers]

    return write


def theirs(directory: Path, n_rows: int, dtype: torch.dtype) -> Write:
    """Batches of `n_rows` in the order of the prompts, each to its longest answer."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    model.generation_config.eos_token_id = None

    def write_batch(prompts: list[list[int]], n_new: list[int]) -> list[list[int]]:
        width = max(map(len, prompts))
        tokens = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            output = model.generate(
                tokens, attention_mask=mask, do_sample=False, max_new_tokens=max(n_new), pad_token_id=PAD
            )
        return [row[width : width + n] for row, n in zip(output.tolist(), n_new, strict=True)]

    def write(prompts: list[list[int]], n_new: list[int]) -> list[list[int]]:
        starts = range(0, len(prompts), n_rows)
        return [row for i in starts for row in write_batch(prompts[i : i + n_rows], n_new[i : i + n_rows])]

    return write


def bandwidth(n_rounds: int) -> float:
    """Bytes per second of the fastest of some copies, read and written bytes counted."""
    source = torch.ones(BUFFER_BYTES // 4)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(n_rounds + 2):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    return 2 * BUFFER_BYTES / min(seconds)


def kinds_of(directory: Path, n_rows: int, threads: Sequence[int]) -> dict[str, Write]:
    """Each side in each precision, with each number of threads."""
    return {
        f"{side} {name}, {n} threads": with_threads(n, write)
        for side, make in SIDES.items()
        for name, dtype in PRECISIONS.items()
        for write in [make(directory, n_rows, dtype)]
        for n in threads
    }


def with_threads(n: int, write: Write) -> Write:
    def written(prompts: list[list[int]], n_new: list[int]) -> list[list[int]]:
        torch.set_num_threads(n)
        return write(prompts, n_new)

    return written


SIDES = {"axon": ours, "transformers": theirs}
REFERENCE = "transformers float32"  # with any number of threads
Speeds = dict[str, list[float]]  # kind → tokens/s of every round


def compare(
    directory: Path, n_rows: int, n_rounds: int, threads: Sequence[int], work: Callable[[int], Work]
) -> tuple[Speeds, dict[str, float]]:
    """(tokens/s of every round of each kind, share of each kind's answers that are transformers' in float32)."""
    kinds = kinds_of(directory, n_rows, threads)
    reference = next(kind for kind in kinds if kind.startswith(REFERENCE))
    speeds: Speeds = {kind: [] for kind in kinds}
    n_same, n_answers = dict.fromkeys(kinds, 0), 0
    for number in range(n_rounds + 1):
        prompts, n_new = work(number)
        answers = {}
        for kind, write in kinds.items():
            started = time.perf_counter()
            answers[kind] = write(prompts, n_new)
            if number:  # the first round warms up
                speeds[kind].append(sum(n_new) / (time.perf_counter() - started))
        n_answers += len(prompts)
        for kind, found in answers.items():
            n_same[kind] += sum(a == b for a, b in zip(found, answers[reference], strict=True))
    return speeds, {kind: n / n_answers for kind, n in n_same.items()}


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--batches", default="1,8,64", type=numbers)
    parser.add_argument("--requests", type=int, default=256, help="of the queue; 0 leaves it out")
    parser.add_argument("--threads", default=str(torch.get_num_threads()), type=numbers, help="1,2: each is tried")
    parser.add_argument("--preset", default="x_llama", choices=PRESETS)
    asked = parser.parse_args()
    threads = asked.threads
    module = Decoder(config_of(asked.preset, **sizes_of(asked.preset)))
    module.init_weights(torch.Generator().manual_seed(0))
    found: dict[str, Speeds] = {}
    with tempfile.TemporaryDirectory() as folder:
        save(module, folder)
        for n_rows in asked.batches:
            work = partial(equal_answers, n_rows, asked.new_tokens)
            speeds, same = compare(Path(folder), n_rows, asked.rounds, threads, work)
            found[f"{n_rows} rows"] = speeds
            report(f"{n_rows} rows, {asked.new_tokens} new tokens each", speeds, same)
        if asked.requests:
            work = partial(mixed_answers, asked.requests)
            speeds, same = compare(Path(folder), QUEUE_ROWS, asked.rounds, threads, work)
            found[f"queue of {asked.requests}"] = speeds
            spread = f"{SHORTEST_ANSWER} to {LONGEST_ANSWER}"
            report(f"A queue of {asked.requests} requests of {spread} new tokens, {QUEUE_ROWS} rows", speeds, same)
    torch.set_num_threads(max(threads))
    per_second = bandwidth(asked.rounds)
    report_limit(found.get("1 rows"), module.config.n_active_parameters, per_second, max(threads))
    figures = {"tokens_per_s": found, "bytes_per_s": per_second, "n_parameters": module.config.n_parameters}
    print(json.dumps({**figures, "preset": asked.preset, "threads": threads}))


def report(title: str, speeds: Speeds, same: dict[str, float]) -> None:
    print(f"**{title}**\n")
    print("| kind | tokens/s (median) | range | answers that are those of transformers in float32 |")
    print("| --- | --- | --- | --- |")
    medians = {kind: statistics.median(each) for kind, each in speeds.items()}
    for kind, each in speeds.items():
        print(f"| {kind} | {medians[kind]:,.0f} | {min(each):,.0f} to {max(each):,.0f} | {same[kind]:.0%} |")
    sides = [[best(medians, side + kind) for side in SIDES] for kind in ("", *(f" {name}," for name in PRECISIONS))]
    print()
    for number, (a, b) in enumerate(sides):
        ratio = statistics.median(x / y for x, y in zip(speeds[a], speeds[b], strict=True))
        print(f"- {'best to best: ' if number == 0 else ''}{a} is {ratio:.1f} times {b}")
    print(flush=True)


def best(medians: Mapping[str, float], kind: str) -> str:
    """The fastest of the kinds whose names begin so."""
    return max((name for name in medians if name.startswith(kind)), key=medians.__getitem__)


def report_limit(speeds: Speeds | None, n_parameters: int, per_second: float, threads: int) -> None:
    medians = {kind: statistics.median(each) for kind, each in (speeds or {}).items()}
    print(f"{threads} threads. Copying moves {per_second / 1e9:.1f} GB/s.")
    for name, dtype in PRECISIONS.items():
        n_bytes = n_parameters * dtype.itemsize
        limit = per_second / n_bytes
        print(f"Weights in {name} are {n_bytes / 1e6:.1f} MB: one row can have at most {limit:,.0f} tokens/s if they")
        print("come from memory for each token.", end=" " if speeds else "\n")
        if speeds:
            factors = [f"{side} {limit / medians[best(medians, f'{side} {name},')]:.2f}" for side in SIDES]
            print(f"Factors from that limit: {', '.join(factors)}.")


if __name__ == "__main__":
    main()
