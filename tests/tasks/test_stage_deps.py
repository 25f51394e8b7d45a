"""`deps` in dvc.yaml name the code that a stage's step imports; tests/flows/test_pipeline.py sees it at run time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.runtime import stages
from tests.flows.test_pipeline import NEUTRAL, is_empty_package

ROOT = Path(__file__).resolve().parents[2]
STAGES = stages.read_stages(ROOT)


def _file_of(name: str) -> Path | None:
    """The file of a module of this project, relative to its root."""
    path = Path(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if (ROOT / p).is_file()), None)


def _imported(node: ast.AST) -> Iterator[str]:
    """Modules that are imported when a file is: not inside functions, and not for the types alone."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.FunctionDef):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imported(child)


def _closure(file: Path) -> set[Path]:
    found, waiting = set[Path](), [file]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            names = _imported(ast.parse((ROOT / path).read_text()))
            waiting += [imported for imported in map(_file_of, names) if imported is not None]
    return found


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_s_deps_cover_the_code_that_its_step_imports(name):
    used = _closure(Path("tasks", "steps", f"{name}.py"))
    needed = [p for p in used if not str(p).startswith(NEUTRAL) and not is_empty_package(ROOT / p)]
    deps = STAGES[name].deps
    assert sorted(str(p) for p in needed if not any(p.is_relative_to(dep) for dep in deps)) == []


def test_ppo_needs_what_it_says():
    """The closure follows imports at all: files two imports away are in it."""
    used = {str(path) for path in _closure(Path("tasks/steps/ppo.py"))}
    assert {"tasks/alignment/ppo_progress.py", "tasks/alignment/rollouts.py", "axon_models/objectives/ppo.py"} <= used
