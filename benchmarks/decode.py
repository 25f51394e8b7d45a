"""Decoding against transformers' `generate`: the same weights, greedy, prompts of mixed lengths, batch 1, 8 and 64.

Run: `.venv/bin/python -m benchmarks.decode [--rounds 5] [--new-tokens 128] [--batches 1,8,64] [--threads N]`.

A decoder of 5.5 M parameters (x_llama: d_model 256, 6 layers, 4,096 tokens) with random weights goes to transformers
through a Hugging Face directory. Both are loaded once, write the same number of tokens behind the same prompts, and
take turns; a time is that of a whole call, pre-fill included. There is no end token, so all rows are written to the
end.

The limit of one row is that of reading every weight once for each token: the bytes of the weights over the bandwidth
of copying, read and written bytes counted, of a buffer far larger than the caches. Prints markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
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
SHORTEST, LONGEST = 8, 96  # tokens of a prompt
BUFFER_BYTES = 256 * 2**20
PAD = 1

Write = Callable[[list[list[int]], int], list[list[int]]]  # prompts, new tokens → answers


def prompts_of(n: int, seed: int) -> list[list[int]]:
    """n prompts of SHORTEST to LONGEST random tokens, evenly spread and shuffled."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(SHORTEST, LONGEST, n).round().int() if n > 1 else torch.tensor([(SHORTEST + LONGEST) // 2])
    shuffled = lengths[torch.randperm(n, generator=generator)].tolist()
    return [torch.randint(6, SIZES["vocab_size"], (length,), generator=generator).tolist() for length in shuffled]


def ours(directory: Path, n_rows: int) -> Write:
    batcher = Batcher(load(directory), max_rows=n_rows)

    def write(prompts: list[list[int]], n_new: int) -> list[list[int]]:
        numbers = [batcher.submit(Request(prompt=prompt, max_new_tokens=n_new)) for prompt in prompts]
        answers = dict(batcher.run())
        return [list(answers[number].tokens) for number in numbers]

    return write


def theirs(directory: Path) -> Write:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(directory).eval()
    model.generation_config.eos_token_id = None

    def write(prompts: list[list[int]], n_new: int) -> list[list[int]]:
        width = max(map(len, prompts))
        tokens = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            output = model.generate(
                tokens, attention_mask=mask, do_sample=False, max_new_tokens=n_new, pad_token_id=PAD
            )
        return [row[width:] for row in output.tolist()]

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--batches", default="1,8,64", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    module = Decoder(config_of("x_llama", **SIZES))
    module.init_weights(torch.Generator().manual_seed(0))
    speeds: dict[int, dict[str, list[float]]] = {}
    equal: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        save(module, folder)
        for n_rows in asked.batches:
            speeds[n_rows], equal[n_rows] = compare(Path(folder), n_rows, asked.new_tokens, asked.rounds)
    report(speeds, equal, module.config.n_parameters * 4, bandwidth(asked.rounds), asked.threads)


def compare(directory: Path, n_rows: int, n_new: int, n_rounds: int) -> tuple[dict[str, list[float]], float]:
    """(tokens/s of every round of each kind, share of the answers that are the same token for token)."""
    kinds = {"axon": ours(directory, n_rows), "transformers": theirs(directory)}
    speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
    n_same = 0
    for number in range(n_rounds + 1):
        answers = {}
        for kind, write in kinds.items():
            prompts = prompts_of(n_rows, number)
            started = time.perf_counter()
            answers[kind] = write(prompts, n_new)
            if number:  # the first round warms up
                speeds[kind].append(n_rows * n_new / (time.perf_counter() - started))
        n_same += sum(a == b for a, b in zip(answers["axon"], answers["transformers"], strict=True))
    return speeds, n_same / (n_rows * (n_rounds + 1))


def report(
    speeds: dict[int, dict[str, list[float]]], equal: dict[int, float], n_bytes: int, per_second: float, threads: int
) -> None:
    print("| rows | axon, tokens/s (median) | range | transformers | range | ratio | same answers |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for n_rows, found in speeds.items():
        cells = [f"{statistics.median(s):,.0f} | {min(s):,.0f} to {max(s):,.0f}" for s in found.values()]
        ratios = [a / b for a, b in zip(found["axon"], found["transformers"], strict=True)]
        print(f"| {n_rows} | {' | '.join(cells)} | {statistics.median(ratios):.1f} | {equal[n_rows]:.0%} |")
    limit = per_second / n_bytes
    print(f"\n{threads} threads. Copying moves {per_second / 1e9:.1f} GB/s, weights are {n_bytes / 1e6:.1f} MB, so one")
    print(f"row can have at most {limit:,.0f} tokens/s if the weights come from memory for each of them.")
    if 1 in speeds:
        print(f"axon is a factor of {limit / statistics.median(speeds[1]['axon']):.2f} from that limit,", end=" ")
        print(f"transformers {limit / statistics.median(speeds[1]['transformers']):.2f}.")
    print(json.dumps({"tokens_per_s": speeds, "bytes_per_s": per_second, "weight_bytes": n_bytes, "threads": threads}))


if __name__ == "__main__":
    main()
