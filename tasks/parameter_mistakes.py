"""What is wrong with parameters, in words that name the key, its value and what is allowed."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from tasks.redact import holds_secret

if TYPE_CHECKING:
    from axon_models.decoder.config import DecoderConfig
    from tasks.parameter_sections import Model
    from tasks.parameters import Parameters

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxlist = _SHORT.maxdict = 20

N_SPECIAL_TOKENS = 6
N_ESCAPES = 5
# The tokens that a tokenizer has before it has learnt anything, and what they are.
MIN_VOCAB_SIZES = {
    "byte_level": (256 + N_SPECIAL_TOKENS, f"256 bytes and {N_SPECIAL_TOKENS} special tokens"),
    "byte_fallback": (
        256 + N_SPECIAL_TOKENS + N_ESCAPES + 1,
        f"256 bytes, {N_SPECIAL_TOKENS} special tokens, {N_ESCAPES} for escapes and the space",
    ),
}
MIN_VOCAB_SIZES["own"] = MIN_VOCAB_SIZES["byte_level"]


# A folder that DVC sees, or a commit of a repository of the Hugging Face hub, whose files never change.
_INIT_FROM = re.compile(r"sources/models/(?!\.)[\w.-]+|(?!sources/)[\w.-]+/[\w.-]+@[0-9a-f]{40}")

_GROUPED = ("kv_heads", "d_feed_forward", "rope_theta", "rope_scaling")
_OPEN: dict[str, tuple[str, ...]] = {
    "x_llama": _GROUPED,
    "pygpt": ("d_feed_forward",),
    "gpt": (),
    "gpt2": ("d_feed_forward",),
    "gpt3_sparse": ("d_feed_forward", "window"),
    "mistral": (*_GROUPED, "window"),
    "mixtral": (*_GROUPED, "window", "experts"),
    "switch": (*_GROUPED, "experts"),
    "phi": _GROUPED,
    "transformer_xl": ("d_feed_forward", "segment_length", "memory_length"),
}
"""The keys of `model` that may be null, by the presets that take a value for them."""
_ALL_OPEN = sorted({key for keys in _OPEN.values() for key in keys})


def _sizes(m: Model) -> Model | DecoderConfig:
    """What has the model's `d_model`, `n_layers` and `max_positions`: itself, or the published size that it names."""
    if m.preset in _OPEN:
        return m
    from axon_models.decoder.sizes import SIZES  # here, because no stage depends on this file

    return SIZES[m.preset]()


def _is_routed(m: Model) -> bool:
    return "experts" in _OPEN[m.preset] if m.preset in _OPEN else _sizes(m).experts is not None


def _given(m: Model, key: str) -> Any:
    value = getattr(m, key)
    return value.model_dump() if isinstance(value, BaseModel) else value


def _broken_published_shape(m: Model) -> list[str]:
    longest = _sizes(m).max_positions
    wrong = [
        f"model.{key}={_given(m, key)} is not for model.preset={m.preset}, whose shape is published; set it to null"
        for key in _ALL_OPEN
        if getattr(m, key) is not None
    ]
    if m.max_positions > longest:
        wrong.append(f"model.max_positions={m.max_positions} must be at most {longest}, what {m.preset} has")
    return wrong


def _broken_shape(m: Model) -> list[str]:
    if m.preset not in _OPEN:
        return _broken_published_shape(m)
    wrong = []
    part = 2 if m.preset == "phi" else 1  # one of so many dimensions of a head turns
    if m.d_model % m.heads:
        wrong.append(f"model.d_model={m.d_model} must be divisible by model.heads={m.heads}")
    elif "rope_theta" in _OPEN[m.preset] and (m.d_model // m.heads < part or m.d_model // m.heads // part % 2):
        turning = "model.d_model/model.heads" + (f"/{part}" if part > 1 else "")
        wrong.append(f"{turning}={m.d_model // m.heads // part} must be even: rotary positions turn pairs")
    elif m.preset in ("pygpt", "transformer_xl") and m.d_model % 2:
        wrong.append(f"model.d_model={m.d_model} must be even: a sine goes with a cosine")
    if m.kv_heads is not None and m.heads % m.kv_heads:
        wrong.append(f"model.kv_heads={m.kv_heads} must divide model.heads={m.heads}")
    for key in ("segment_length", "memory_length"):
        value = getattr(m, key)
        if value is not None and value > m.max_positions:
            wrong.append(f"model.{key}={value} must be at most model.max_positions={m.max_positions}")
    for key in sorted(set(_ALL_OPEN) - set(_OPEN[m.preset])):
        if getattr(m, key) is not None:
            takers = ", ".join(preset for preset, keys in _OPEN.items() if key in keys)
            wrong.append(
                f"model.{key}={_given(m, key)} is not for model.preset={m.preset}, only for {takers}; set it to null"
            )
    return wrong


def broken_rules(p: Parameters) -> list[str]:
    """The rules between keys that a single field cannot state."""
    m, wrong = p.model, _broken_shape(p.model)
    has_own_shape = p.pretrain.init_from is None  # else the stage itself looks at the checkpoint's
    smallest, which = MIN_VOCAB_SIZES[p.tokenizer.kind]
    if p.tokenizer.vocab_size < smallest:
        wrong.append(f"tokenizer.vocab_size={p.tokenizer.vocab_size} must be at least {smallest}: {which}")
    if p.pretrain.init_from is not None and not _INIT_FROM.fullmatch(p.pretrain.init_from):
        wrong.append(
            f"pretrain.init_from={p.pretrain.init_from!r} must be null, sources/models/NAME, or OWNER/NAME@COMMIT with "
            "the 40 hex digits of a commit of the Hugging Face hub"
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
    if m.rope_scaling is not None and m.rope_scaling.kind == "dynamic" and has_own_shape:
        trained = math.ceil(m.max_positions / m.rope_scaling.factor)
        lengths = {"pretrain.seq_len": p.pretrain.seq_len, "sft.seq_len": p.sft.seq_len}
        lengths["preferences.prompt_tokens + preferences.max_new_tokens"] = longest
        wrong += [
            f"{name}={length} must be at most model.max_positions/model.rope_scaling.factor={trained}, the length to "
            "train on with dynamic scaling: past it padding would change what the model says"
            for name, length in lengths.items()
            if length > trained
        ]
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
    if p.runtime.min_workers > p.workers:
        wrong.append(f"runtime.min_workers={p.runtime.min_workers} must be at most workers={p.workers}")
    if p.partition == "pipeline" and has_own_shape and _is_routed(m):
        wrong.append(f"partition=pipeline is not for model.preset={m.preset}, whose routers add to the loss; use shard")
    n_layers = _sizes(m).n_layers
    if p.partition == "pipeline" and has_own_shape and p.workers > n_layers:
        wrong.append(f"workers={p.workers} with partition=pipeline must be at most model.n_layers={n_layers}")
    return wrong + _broken_lora(p)


def _broken_lora(p: Parameters) -> list[str]:
    if p.lora is None:
        return []
    wrong, (rank, targets) = [], (p.lora.rank, p.lora.targets)
    if p.partition != "none":
        wrong.append(f"partition={p.partition} is not for lora, which keeps weights whole; use none, or lora: null")
    width = _sizes(p.model).d_model
    if rank > width:
        wrong.append(f"lora.rank={rank} must be at most model.d_model={width}: no weight has a higher rank")
    if len(set(targets)) < len(targets):
        wrong.append(f"lora.targets={targets} must name each target once")
    if "feed_forward" in targets and _is_routed(p.model):
        reason = f"model.preset={p.model.preset}, whose experts are no linear layers"
        wrong.append(f"lora.targets={targets} is not for {reason}; use [attention]")
    return wrong


def _known_keys(section: type[BaseModel], at: tuple[str | int, ...]) -> list[str]:
    for part in at:
        if isinstance(part, int):
            continue
        annotation: Any = section.model_fields[part].annotation
        section = annotation.__args__[0] if hasattr(annotation, "__args__") else annotation
    return list(section.model_fields)


def _describe(error: Any, schema: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(schema, error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        prefix = ".".join(str(part) for part in error["loc"][:-1])
        suggestion = (
            f"did you mean {prefix + '.' if prefix else ''}{close[0]}?" if close else f"known: {', '.join(known)}"
        )
        return f"{where} is not a parameter; {suggestion}"
    if error["type"] == "missing":
        return f"{where} is missing; every parameter must be given"
    text = error["msg"][:1].lower() + error["msg"][1:]
    if error["type"] == "literal_error":
        close = difflib.get_close_matches(str(error["input"]), re.findall(r"'([^']*)'", text), n=1)
        text += f"; did you mean {close[0]}?" if close else ""
    return f"{where}={_SHORT.repr(error['input'])}: {text}"


def wrong_fields(error: ValidationError, schema: type[BaseModel]) -> list[str]:
    """A sentence for each field of `schema` that pydantic refused."""
    return [_describe(e, schema) for e in error.errors(include_url=False)]


def with_secrets(tree: Any) -> list[str]:
    """A sentence for each text in `tree` that holds a password: statements, MLflow and reports show what is there."""
    found, seen = [], set()
    waiting: list[tuple[str, Any]] = [("", tree)]
    while waiting:
        at, value = waiting.pop()
        if isinstance(value, str) and holds_secret(value):
            found.append(f"{at} holds a password or token, which statements would show; keep it in .dvc/config.local")
        if isinstance(value, dict | list) and id(value) not in seen:  # with anchors YAML can hold itself
            seen.add(id(value))
            below = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{at}.{key}" if at else str(key), one) for key, one in below]
    return found
