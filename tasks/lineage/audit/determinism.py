"""How deterministic each stage was found to be: `.axon/determinism.json`, a live view and never a DVC output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.files import read_json, write_json
from tasks.lineage.audit.comparing import NOT
from tasks.runtime.checkout import Checkout


def path(checkout: Checkout) -> Path:
    return checkout.state / "determinism.json"


def read(checkout: Checkout) -> dict[str, dict[str, Any]]:
    """By stage, what `axon audit --reproduce` found last: "class", "largest_difference", "statement", "when", …

    Empty if it never ran; raises `UserError` for a damaged file.
    """
    file = path(checkout)
    if not file.is_file():
        return {}
    try:
        return {str(stage): dict(found) for stage, found in read_json(file).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): remove it; `axon audit --reproduce` writes it anew.") from None


def write(checkout: Checkout, stage: str, found: dict[str, Any]) -> None:
    write_json(path(checkout), {**read(checkout), stage: found})


def is_known_not_to_be(checkout: Checkout, stage: str) -> bool:
    """Whether the stage was found not deterministic, so that an earlier result of it stands for no other."""
    return read(checkout).get(stage, {}).get("class") == NOT
