"""Which records a stage execution consumed directly, in which role and how often.

Computed from the artifacts of the execution and the parameters it had, by the samplers of the stage. What a model
has of its ancestors (sft of pretrain, ppo of sft and the reward model) is not repeated here: the graph knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.data.records import TEST, TRAIN, VALIDATION
from tasks.errors import UserError
from tasks.files import read_json
from tasks.lineage.records import parquet_files, sampling
from tasks.lineage.records.ids import Ids, of_bytes, of_column, order
from tasks.lineage.records.sampling import Numbers, n_evaluations, seed_of, times_taken
from tasks.model_configs import padded_positions
from tasks.runtime.stages import value_at

# What a record was to an execution, and what its count counts.
KEPT = "kept"  # stands in data/: documents with this content
TOKENIZER = "tokenizer"  # the vocabulary was learnt from it: documents
TOKENIZED = "tokenized"  # stands in tokens/: documents
TRAINED = "trained"  # packed rows, or rows of the token stream, that held a part of it in steps of the optimiser
VALIDATED = "validated"  # passes through the model in evaluations during training
PROMPT = "prompt"  # answers that were sampled, or ranked by people
COMPARED = "compared"  # times its ranked answers were in a step of the optimiser
CALIBRATED = "calibrated"  # sets the zero of the reward: 1
EVALUATED = "evaluated"  # answers that were judged, or models that read it
SHOWN = "shown"  # stands among the samples that the report shows: 1

SHAPING = frozenset({TOKENIZER, TRAINED, PROMPT, COMPARED, CALIBRATED})
"""Roles in which a record shapes the model that is made."""
HANDED_DOWN = SHAPING | {SHOWN}
"""Roles in which a record is in what is made from there too; in others it is in the outputs of its stage alone."""

# Of the stages in tasks/steps, which load torch or tokenizers; a test compares them.
N_CALIBRATING = 256
WINDOWS_A_TEXT_BATCH = 4
BEST_OF_N = "best_of_n"
Parameters = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Uses:
    """ids (N, 16), which may repeat, and counts (N,), which then add up. `of_rankings`: the ids are those of people's
    rankings, which are no records of `data/`."""

    role: str
    ids: Ids
    counts: Numbers
    of_rankings: bool = False


def uses_of(stage: str, root: Path, parameters: Parameters) -> list[Uses]:
    """The direct uses of the execution of `stage` that has just left its outputs in `root`.

    parameters: values by key, nested or dotted. Raises `UserError` where an artifact is missing or damaged.
    """
    found = _STAGES[stage](root, parameters) if stage in _STAGES else []
    return [uses for uses in found if len(uses.ids)]


def _value(parameters: Parameters, key: str) -> Any:
    found = parameters[key] if key in parameters else value_at(parameters, key)
    if found is None:
        raise UserError(f"the record index needs the parameter {key} of this execution, which was not given")
    return found


def _columns(root: Path, path: str, *names: str) -> dict[str, Any]:
    """The named columns of a Parquet file below `root`: `record_id` as ids, numbers as arrays, others as lists."""
    import pyarrow as pa

    try:
        table = parquet_files.read(root / path, names)
        columns: dict[str, Any] = {}
        for name in names:
            column = table.column(name)
            if name == "record_id":
                columns[name] = of_column(column)
            else:
                columns[name] = (
                    parquet_files.numbers(column) if pa.types.is_integer(column.type) else column.to_pylist()
                )
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}); make it again with: axon run", exit_code=1) from None
    return columns


def _index(root: Path, name: str, *names: str) -> dict[str, Any]:
    return _columns(root, f"tokens/{name}.index.parquet", "record_id", *names)


def _json(root: Path, path: str) -> Any:
    try:
        return read_json(root / path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); make it again with: axon run", exit_code=1) from None


def _all(role: str, ids: Ids, count: int = 1, *, of_rankings: bool = False) -> Uses:
    """`count` uses of every one of `ids`."""
    return Uses(role=role, ids=ids, counts=np.full(len(ids), count, dtype=np.int64), of_rankings=of_rankings)


def _data(root: Path, parameters: Parameters) -> list[Uses]:
    paths = ("data/text.parquet", "data/demonstrations.parquet")
    return [_all(KEPT, _columns(root, path, "record_id")["record_id"]) for path in paths]


def _tokenizer(root: Path, parameters: Parameters) -> list[Uses]:
    """Of a tokenizer that was kept, these records shaped nothing: ask for the execution that learnt it."""
    is_kept = bool(_json(root, "metrics/tokenizer.json").get("kept"))
    uses = []
    for path in sorted((root / "tokens").glob("*.index.parquet")):
        name = path.name.removesuffix(".index.parquet")
        ids = _index(root, name)["record_id"]
        uses.append(_all(TOKENIZED, ids))
        if name.endswith(f".{TRAIN}") and not is_kept:
            uses.append(_all(TOKENIZER, ids))
        if name == f"text.{TEST}":
            uses.append(_all(EVALUATED, ids))  # what compression alone achieves on it
    return uses


def _pretrain(root: Path, parameters: Parameters) -> list[Uses]:
    section = _value(parameters, "pretrain")
    n_steps, batch_size, seq_len = section["n_steps"], section["batch_size"], section["seq_len"]
    seed = seed_of(_value(parameters, "seed"), "pretrain")
    trained = _of_stream(root, seq_len=seq_len, n_rows=n_steps * batch_size, seed=seed)
    index = _index(root, f"text.{VALIDATION}", "length")
    n_tokens = section["n_validation_batches"] * batch_size * seq_len
    by_id = order(index["record_id"])
    lengths = index["length"][by_id]
    is_taken = np.cumsum(lengths) - lengths < n_tokens
    n_times = n_evaluations(n_steps, section["evaluate_every"])
    return [trained, _all(VALIDATED, index["record_id"][by_id[is_taken]], n_times)]


def _of_stream(root: Path, *, seq_len: int, n_rows: int, seed: int) -> Uses:
    """Training text in the first `n_rows` rows of `seq_len` tokens."""
    index = _index(root, f"text.{TRAIN}", "offset", "length")
    n_tokens = int(index["length"].sum())
    counts = sampling.documents_read(
        index["offset"], index["length"], n_tokens=n_tokens, seq_len=seq_len, n_rows=n_rows, seed=seed
    )
    return Uses(role=TRAINED, ids=index["record_id"], counts=counts)


def _packing(root: Path, split: str, *, seq_len: int, seed: int) -> tuple[Ids, sampling.Packing]:
    index = _index(root, f"demonstrations.{split}", "length")
    packing = sampling.pack(index["record_id"], index["length"], seq_len=seq_len, seed=seed)
    return index["record_id"][packing.items], packing


def _tuned(root: Path, parameters: Parameters, stage: str, dpo: Mapping[str, int] | None = None) -> list[Uses]:
    """Fine-tuning on packed demonstrations; with `dpo`, for as many tokens and about as many steps as those."""
    section = _value(parameters, "sft")
    seed = seed_of(_value(parameters, "seed"), stage)
    batch_size, n_steps = section["batch_size"], section["n_steps"]
    ids, train = _packing(root, TRAIN, seq_len=section["seq_len"], seed=seed)
    if dpo is not None:
        batch_size, n_steps = sampling.budget(train, seed, tokens=dpo["tokens"], n_steps=dpo["n_steps"])
    trained = times_taken(train.n_rows, n_steps * batch_size, seed)
    held_out_ids, held_out = _packing(root, VALIDATION, seq_len=section["seq_len"], seed=seed)
    n_batches = min(section["n_validation_batches"], -(-held_out.n_rows // section["batch_size"]))
    validated = times_taken(held_out.n_rows, n_batches * section["batch_size"], seed)
    n_times = n_evaluations(n_steps, section["evaluate_every"])
    return [
        Uses(role=TRAINED, ids=ids, counts=trained[train.rows]),
        Uses(role=VALIDATED, ids=held_out_ids, counts=validated[held_out.rows] * n_times),
    ]


def _sft(root: Path, parameters: Parameters) -> list[Uses]:
    return _tuned(root, parameters, "sft")


def _sft_continued(root: Path, parameters: Parameters) -> list[Uses]:
    return _tuned(root, parameters, "sft_continued", _json(root, "metrics/dpo_tokens.json"))


def _comparisons(root: Path) -> dict[str, Any]:
    columns = _columns(root, "preferences/comparisons.parquet", "record_id", "split", "ranks", "judge")
    return {**columns, "of_rankings": "human" in columns["judge"]}


def _preferences(root: Path, parameters: Parameters) -> list[Uses]:
    found = _comparisons(root)
    n_answers = np.array([len(ranks) for ranks in found["ranks"]], dtype=np.int64)
    return [Uses(role=PROMPT, ids=found["record_id"], counts=n_answers, of_rankings=found["of_rankings"])]


def _compared(root: Path, parameters: Parameters, stage: str, evaluations_an_epoch: int) -> list[Uses]:
    """The comparisons with a winner: every epoch of `Buckets` takes each of them once."""
    section, found = _value(parameters, stage), _comparisons(root)
    n_epochs, batch_size = section["n_epochs"], section["batch_size"]
    has_pair = np.array([len(set(ranks)) > 1 for ranks in found["ranks"]])
    train = has_pair & (np.array(found["split"]) == TRAIN)
    n_batches = -(-int(train.sum()) // batch_size)
    n_times = n_evaluations(n_epochs * n_batches, max(1, n_batches // evaluations_an_epoch))
    held_out = has_pair & (np.array(found["split"]) == VALIDATION)
    of_rankings = found["of_rankings"]
    return [
        _all(COMPARED, found["record_id"][train], n_epochs, of_rankings=of_rankings),
        _all(VALIDATED, found["record_id"][held_out], n_times, of_rankings=of_rankings),
    ]


def _reward_model(root: Path, parameters: Parameters) -> list[Uses]:
    index = _index(root, f"demonstrations.{TRAIN}", "length")
    seed, digits = _value(parameters, "seed"), [row.tobytes().hex() for row in index["record_id"]]
    keys = [seed_of(seed, "demonstrations", text) for text in digits]
    first = np.array(sorted(range(len(keys)), key=lambda item: keys[item])[:N_CALIBRATING], dtype=np.int64)
    longest = padded_positions(_json(root, "models/reward_model/config.json"))
    fitting = first[index["length"][first] <= longest]
    return [
        *_compared(root, parameters, "reward_model", evaluations_an_epoch=1),
        _all(CALIBRATED, index["record_id"][fitting]),
    ]


def _dpo(root: Path, parameters: Parameters) -> list[Uses]:
    return _compared(root, parameters, "dpo", evaluations_an_epoch=4)


def _ppo(root: Path, parameters: Parameters) -> list[Uses]:
    """Prompts by the answers sampled to them, and text of PPO-ptx; each answer is learnt from in `ppo.epochs`."""
    section, seed = _value(parameters, "ppo"), _value(parameters, "seed")
    index = _index(root, "demonstrations.preference", "prompt_length", "task")
    n_answers = section["n_iterations"] * section["prompts_per_iteration"]
    fitting = np.flatnonzero(index["prompt_length"] <= _value(parameters, "preferences.prompt_tokens"))
    digits = [index["record_id"][row].tobytes().hex() for row in fitting]
    chosen = fitting[sampling.deal(digits, [index["task"][row] for row in fitting], n_answers, seed)]
    counts = times_taken(len(chosen), n_answers, seed_of(seed, "ppo"))
    uses = [Uses(role=PROMPT, ids=index["record_id"][chosen], counts=counts)]
    if section["pretraining_coef"]:
        n_minibatches = section["prompts_per_iteration"] // section["minibatch_size"]
        n_updates = section["n_iterations"] * section["epochs"] * n_minibatches
        n_rows = n_updates * max(1, section["minibatch_size"] // 8)
        seq_len = _value(parameters, "pretrain.seq_len")
        uses.append(_of_stream(root, seq_len=seq_len, n_rows=n_rows, seed=seed_of(seed, "ppo", "pretraining")))
    return uses


def _evaluate(root: Path, parameters: Parameters) -> list[Uses]:
    """Prompts by the answers judged, text by the models that read it, and the samples, which the report shows."""
    answers = _columns(root, "evaluation/answers.parquet", "record_id", "model")
    n_readers = len(set(answers["model"]) - {BEST_OF_N})
    index = _index(root, f"text.{TEST}", "length")
    by_id = order(index["record_id"])
    ends = np.cumsum(index["length"][by_id])
    enough = WINDOWS_A_TEXT_BATCH * _value(parameters, "pretrain.seq_len")
    n_taken = 0
    for _ in range(_value(parameters, "evaluate.n_text_batches")):
        read = ends[n_taken - 1] if n_taken else 0
        n_taken = min(len(ends), int(np.searchsorted(ends, read + enough)) + 1)
    shown = [bytes.fromhex(sample["record_id"]) for sample in _json(root, "evaluation/samples.json")]
    return [
        _all(EVALUATED, answers["record_id"]),
        _all(EVALUATED, index["record_id"][by_id[:n_taken]], n_readers),
        _all(SHOWN, of_bytes(shown)),
    ]


_STAGES: dict[str, Callable[[Path, Parameters], list[Uses]]] = {
    "data": _data,
    "tokenizer": _tokenizer,
    "pretrain": _pretrain,
    "sft": _sft,
    "preferences": _preferences,
    "reward_model": _reward_model,
    "dpo": _dpo,
    "sft_continued": _sft_continued,
    "ppo": _ppo,
    "evaluate": _evaluate,
}
INDEXED_STAGES = frozenset(_STAGES)
"""Stages that touch records directly; no other has an entry in the index."""
