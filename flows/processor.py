"""Where bfloat16 pays: what a processor and a GPU have for it, and what `params.yaml` should therefore say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from tasks.errors import UserError
from tasks.parameters import Parameters, load

Finding = tuple[bool | None, str]  # good (None: neither good nor bad), and the line that says so
Support = Literal["amx", "avx512", "none", "unknown"]

_FOUND: dict[Support, str] = {
    "amx": "the processor has AMX (tiles of bfloat16)",
    "avx512": "the processor has AVX512-BF16 and no AMX",
    "none": "the processor has neither AMX nor AVX512-BF16",
    "unknown": "/proc/cpuinfo does not say what the processor has for bfloat16",
}
# Products per second in bfloat16 over those in float32, of torch's on one core: measured by `benchmarks.peak`.
_ADVICE: dict[Support, tuple[str, str]] = {
    "amx": ("bfloat16", "products run about five times as fast as in float32"),
    "avx512": ("bfloat16", "products run about twice as fast as in float32"),
    "none": ("float32", "bfloat16 is computed in float32 there, with conversions on top"),
    "unknown": ("float32", "compare both with: python -m benchmarks.peak"),
}
_FIRST_GPU_WITH_BFLOAT16 = (8, 0)  # compute capability: NVIDIA's Ampere


def bfloat16_support(cpuinfo: str) -> Support:
    """What a processor has for products in bfloat16, by the text of its /proc/cpuinfo.

    Flags of x86-64 as Linux spells them (arch/x86/include/asm/cpufeatures.h); "unknown" where there is no line of
    flags, as on other architectures.
    """
    lines = [line.partition(":") for line in cpuinfo.splitlines()]
    flags = {flag for name, _, value in lines if name.strip() == "flags" for flag in value.split()}
    if not flags:
        return "unknown"
    if {"amx_tile", "amx_bf16"} <= flags:
        return "amx"
    return "avx512" if "avx512_bf16" in flags else "none"


def advice(support: Support, params: Parameters) -> str:
    """What `precision` in params.yaml is, and whether it suits a processor with this `support`."""
    precision, reason = _ADVICE[support]
    says = f"params.yaml says precision: {params.precision}"
    if params.precision == precision:
        return f"{says}, which suits it: {reason}"
    return f"{says}; precision: {precision} suits it better: {reason} (other bytes come of it)"


def gpu_advice(name: str, capability: tuple[int, int], params: Parameters) -> str:
    """What a GPU of this compute capability is good for, and what params.yaml says."""
    precision = "bfloat16" if capability >= _FIRST_GPU_WITH_BFLOAT16 else "float32"
    says = f"params.yaml says device: {params.device}, precision: {params.precision}"
    return f"GPU {name}: device: cuda and precision: {precision} pay; {says}"


def findings(root: Path) -> list[Finding]:
    """Cores, processor and GPU against params.yaml; one that cannot be used would stop a run."""
    try:
        params = load(root)
    except UserError as error:
        return [(False, str(error))]
    cores, info = os.cpu_count() or 1, Path("/proc/cpuinfo")
    support = bfloat16_support(info.read_text(encoding="utf-8", errors="replace") if info.is_file() else "")
    found: list[Finding] = [_cores(cores, params.threads * params.workers), (None, _FOUND[support])]
    if params.device == "cpu":
        found.append((None, advice(support, params)))
    return [*found, _gpu(params)]


def _cores(cores: int, threads: int) -> Finding:
    fits = "" if threads <= cores else "; more threads than cores make each other wait"
    return None, f"{cores} cores; params.yaml says threads × workers = {threads}{fits}"


def _gpu(params: Parameters) -> Finding:
    import torch

    if torch.cuda.is_available():
        return None, gpu_advice(torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0), params)
    if params.device == "cuda":
        return False, "params.yaml says device: cuda, but torch sees no GPU; set device: cpu"
    return None, "no GPU that torch can use; params.yaml says device: cpu"
