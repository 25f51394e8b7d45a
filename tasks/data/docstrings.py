"""Read the docstrings of Python files with `ast`; nothing is imported or executed.

Besides docstrings in place, three conventions of the packages are known: `add_docstr(torch.abs, "...")` (torch's
functions in C), `add_newdoc("numpy", "ndarray", "...")` (numpy's), and the decorators by which numpy and pandas say
under which name a function is public (`@set_module("numpy")`, `@array_function_dispatch(..., module="numpy")`).
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from tasks.data.packages import path_of

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_PLACEHOLDER_LINE = re.compile(r"^.*(?<!\{)\{\w*\}(?!\}).*\n?", re.MULTILINE)


@dataclass(frozen=True)
class Docstring:
    """`symbol` is the dotted name users know where that can be told; `public` if no part of it is private."""

    package: str
    file: str
    symbol: str
    public: bool
    text: str


def _string(node: ast.AST | None) -> str | None:
    """A string literal, a sum of them, or a `.format(...)` template without the lines that have placeholders."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _string(node.left), _string(node.right)
        return left + right if left is not None and right is not None else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        template = _string(node.func.value)
        if template is not None:
            return _PLACEHOLDER_LINE.sub("", template).replace("{{", "{").replace("}}", "}")
    return None


def module_name(file: str) -> str:
    """`scipy/stats/_stats_py.py` is known as `scipy.stats`: a private module's names are public in its package."""
    parts = list(PurePosixPath(file).with_suffix("").parts)
    if parts[-1] == "__init__" or (parts[-1].startswith("_") and len(parts) > 1):
        parts.pop()
    return ".".join(parts)


def _set_module(node: ast.AST) -> str | None:
    """The module that a decorator `set_module("x")` or a call with `module="x"` names."""
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Name) and node.func.id == "set_module" and node.args:
        return _string(node.args[0])
    return next((_string(k.value) for k in node.keywords if k.arg == "module"), None)


def _dispatchers(tree: ast.Module) -> dict[str, str]:
    """Names like `array_function_dispatch = functools.partial(..., module="numpy")` with their module."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            module = _set_module(node.value)
            if module is not None:
                found[node.targets[0].id] = module
    return found


def _public_module(node: ast.AST, dispatchers: dict[str, str]) -> str | None:
    for decorator in getattr(node, "decorator_list", []):
        if (module := _set_module(decorator)) is not None:
            return module
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name):
            module = dispatchers.get(decorator.func.id)
            if module is not None:
                return module
    return None


def _walk(node: ast.AST, prefix: str, dispatchers: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(symbol, raw text) of the definitions in a module or class; what is local to a function is not a symbol."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _DEFINITIONS):
            symbol = f"{_public_module(child, dispatchers) or prefix}.{child.name}"
            if (text := ast.get_docstring(child, clean=False)) is not None:
                yield symbol, text
            if isinstance(child, ast.ClassDef):
                yield from _walk(child, symbol, dispatchers)
        elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _walk(child, prefix, dispatchers)


def _added(statement: ast.stmt, module: str) -> tuple[str, str] | None:
    """(symbol, raw text) of a statement that gives a docstring to something written in C:
    `add_docstr(torch.abs, "…")`, or `exp2 = _add_docstr(_special.special_exp2, "…")` in the module of that name."""
    call = getattr(statement, "value", None)
    if not isinstance(call, ast.Call):
        return None
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    arguments = call.args
    if name in ("add_docstr", "_add_docstr", "add_docstr_all") and len(arguments) == 2:
        text = _string(arguments[1])
        if isinstance(statement, ast.Assign):
            symbol = f"{module}.{ast.unparse(statement.targets[0])}"
        elif name == "add_docstr_all":
            symbol = f"torch.Tensor.{_string(arguments[0])}"
        else:
            symbol = ast.unparse(arguments[0])
        return (symbol, text) if text is not None else None
    if name == "add_newdoc" and len(arguments) == 3:
        place, attribute, document = arguments
        owner, thing = _string(place), _string(attribute)
        if owner is None or thing is None:
            return None
        symbol = f"{owner.replace('._core.multiarray', '').replace('._core.umath', '')}.{thing}"
        if isinstance(document, ast.Tuple) and len(document.elts) == 2:
            symbol = f"{symbol}.{_string(document.elts[0])}"
            document = document.elts[1]
        text = _string(document)
        return (symbol, text) if text is not None else None
    return None


def _exports(tree: ast.Module, file: str, package_source: str) -> frozenset[str] | None:
    """The names that the package of a private module imports from it; None for a module that is itself public."""
    stem = PurePosixPath(file).stem
    if not stem.startswith("_") or stem == "__init__" or "/" not in file:
        return None
    if re.search(rf"\b{stem}\s+import\s+\*", package_source):
        listed = [node.value for node in tree.body if isinstance(node, ast.Assign) and _is_all(node.targets[0])]
        return frozenset(s for v in listed if isinstance(v, ast.List | ast.Tuple) for e in v.elts if (s := _string(e)))
    imports = re.findall(rf"\b{stem}\s+import\s*(\([^)]*\)|[^\n(]+)", package_source)
    return frozenset(name for names in imports for name in re.findall(r"\w+", names))


def _is_all(target: ast.AST) -> bool:
    return isinstance(target, ast.Name) and target.id == "__all__"


def _is_public(symbol: str, module: str, exported: frozenset[str] | None) -> bool:
    """No private part; and what is named after the package of its private module is imported there."""
    if any(part.startswith("_") for part in symbol.split(".")):
        return False
    if exported is None or not symbol.startswith(f"{module}."):
        return True
    return symbol.removeprefix(f"{module}.").split(".")[0] in exported


def extract(source: str, package: str, file: str, package_source: str = "") -> list[Docstring]:
    """The docstrings of one file in the order of the source; raises SyntaxError if it is not Python.

    `package_source` is the `__init__.py` beside it, which tells what of a private module is public.
    """
    if '"""' not in source and "'''" not in source:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in docstrings are the package's affair
        tree = ast.parse(source)
    module = module_name(file)
    found = []
    if (text := ast.get_docstring(tree, clean=False)) is not None:
        found.append((module, text))
    found.extend(_walk(tree, module, _dispatchers(tree)))
    found += [added for node in tree.body if (added := _added(node, module)) is not None]
    exported = _exports(tree, file, package_source)
    return [
        Docstring(package, file, symbol, _is_public(symbol, module, exported), inspect.cleandoc(text))
        for symbol, text in found
        if text.strip()
    ]


def extract_files(item: dict[str, Any]) -> dict[str, Any]:
    """For fan-out: `{"files": [[package, file], …]}` to `{"docstrings": […], "unreadable": [[package, file, why]]}`."""
    docstrings, unreadable = [], []
    for package, file in item["files"]:
        try:
            source = path_of(package, file).read_text(encoding="utf-8")
            beside = path_of(package, str(PurePosixPath(file).with_name("__init__.py")))
            package_source = beside.read_text(encoding="utf-8") if beside.exists() else ""
            docstrings += [asdict(d) for d in extract(source, package, file, package_source)]
        except (SyntaxError, UnicodeDecodeError, FileNotFoundError) as error:
            unreadable.append([package, file, f"{type(error).__name__}: {error}"])
    return {"docstrings": docstrings, "unreadable": unreadable}
