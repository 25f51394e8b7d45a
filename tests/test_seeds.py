"""docs/seeds.md names files and tests that are there, and has a word for every system of the catalogue."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

PAGE = REPOSITORY / "docs" / "seeds.md"
SYSTEMS = (
    "RNN, LSTM, GRU",
    "Bahdanau, Luong attention; GNMT; LSTMN",
    "Naive Transformer",
    "Encoder–decoder (Vaswani 2017)",
    "Translator",
    "RMSNorm, SwiGLU",
    "Rotary positions, linear and dynamic NTK scaling",
    "MHA, GQA, MQA, uptraining",
    "KV cache, top-p, prompts",
    "Tensor-parallel slices, packing helper",
    "Chat page",
    "Shaw relative positions, Transformer-XL, flash attention, LoRA",
    "BERT",
    "GPT-1",
    "GPT-2",
    "GPT-3",
    "T5; AlphaFold 2; Wu Dao; Pathways",
    "Switch",
    "Mistral, Mixtral",
    "Phi-1, 1.5, 2",
    "DDPM, DDIM, guidance",
    "Latent diffusion (VAE, U-Net, CLIP text)",
    "CLIP, DALL·E",
    "InstructGPT: SFT",
    "InstructGPT: reward model",
    "PPO, PPO-ptx",
    "DPO",
    "Multi-trainer *Advise*",
    "Dual-number autodiff",
    "BPE (PyGPT)",
    "Label cleaning; pre-tokenising; Dolly, Alpaca loaders",
    "Synthetic maths → LaTeX",
    "PyGPT model and training",
    "Generation",
)
TO_COME = "**Still to come"
_QUOTED = re.compile(r"`([^`\n]+)`")
_NAMED = re.compile(r"[\w.-]+(?:/[\w.-]*)+(?:::\w+)?|[\w./-]*::[\w:]*")  # what is quoted and has a slash or "::"


def systems(page: str) -> list[tuple[str, str]]:
    """(heading, text) of every system, in the order of the page; what stands before the first one is left out."""
    parts = re.split(r"^## (.+)\n", page, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def named(text: str) -> list[tuple[str, str]]:
    """(path, test or "") of everything quoted in `text` that is a path."""
    found = [quoted for quoted in _QUOTED.findall(text) if _NAMED.fullmatch(quoted)]
    return [(path, test) for path, _, test in (quoted.partition("::") for quoted in found)]


@cache
def defined_in(file: Path) -> frozenset[str]:
    """The names of the tests that a file defines, at its top or in a class, read and not imported."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    defined = (node.name for body in bodies for node in body if isinstance(node, ast.FunctionDef))
    return frozenset(name for name in defined if name.startswith("test_"))


def mistakes(page: str, root: Path) -> Iterator[str]:
    """A sentence for each thing that is wrong with `page`, whose paths begin at `root`."""
    found = systems(page)
    if [name for name, _ in found] != list(SYSTEMS):
        missing = [name for name in SYSTEMS if name not in dict(found)]
        unknown = [name for name, _ in found if name not in SYSTEMS]
        yield f"the systems are not those of the catalogue in its order; missing: {missing}; unknown: {unknown}"
    for system, text in found:
        names = named(text)
        for path, test in names:
            if not (root / path).is_file():
                yield f"{system}: {path} is missing"
            elif test and test not in defined_in(root / path):
                yield f"{system}: {path} defines no {test}"
        has_code = any(not test and not path.startswith("tests/") for path, test in names)
        has_test = any(test for _, test in names)
        if not (has_code and has_test) and TO_COME not in text:
            yield f"{system}: neither code and a test nor the mark {TO_COME}"


def test_the_page_names_what_is_there() -> None:
    assert list(mistakes(PAGE.read_text(encoding="utf-8"), REPOSITORY)) == []


def test_the_page_is_read_as_it_is_written() -> None:
    """Every path and every test on the page has been looked at, however the page is wrapped."""
    page = PAGE.read_text(encoding="utf-8")
    read = [item for _, text in systems(page) for item in named(text)]
    assert sum(bool(test) for _, test in read) == page.count("::test_") > 100
    assert "tests/test_seeds.py" in page.partition("\n## ")[0]


GOOD = {
    "some/code.py": "",
    "tests/test_it.py": "def test_one() -> None: ...\nclass TestMore:\n    def test_two(self): ...",
}


def made_up(root: Path, row: str) -> list[str]:
    """The mistakes of a page of which one system has `row`, in a root of two files."""
    for path, content in GOOD.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    rows = dict.fromkeys(SYSTEMS, f"Some paper.\n\n{TO_COME}.**") | {"BERT": row}
    return list(mistakes("# Page\n\n" + "\n".join(f"## {name}\n{text}\n" for name, text in rows.items()), root))


@pytest.mark.parametrize(
    "row",
    [
        "`some/code.py`: `tests/test_it.py::test_one`",
        "`some/code.py`: a / b, `vaswani`, `tests/test_it.py::test_two`",
        f"Nothing. {TO_COME}.**",
        f"`some/code.py`. {TO_COME}:** the rest.",
    ],
)
def test_a_row_that_is_right_is_taken(tmp_path: Path, row: str) -> None:
    assert made_up(tmp_path, row) == []


@pytest.mark.parametrize(
    ("row", "mistake"),
    [
        ("`some/code.py`, `some/other.py`: `tests/test_it.py::test_one`", "BERT: some/other.py is missing"),
        ("`some/code.py`: `tests/test_that.py::test_one`", "BERT: tests/test_that.py is missing"),
        ("`some/code.py`: `tests/test_it.py::test_on`", "BERT: tests/test_it.py defines no test_on"),
        ("`some/code.py`: `tests/test_it.py::TestMore`", "BERT: tests/test_it.py defines no TestMore"),
        (f"`some/gone.py`. {TO_COME}.**", "BERT: some/gone.py is missing"),
        (f"`some/`. {TO_COME}.**", "BERT: some/ is missing"),
        ("`some/code.py` alone", f"BERT: neither code and a test nor the mark {TO_COME}"),
        ("`tests/test_it.py::test_one` alone", f"BERT: neither code and a test nor the mark {TO_COME}"),
        ("Done, believe me.", f"BERT: neither code and a test nor the mark {TO_COME}"),
    ],
)
def test_a_row_that_is_wrong_is_refused(tmp_path: Path, row: str, mistake: str) -> None:
    assert made_up(tmp_path, row) == [mistake]


def test_a_system_left_out_or_in_another_place_is_refused(tmp_path: Path) -> None:
    def page(names: tuple[str, ...]) -> str:
        return "\n".join(f"## {name}\n{TO_COME}.**\n" for name in names)

    assert list(mistakes(page(SYSTEMS), tmp_path)) == []
    for names in (SYSTEMS[1:], SYSTEMS[::-1], (*SYSTEMS, "Perceptron")):
        (found,) = mistakes(page(names), tmp_path)
        assert "not those of the catalogue" in found
    (left_out,) = mistakes(page(SYSTEMS[1:]), tmp_path)
    assert "missing: ['RNN, LSTM, GRU']" in left_out
