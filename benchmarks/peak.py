"""What this machine can do at most: matrix products in float32 and bfloat16, and reading and writing memory.

Run: `.venv/bin/python -m benchmarks.peak [--threads 2]`. Prints a table, then JSON: FLOP/s of square products, the
largest over a few sizes, and bytes/s of a sum of two arrays that no cache holds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch

SIZES = (512, 1024, 2048)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MEMORY_BYTES = 256 * 2**20  # of each of three arrays


def fastest_s(work: Callable[[], object], n_times: int = 7) -> float:
    """Seconds of the fastest of `n_times` calls, after one that is not counted."""
    work()
    times = []
    for _ in range(n_times):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def matmul_flops(kind: torch.dtype, size: int) -> float:
    """FLOP/s of the product of two (size, size) matrices: 2·size³ operations each."""
    generator = torch.Generator().manual_seed(size)
    a, b = (torch.randn(size, size, generator=generator).to(kind) for _ in range(2))
    out = torch.empty(size, size, dtype=kind)
    return 2 * size**3 / fastest_s(lambda: torch.mm(a, b, out=out))


def memory_bandwidth(n_bytes: int = MEMORY_BYTES) -> float:
    """Bytes/s of a + b into c, two reads and a write of `n_bytes` each (the idea of STREAM, McCalpin 1995)."""
    a, b, c = (torch.ones(n_bytes // 4) for _ in range(3))
    return 3 * n_bytes / fastest_s(lambda: torch.add(a, b, out=c))


def measure(threads: int, sizes: tuple[int, ...] = SIZES, n_bytes: int = MEMORY_BYTES) -> dict[str, float]:
    """FLOP/s by precision and bytes/s as "memory", with so many threads."""
    torch.set_num_threads(threads)
    found = {name: max(matmul_flops(kind, size) for size in sizes) for name, kind in PRECISIONS.items()}
    return {**found, "memory": memory_bandwidth(n_bytes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    given = parser.parse_args()
    found = measure(given.threads, tuple(given.sizes))
    print("| limit | measured |\n| --- | --- |")
    for name in PRECISIONS:
        print(f"| matrix products in {name} | {found[name] / 1e9:,.0f} GFLOP/s |")
    print(f"| memory | {found['memory'] / 1e9:,.1f} GB/s |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
