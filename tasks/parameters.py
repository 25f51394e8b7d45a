"""The schema of `params.yaml`: every key with its type and range, and the rules between keys.

There are no defaults: every value that changes a result stands in `params.yaml`, where DVC sees it. So this file
can only refuse a value, never change a result, and no stage depends on it.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks import yaml_text
from tasks.errors import UserError

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
MathsKind = Literal["addition", "subtraction", "comparison", "fraction", "equation", "latex"]


class Section(BaseModel):
    """A frozen part of the tree; unknown keys and wrong types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PythonDocs(Section):
    packages: list[str]
    max_questions: Whole


class Maths(Section):
    kinds: list[MathsKind]
    max_operand: Annotated[int, Field(ge=9, le=9999)]
    max_questions: Whole


class OwnFile(Section):
    path: str
    license: str


class Filters(Section):
    min_chars: Count
    max_chars: Count
    min_letter_fraction: Share


class NearDuplicates(Section):
    threshold: Fraction
    permutations: Annotated[int, Field(ge=16, le=256)]


class Splits(Section):
    preference: Fraction
    validation: Fraction
    test: Fraction


class Data(Section):
    python_docs: PythonDocs
    maths: Maths
    files: list[OwnFile]
    filters: Filters
    near_duplicates: NearDuplicates
    overlap_words: Annotated[int, Field(ge=5)]
    max_damaged_fraction: Share
    splits: Splits


class Tokenizer(Section):
    vocab_size: Annotated[int, Field(le=65536)]


class Model(Section):
    preset: Literal["x_llama"]
    d_model: Count
    n_layers: Count
    heads: Count
    kv_heads: Count
    d_feed_forward: Count
    max_positions: Annotated[int, Field(ge=16)]
    rope_theta: Positive


class Training(Section):
    n_steps: Count
    batch_size: Count
    accumulation: Count
    seq_len: Annotated[int, Field(ge=16)]
    learning_rate: Positive
    min_learning_rate: NonNegative
    warmup_steps: Whole
    weight_decay: NonNegative
    beta2: Fraction
    clip_norm: Positive
    evaluate_every: Count
    n_validation_batches: Count


class Continued(Section):
    learning_rate: Positive


class Preferences(Section):
    judge: str
    n_prompts: Count
    n_validation_prompts: Count
    answers_per_prompt: Annotated[int, Field(ge=2, le=16)]
    prompt_tokens: Annotated[int, Field(ge=16)]
    max_new_tokens: Count
    temperature: Positive
    top_p: Annotated[float, Field(gt=0, le=1)]
    batch_size: Count


class EpochTraining(Section):
    n_epochs: Count
    batch_size: Count
    learning_rate: Positive
    warmup_steps: Whole
    weight_decay: NonNegative
    clip_norm: Positive


class RewardModel(EpochTraining):
    pass


class Ppo(Section):
    n_iterations: Count
    prompts_per_iteration: Count
    epochs: Count
    minibatch_size: Count
    learning_rate: Positive
    value_learning_rate: Positive
    kl_coef: NonNegative
    gamma: Annotated[float, Field(gt=0, le=1)]
    gae_lambda: Share
    clip_ratio: Positive
    clip_value: Positive
    value_coef: NonNegative
    entropy_coef: NonNegative
    pretraining_coef: NonNegative
    temperature: Positive
    missing_end_penalty: NonNegative
    clip_norm: Positive
    whiten_advantages: bool


class Dpo(EpochTraining):
    beta: Positive
    nll_coef: NonNegative


class Evaluate(Section):
    n_maths: Whole
    n_docs: Whole
    n_samples: Annotated[int, Field(ge=2, le=64)]
    temperature: Positive
    batch_size: Count
    n_text_batches: Count
    n_bootstrap: Annotated[int, Field(ge=100)]


class Divergence(Section):
    policy: Literal["stop", "skip", "rollback"]
    explodes_at: Annotated[float, Field(ge=0)]
    max_times: Whole


class GateLimits(Section):
    """How much worse, on average and in its own unit, each guarded figure of a challenger may be."""

    bits_per_byte: NonNegative
    exact_match: NonNegative
    kl_to_sft: NonNegative
    length: NonNegative


class Gate(Section):
    metric: Literal["score", "exact_match", "win_rate", "bits_per_byte"]
    margin: NonNegative
    level: Annotated[float, Field(ge=0.5, lt=1)]
    n_maths: Whole
    n_docs: Whole
    n_texts: Whole
    n_seeds: Count
    temperature: Positive
    n_resamples: Annotated[int, Field(ge=100)]
    limits: GateLimits


class Retrain(Section):
    min_new_records: Count
    length_drift: Share
    vocabulary_drift: Share
    source_drift: Share


class Runtime(Section):
    checkpoint_every_s: NonNegative
    sampling_workers: Count
    min_workers: Annotated[int, Field(ge=0)] = 0


class Parameters(Section):
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    device: Literal["cpu", "cuda"]
    threads: Count
    workers: Count
    partition: Literal["none", "shard", "pipeline"]
    precision: Literal["bfloat16", "float32"]
    divergence: Divergence
    data: Data
    tokenizer: Tokenizer
    model: Model
    pretrain: Training
    sft: Training
    sft_continued: Continued
    preferences: Preferences
    reward_model: RewardModel
    ppo: Ppo
    dpo: Dpo
    evaluate: Evaluate
    gate: Gate
    retrain: Retrain
    runtime: Runtime


N_SPECIAL_TOKENS = 6
MIN_VOCAB_SIZE = 256 + N_SPECIAL_TOKENS


def _rules(p: Parameters) -> list[str]:
    """The rules between keys that a single field cannot state."""
    m, wrong = p.model, []
    if m.d_model % m.heads:
        wrong.append(f"model.d_model={m.d_model} must be divisible by model.heads={m.heads}")
    elif (m.d_model // m.heads) % 2:
        wrong.append(f"model.d_model/model.heads={m.d_model // m.heads} must be even: rotary positions turn pairs")
    if m.heads % m.kv_heads:
        wrong.append(f"model.kv_heads={m.kv_heads} must divide model.heads={m.heads}")
    if p.tokenizer.vocab_size < MIN_VOCAB_SIZE:
        wrong.append(
            f"tokenizer.vocab_size={p.tokenizer.vocab_size} must be at least {MIN_VOCAB_SIZE}: "
            f"256 bytes and {N_SPECIAL_TOKENS} special tokens"
        )
    for name, stage in (("pretrain", p.pretrain), ("sft", p.sft)):
        if stage.seq_len > m.max_positions:
            wrong.append(f"{name}.seq_len={stage.seq_len} must be at most model.max_positions={m.max_positions}")
        if stage.batch_size % stage.accumulation:
            wrong.append(f"{name}.accumulation={stage.accumulation} must divide {name}.batch_size={stage.batch_size}")
        if stage.warmup_steps >= stage.n_steps:
            wrong.append(f"{name}.warmup_steps={stage.warmup_steps} must be below {name}.n_steps={stage.n_steps}")
    longest = p.preferences.prompt_tokens + p.preferences.max_new_tokens
    if longest > m.max_positions:
        wrong.append(
            f"preferences.prompt_tokens + preferences.max_new_tokens = {longest} must be at most "
            f"model.max_positions={m.max_positions}"
        )
    if p.data.filters.min_chars > p.data.filters.max_chars:
        wrong.append(
            f"data.filters.min_chars={p.data.filters.min_chars} must be at most "
            f"data.filters.max_chars={p.data.filters.max_chars}"
        )
    if p.data.splits.preference + p.data.splits.validation + p.data.splits.test >= 1:
        wrong.append("data.splits: preference + validation + test must be below 1; the rest is for training")
    if not p.data.maths.kinds and p.data.maths.max_questions:
        wrong.append("data.maths.kinds=[] must name at least one kind, or set data.maths.max_questions to 0")
    if p.ppo.prompts_per_iteration % p.ppo.minibatch_size:
        wrong.append(
            f"ppo.minibatch_size={p.ppo.minibatch_size} must divide "
            f"ppo.prompts_per_iteration={p.ppo.prompts_per_iteration}"
        )
    if p.evaluate.n_maths + p.evaluate.n_docs == 0:
        wrong.append("evaluate.n_maths and evaluate.n_docs are both 0; at least one must be positive")
    if p.gate.n_maths + p.gate.n_docs == 0 or not p.gate.n_texts:
        wrong.append("gate: n_texts and one of n_maths and n_docs must be positive, or there is nothing to decide on")
    if p.gate.metric == "exact_match" and not p.gate.n_maths:
        wrong.append("gate.metric=exact_match needs gate.n_maths > 0: prose is not right or wrong")
    return wrong


def _known_keys(section: type[BaseModel], at: tuple[str | int, ...]) -> list[str]:
    for part in at:
        if isinstance(part, int):
            continue
        annotation: Any = section.model_fields[part].annotation
        section = annotation.__args__[0] if hasattr(annotation, "__args__") else annotation
    return list(section.model_fields)


def _describe(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(Parameters, error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        prefix = ".".join(str(part) for part in error["loc"][:-1])
        suggestion = (
            f"did you mean {prefix + '.' if prefix else ''}{close[0]}?" if close else f"known: {', '.join(known)}"
        )
        return f"{where} is not a parameter; {suggestion}"
    if error["type"] == "missing":
        return f"{where} is missing; every parameter must be given"
    text = error["msg"][:1].lower() + error["msg"][1:]
    return f"{where}={error['input']!r}: {text}"


def check(tree: Any, *, where: str = "params.yaml") -> Parameters:
    """Return the checked parameters, or raise one `UserError` that lists every mistake in `tree`."""
    if not isinstance(tree, dict):
        raise UserError(f"{where} must hold a mapping of parameters, but holds {type(tree).__name__}")
    try:
        parameters = Parameters.model_validate(tree)
    except ValidationError as error:
        mistakes = [_describe(e) for e in error.errors(include_url=False)]
    else:
        mistakes = _rules(parameters)
        if not mistakes:
            return parameters
    listed = "\n".join(f"  - {m}" for m in mistakes)
    raise UserError(f"{where}: {len(mistakes)} mistake(s):\n{listed}\nEdit {where} and run the command again.")


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
