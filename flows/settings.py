"""`--set key=value`: change `params.yaml` keeping its comments, after showing the difference."""

from __future__ import annotations

import difflib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks import parameters, yaml_text
from tasks.errors import UserError
from tasks.files import write_text
from tasks.parameters import Parameters


def apply(root: Path, assignments: Sequence[str]) -> tuple[Parameters, str, str]:
    """Checked parameters with `assignments` made, the new text of `params.yaml`, and the difference.

    Raises `UserError` for an assignment that does not parse, or that leaves parameters which are not allowed.
    """
    path = root / "params.yaml"
    tree: Any = parameters.read_tree(path)
    if not assignments:
        return parameters.check(tree), "", ""
    parameters.check(tree)
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    old = path.read_text(encoding="utf-8")
    document = editor.load(old)
    for assignment in assignments:
        key, value = _parse(assignment)
        _assign(document, key, value)
        _assign(tree, key, value)
    checked = parameters.check(tree, where="params.yaml with --set")
    out = io.StringIO()
    editor.dump(document, out)
    new = out.getvalue()
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), "params.yaml", "params.yaml with --set", lineterm="", n=0
    )
    return checked, new, "\n".join(lines)


def write(root: Path, text: str) -> None:
    """Replace `params.yaml`."""
    write_text(root / "params.yaml", text)


def _parse(assignment: str) -> tuple[list[str], Any]:
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {assignment!r} must be key=value, for example --set dpo.beta=0.2")
    try:
        return key.strip().split("."), yaml_text.parse(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {assignment!r}: the value is not YAML: {error}") from None


def _assign(tree: Any, key: list[str], value: Any) -> None:
    for part in key[:-1]:
        if not isinstance(tree, dict) or part not in tree:
            return_to = ", ".join(tree) if isinstance(tree, dict) else "none"
            close = difflib.get_close_matches(part, list(tree) if isinstance(tree, dict) else [], n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {return_to}"
            raise UserError(f"--set {'.'.join(key)}: {part} is not a section of params.yaml; {hint}")
        tree = tree[part]
    if not isinstance(tree, dict):
        raise UserError(f"--set {'.'.join(key)}: {'.'.join(key[:-1])} is a value, not a section")
    tree[key[-1]] = value
