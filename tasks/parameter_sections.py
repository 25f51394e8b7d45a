"""The sections of `params.yaml`: every key with its type and range.

There are no defaults for what changes a result: that stands in `params.yaml`, where DVC sees it. So this file can only
refuse a value, never change a result, and no stage depends on it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Preset = Literal[
    "x_llama", "pygpt", "gpt", "gpt2", "gpt3_sparse", "mistral", "mixtral", "switch", "phi", "transformer_xl",
    "gpt_117m", "gpt2_124m", "gpt2_355m", "gpt2_774m", "gpt2_1558m", "gpt3_125m", "gpt3_350m", "gpt3_760m",
    "gpt3_1_3b", "gpt3_2_7b", "gpt3_6_7b", "gpt3_13b", "gpt3_175b", "llama_7b", "llama_13b", "llama_33b", "llama_65b",
    "llama2_7b", "llama2_13b", "llama2_70b", "mistral_7b", "mixtral_8x7b", "phi_1", "phi_1_5", "phi_2",
]  # fmt: skip
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
    kind: Literal["byte_level", "byte_fallback", "own"]
    vocab_size: Annotated[int, Field(le=65536)]


class RopeScaling(Section):
    kind: Literal["linear", "dynamic"]
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Model(Section):
    """What is null is the preset's own; which keys a preset leaves open is a rule between keys.

    A published size has a shape of its own, so of the keys beside it `max_positions` alone counts.
    """

    preset: Preset
    d_model: Count
    n_layers: Count
    heads: Count
    kv_heads: Count | None
    d_feed_forward: Count | None
    max_positions: Annotated[int, Field(ge=16)]
    window: Count | None
    segment_length: Count | None = None
    memory_length: Whole | None = None
    rope_theta: Positive | None
    rope_scaling: RopeScaling | None
    experts: Annotated[int, Field(ge=2)] | None


class Training(Section):
    """A learning rate that is null is the model's own (tasks/training/learning_rates.py)."""

    n_steps: Count
    batch_size: Count
    accumulation: Count
    seq_len: Annotated[int, Field(ge=16)]
    learning_rate: Positive | None
    min_learning_rate: NonNegative
    warmup_steps: Whole
    weight_decay: NonNegative
    beta2: Fraction
    clip_norm: Positive
    evaluate_every: Count
    n_validation_batches: Count


class Pretrain(Training):
    init_from: str | None


class Sft(Training):
    lm_coef: NonNegative


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


class Lora(Section):
    rank: Count
    alpha: Positive
    targets: Annotated[list[Literal["attention", "feed_forward"]], Field(min_length=1)]


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
    activation_checkpointing: bool = False
