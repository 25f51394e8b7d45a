"""What `axon doctor` reads out of /proc/cpuinfo and params.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.processor import advice, bfloat16_support, findings, gpu_advice
from tests.helpers import REPOSITORY, make_params

CPUINFO = "processor\t: {n}\nmodel name\t: {name}\nflags\t\t: fpu sse2 avx2 avx512f {more}\nbugs\t\t: spectre_v1\n\n"
SAPPHIRE_RAPIDS = CPUINFO.format(n=0, name="Intel Xeon 8481C", more="avx512_bf16 amx_bf16 amx_tile amx_int8")
GENOA = "".join(CPUINFO.format(n=n, name="AMD EPYC 9B14", more="avx512_bf16 avx512_vnni") for n in (0, 1))
SKYLAKE = CPUINFO.format(n=0, name="Intel Xeon amx_bf16 avx512_bf16", more="avx512_vnni")  # flags only in the name
WITHOUT_TILES = CPUINFO.format(n=0, name="masked by a hypervisor", more="avx512_bf16 amx_bf16")
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (SAPPHIRE_RAPIDS, "amx"),
        (GENOA, "avx512"),
        (WITHOUT_TILES, "avx512"),
        (SKYLAKE, "none"),
        (CPUINFO.format(n=0, name="x", more="xavx512_bf16 amx_bf16x"), "none"),
        (ARM, "unknown"),
        ("", "unknown"),
    ],
)
def test_support_is_read_from_the_flags(cpuinfo: str, expected: str) -> None:
    assert bfloat16_support(cpuinfo) == expected


@pytest.mark.parametrize(
    ("support", "better"), [("amx", "bfloat16"), ("avx512", "bfloat16"), ("none", "float32"), ("unknown", "float32")]
)
def test_advice_names_what_params_yaml_says_and_what_suits(support: str, better: str) -> None:
    other = {"bfloat16": "float32", "float32": "bfloat16"}[better]
    suits = advice(support, make_params({"precision": better}))
    assert suits.startswith(f"params.yaml says precision: {better}, which suits it")
    changed = advice(support, make_params({"precision": other}))
    assert changed.startswith(f"params.yaml says precision: {other}; precision: {better} suits it better")


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_a_gpu_pays_with_bfloat16_from_ampere_on(capability: tuple[int, int], precision: str) -> None:
    told = gpu_advice("T", capability, make_params({"device": "cuda"}))
    assert told.startswith(f"GPU T: device: cuda and precision: {precision} pay; params.yaml says device: cuda")


def test_parameters_that_cannot_be_read_would_stop_a_run(tmp_path: Path) -> None:
    ((good, line),) = findings(tmp_path)
    assert good is False
    assert "params.yaml is missing" in line


def test_more_threads_than_cores_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    lines = [line for _, line in findings(REPOSITORY)]
    assert lines[0].startswith("1 cores; params.yaml says threads × workers = 2; more threads than cores")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert findings(REPOSITORY)[0][1] == "2 cores; params.yaml says threads × workers = 2"
