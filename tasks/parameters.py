"""The parameters as a whole: `params.yaml` read and checked, every mistake in it told at once.

Nothing here changes a value, so no stage depends on this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from tasks import yaml_text
from tasks.errors import UserError
from tasks.parameter_mistakes import broken_rules, with_secrets, wrong_fields
from tasks.parameter_sections import (
    Continued,
    Count,
    Data,
    Divergence,
    Dpo,
    Evaluate,
    Gate,
    Lora,
    Model,
    Ppo,
    Preferences,
    Pretrain,
    Retrain,
    RewardModel,
    Runtime,
    Section,
    Sft,
    Tokenizer,
)
from tasks.redact import redacted


class Parameters(Section):
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    device: Literal["cpu", "cuda"]
    threads: Count
    workers: Count
    partition: Literal["none", "shard", "pipeline"]
    precision: Literal["bfloat16", "float32"]
    lora: Lora | None
    divergence: Divergence
    data: Data
    tokenizer: Tokenizer
    model: Model
    pretrain: Pretrain
    sft: Sft
    sft_continued: Continued
    preferences: Preferences
    reward_model: RewardModel
    ppo: Ppo
    dpo: Dpo
    evaluate: Evaluate
    gate: Gate
    retrain: Retrain
    runtime: Runtime


def mistakes(tree: Any, *, between_keys: bool = True) -> list[str]:
    """Every mistake in the mapping `tree`, in a sentence each: types and ranges, and if there are none of these the
    rules between keys (unless not `between_keys`)."""
    return _examined(tree, between_keys=between_keys)[1]


def _examined(tree: Any, *, between_keys: bool) -> tuple[Parameters | None, list[str]]:
    found = with_secrets(tree)
    try:
        parameters = Parameters.model_validate(tree)
    except ValidationError as error:
        return None, found + wrong_fields(error, Parameters)
    return parameters, found + (broken_rules(parameters) if between_keys else [])


def check(tree: Any, *, where: str = "params.yaml") -> Parameters:
    """Return the checked parameters, or raise one `UserError` that lists every mistake in `tree`."""
    if not isinstance(tree, dict):
        raise UserError(f"{where} must hold a mapping of parameters, but holds {type(tree).__name__}")
    parameters, found = _examined(tree, between_keys=True)
    if parameters is not None and not found:
        return parameters
    listed = "\n".join(f"  - {redacted(m)}" for m in found)
    raise UserError(f"{where}: {len(found)} mistake(s):\n{listed}\nEdit {where} and run the command again.")


def read_tree(path: Path) -> Any:
    """The plain values of a YAML file, or a `UserError` that names the line that does not parse."""
    try:
        return yaml_text.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.name} is missing in {path.parent}; restore it with: git checkout {path.name}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} is not readable YAML: {error}") from None


def load(root: Path) -> Parameters:
    """Read and check `params.yaml` in `root`."""
    return check(read_tree(root / "params.yaml"))
