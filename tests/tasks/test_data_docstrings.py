"""Docstrings, public names and questions of small sources; packages and their pins."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path, PurePosixPath

import pytest

from tasks.data import docstrings, packages, python_docs
from tasks.data.records import TextRecord
from tasks.data.sources import check_sources
from tasks.errors import UserError
from tests.helpers import REPOSITORY, make_params

SOURCE = '''
"""Module text."""
import functools
array_function_dispatch = functools.partial(array_function_dispatch, module="numpy")
__all__ = ["Shown", "shown"]

class Shown:
    """Class text.

        indented
    and not
    """
    def method(self):
        """Method text."""
        def local():
            """Not a symbol."""
    def _hidden(self):
        """Hidden text."""

def shown():
    r"""Function \\d text."""

def unlisted():
    """Not exported."""

@array_function_dispatch(_dispatcher)
def total(a):
    """Sum text."""

@set_module("numpy.fft")
def fft(a):
    """Transform text."""

add_newdoc("numpy._core.multiarray", "ndarray", ("shape", """Shape text."""))
add_docstr(torch.abs, "Start " + r"""and {{end}}.
    {input}
Last.""".format(**common_args))
exp2 = _add_docstr(_special.special_exp2, "Power text.")
text = 3
'''


def _symbols(package_source: str, file: str = "numpy/lib/_impl.py") -> dict[str, bool]:
    return {d.symbol: d.public for d in docstrings.extract(SOURCE, "numpy", file, package_source)}


def test_symbols_and_texts() -> None:
    found = {d.symbol: d.text for d in docstrings.extract(SOURCE, "numpy", "numpy/lib/_impl.py")}
    assert found == {
        "numpy.lib": "Module text.",
        "numpy.lib.Shown": "Class text.\n\n    indented\nand not",
        "numpy.lib.Shown.method": "Method text.",
        "numpy.lib.Shown._hidden": "Hidden text.",
        "numpy.lib.shown": "Function \\d text.",
        "numpy.lib.unlisted": "Not exported.",
        "numpy.total": "Sum text.",
        "numpy.fft.fft": "Transform text.",
        "numpy.ndarray.shape": "Shape text.",
        "torch.abs": "Start and {end}.\nLast.",
        "numpy.lib.exp2": "Power text.",
    }


@pytest.mark.parametrize(
    ("package_source", "public"),
    [
        ("from ._impl import *", {"Shown", "Shown.method", "shown"}),
        ("from numpy.lib._impl import (\n    Shown,\n)", {"Shown", "Shown.method"}),
        ("from . import _other", set()),
    ],
)
def test_public_is_what_the_package_imports(package_source: str, public: set[str]) -> None:
    found = {s.removeprefix("numpy.lib.") for s, p in _symbols(package_source).items() if p and "numpy.lib." in s}
    assert found == public
    assert _symbols(package_source)["numpy.total"]  # it names its public module itself


def test_everything_without_underscore_is_public_in_a_public_module() -> None:
    found = _symbols("", "numpy/ma/core.py")
    assert found["numpy.ma.core.unlisted"]
    assert not found["numpy.ma.core.Shown._hidden"]


def test_files_that_are_not_python_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.py").write_text('"""Text."""\ndef (')
    monkeypatch.setattr(docstrings, "path_of", lambda name, file: tmp_path / file)
    result = docstrings.extract_files({"files": [["p", "bad.py"]]})
    assert result["docstrings"] == []
    assert result["unreadable"][0][2].startswith("SyntaxError")


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("numpy/linalg/_linalg.py", True),
        ("numpy/linalg/tests/test_x.py", False),
        ("torch/testing/_internal/common.py", False),
        ("sklearn/externals/_arff.py", False),
        ("scipy/_lib/array_api_compat/common/x.py", False),
        ("torch/_vendor/packaging/version.py", False),
        ("numpy/conftest.py", False),
        ("numpy/core.pyi", False),
        ("torch/autograd/gradcheck.py", True),
    ],
)
def test_tests_and_vendored_code_are_skipped(file: str, own: bool) -> None:
    assert packages.is_own_source(PurePosixPath(file)) is own


def test_a_package_is_located_without_import() -> None:
    found = packages.locate("scikit_learn")
    assert (found.name, found.license) == ("scikit-learn", "BSD-3-Clause")
    assert found.version == importlib.metadata.version("scikit-learn")
    assert "sklearn/linear_model/_ridge.py" in found.files
    assert list(found.files) == sorted(found.files)
    assert packages.path_of("scikit-learn", found.files[0]).exists()


def test_versions_must_be_those_of_the_constraints(tmp_path: Path) -> None:
    pins = packages.read_pins(REPOSITORY / "constraints.txt")
    assert packages.check_installed(["torch", "numpy", "scikit-learn"], pins) == []  # +cpu is no other version
    (wrong,) = packages.check_installed(["numpy"], pins | {"numpy": "1.0.0"})
    assert "pins 1.0.0" in wrong
    assert "not pinned" in packages.check_installed(["nunpy"], pins)[0]
    assert "not installed" in packages.check_installed(["ghost"], {"ghost": "1.0"})[0]
    with pytest.raises(UserError, match=r"constraints\.txt is missing"):
        packages.read_pins(tmp_path / "constraints.txt")


def test_all_mistakes_in_the_sources_are_listed_together(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("numpy==1.0.0\n")
    (tmp_path / "blank.jsonl").write_text("\n \n")
    files = [{"path": p, "license": "MIT"} for p in ("gone.jsonl", "blank.jsonl", "blank.jsonl")]
    params = make_params({"data.files": files, "data.python_docs.packages": ["numpy", "ghost"]})
    with pytest.raises(UserError) as caught:
        check_sources(params, tmp_path)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    for part in ("6 mistake", "gone.jsonl", "is empty", "listed twice", "ghost", "pins 1.0.0"):
        assert part in message
    with pytest.raises(UserError, match="no text to pretrain on"):
        check_sources(make_params({"data.python_docs.packages": []}), tmp_path)


@pytest.mark.parametrize(
    ("paragraph", "why"),
    [
        ("Compute the median along the specified axis.", None),
        ("Return `x` unchanged to the caller.", None),
        ("Short one.", "length"),
        ("Internationalisation everywhere forever.", "few_words"),
        ("without a capital it is not a sentence.", "not_a_sentence"),
        ("It has no full stop at the end of it", "not_a_sentence"),
        ("See the documentation of the other function.", "markup"),
        ("Shows an example like >>> f(x) and more.", "markup"),
        ("Word " * 60 + "end.", "length"),
    ],
)
def test_answers_read_like_sentences(paragraph: str, why: str | None) -> None:
    assert python_docs.why_unfit(paragraph) == why


def test_first_paragraph_is_folded_and_freed_of_markup() -> None:
    text = "Apply :class:`~torch.nn.ReLU` to\n``input`` as :func:`relu <torch.relu>`.\n\nMore."
    assert python_docs.first_paragraph(text) == "Apply `torch.nn.ReLU` to `input` as `relu`."


def test_questions_are_about_public_symbols_once() -> None:
    records = [
        TextRecord(source="python_docs", license="MIT", group="f", file="f", symbol=symbol, text=f"Say {what} is told.")
        for symbol, what in [("a.b", "first of them"), ("a._c", "hidden of them"), ("a.b", "second of them")]
    ]
    found, n_unfit = python_docs.questions(records, {("f", "a.b")})
    assert [(d.symbol, d.answer) for d in found] == [("a.b", "Say first of them is told.")]
    assert "`a.b`" in found[0].prompt
    assert n_unfit == 0
