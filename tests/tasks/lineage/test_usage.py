"""What the index says of a stage is what the stage did: every stage runs, and what it takes is counted as it does."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.alignment import prompts
from tasks.data import records
from tasks.errors import UserError
from tasks.lineage.records import sampling, usage
from tasks.runtime.stages import read_stages, value_at
from tasks.steps import evaluate, reward_model
from tasks.training.batches import stream_batch
from tasks.training.packing import PackedData
from tasks.training.sampling import seed_of
from tasks.training.tokens import text_documents
from tests.helpers import REPOSITORY, make_context, make_tree, serial_fan_out
from tests.tasks.tiny_root import OVERRIDES, make_root

STAGES = ("pretrain", "sft", "preferences", "reward_model", "dpo", "sft_continued", "ppo", "evaluate")
SETTINGS = OVERRIDES | {
    "sft.seq_len": 24,
    "sft.n_steps": 12,
    "ppo.n_iterations": 11,  # 44 answers to 40 prompts
    "ppo.pretraining_coef": 0.1,
    "reward_model.n_epochs": 2,
    "reward_model.batch_size": 1,
    "dpo.batch_size": 1,
    "evaluate.n_maths": 5,
    "evaluate.batch_size": 4,
    "evaluate.n_samples": 2,
    "evaluate.n_text_batches": 1,
    "evaluate.n_bootstrap": 100,
    "pretrain.seq_len": 16,
    "pretrain.n_steps": 7,
    "pretrain.n_validation_batches": 1,
}


class Recorder:
    """Counts what passes through the functions of the stages, by (stage, role) and record."""

    def __init__(self, root: Path) -> None:
        self.counts: dict[tuple[str, str], Counter[bytes]] = {}
        self.stage, self.mode = "", ""
        self.packed: dict[int, tuple[Any, list[bytes]]] = {}  # batches of packed rows, with what is in them
        self.documents = {split: _column(root, f"text.{split}", "record_id") for split in ("train", "validation")}
        self.spans = {
            start: record_id
            for start, record_id in zip(
                _column(root, "text.test", "offset"), _column(root, "text.test", "record_id"), strict=True
            )
        }
        self.by_prompt: dict[tuple[int, ...], bytes] = {}
        for split in ("train", "preference", "validation"):
            tokens = np.load(root / "tokens" / f"demonstrations.{split}.npy").tolist()
            names = ("record_id", "offset", "prompt_length")
            columns = [_column(root, f"demonstrations.{split}", name) for name in names]
            for record_id, offset, length in zip(*columns, strict=True):
                self.by_prompt[tuple(tokens[offset : offset + length])] = bytes(record_id)
        assert len(self.by_prompt) == 112, "prompts tell the records apart"

    def add(self, role: str, found: Iterable[bytes]) -> None:
        self.counts.setdefault((self.stage, role), Counter()).update(bytes(record_id) for record_id in found)

    def fit(self, fit: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(model, recipe, *, batch, loss, evaluate, context):
            return fit(
                model,
                recipe,
                batch=lambda k: self.during("trained", batch, k),
                loss=loss,
                evaluate=lambda: self.during("validated", evaluate),
                context=context,
            )

        return wrapped

    def during(self, mode: str, call: Callable[..., Any], *args: Any) -> Any:
        self.mode = mode
        try:
            return call(*args)
        finally:
            self.mode = ""

    def stream(self, found: Any) -> Any:
        for tokens, targets in zip(found.tensors["tokens"].tolist(), found.tensors["targets"].tolist(), strict=True):
            self.add("trained", [self.documents["train"][number] for number in {*tokens, *targets}])
        return found

    def rows(self, data: PackedData, k: int, found: Any) -> Any:
        ids = [example.record_id for row in data.rows_of(k) for example in data.rows[row]]
        self.packed[id(found)] = (found, ids)
        if self.mode == "trained":
            self.add("trained", ids)
        return found

    def comparisons(self, ids: Iterable[bytes]) -> None:
        if self.mode:
            self.add("compared" if self.mode == "trained" else "validated", ids)


def _column(root: Path, name: str, column: str) -> list[Any]:
    return records.read(root / "tokens" / f"{name}.index.parquet")[column]


def _number_documents(root: Path, split: str) -> None:
    """Make every token of a document its number, so that a row of tokens says which documents it is of."""
    lengths = _column(root, f"text.{split}", "length")
    np.save(root / "tokens" / f"text.{split}.npy", np.repeat(np.arange(len(lengths)), lengths).astype(np.uint16))


def _easy_judge(task, prompt, text, target, *, ended):
    return SimpleNamespace(score=float(len(text) % 2 == 0) + ended, correct=ended, well_formed=True)


def _watch(patch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    for stage in ("pretrain", "sft", "reward_model", "dpo"):
        module = importlib.import_module(f"tasks.steps.{stage}")
        patch.setattr(module, "fit", recorder.fit(module.fit))
    for stage in ("pretrain", "ppo"):
        patch.setattr(f"tasks.steps.{stage}.stream_batch", lambda *a, **k: recorder.stream(stream_batch(*a, **k)))

    def before(target: str, note: Callable[..., None]) -> None:
        module, name = target.rsplit(".", 1)
        real = getattr(importlib.import_module(module), name)

        def wrapped(*args, **kwargs):
            note(*args, **kwargs)
            return real(*args, **kwargs)

        patch.setattr(target, wrapped)

    def validation_text(model, held_out, *args, **kwargs):
        recorder.add("validated", [recorder.documents["validation"][n] for n in set(held_out.tolist())])

    def scored(model, sequences, **kwargs):
        if recorder.stage == "reward_model":
            recorder.add("calibrated", [recorder.by_prompt[_prompt(recorder, sequence)] for sequence in sequences])

    before("tasks.steps.pretrain.bits_per_byte", validation_text)
    before(
        "tasks.steps.sft.packed_validation",
        lambda model, batches: recorder.add("validated", [i for b in batches for i in recorder.packed[id(b)][1]]),
    )
    before("tasks.steps.reward_model.ranked_batch", lambda c, device: recorder.comparisons(x.record_id for x in c))
    before(
        "tasks.steps.dpo.pair_batch",
        lambda pairs, device: recorder.comparisons(recorder.by_prompt[tuple(p.prompt)] for p in pairs),
    )
    before("tasks.alignment.rewards.score_sequences", scored)
    before(
        "tasks.steps.preferences.shard_item",
        lambda d, h, asked, **k: recorder.add("prompt", [recorder.by_prompt[tuple(p)] for p in asked]),
    )
    before(
        "tasks.steps.ppo.collect",
        lambda *a, **k: recorder.add("prompt", [recorder.by_prompt[tuple(p)] for p in a[4]]),
    )
    batch = PackedData.batch
    patch.setattr(PackedData, "batch", lambda data, k, device: recorder.rows(data, k, batch(data, k, device)))
    patch.setattr("tasks.steps.preferences.judge", _easy_judge)


def _prompt(recorder: Recorder, sequence: list[int]) -> tuple[int, ...]:
    return next(tuple(sequence[:n]) for n in range(len(sequence)) if tuple(sequence[:n]) in recorder.by_prompt)


def _write_data(root: Path) -> None:
    """data/ with all columns for the records that the tokens are of."""
    table = records.read(root / "data" / "demonstrations.parquet")
    blank = [""] * len(table["record_id"])
    whole = {name: table.get(name, blank) for name in records.DEMONSTRATION_COLUMNS} | {"answer": table["target"]}
    records.write(root / "data" / "demonstrations.parquet", whole)
    texts = [(i, split) for split in records.TEXT_SPLITS for i in _column(root, f"text.{split}", "record_id")]
    columns = {name: [""] * len(texts) for name in records.TEXT_COLUMNS}
    columns |= {"record_id": [i for i, _ in texts], "split": [split for _, split in texts]}
    records.write(root / "data" / "text.parquet", columns)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Recorder]:
    root = make_root(tmp_path_factory.mktemp("run"))
    _write_data(root)
    for split in ("train", "validation"):
        _number_documents(root, split)
    recorder = Recorder(root)

    def fan_out(name, function, items):
        for item in items if name == "evaluate" else ():
            found = [recorder.spans[start] for start, _ in item.get("documents", ())]
            found += [bytes.fromhex(prompt["record_id"]) for prompt in item.get("prompts", ())]
            recorder.add("evaluated", found)
        return serial_fan_out(name, function, items)

    with pytest.MonkeyPatch.context() as patch:
        _watch(patch, recorder)
        for stage in STAGES:
            recorder.stage = stage
            context = make_context(root, SETTINGS, fan_out=fan_out, checkpoints=root / ".axon" / stage)
            importlib.import_module(f"tasks.steps.{stage}").run(context)
    return root, recorder


def _added_up(found: list[usage.Uses]) -> dict[str, Counter[bytes]]:
    counts: dict[str, Counter[bytes]] = {}
    for uses in found:
        assert uses.ids.shape == (len(uses.counts), 16)
        for record_id, count in zip(uses.ids, uses.counts.tolist(), strict=True):
            counts.setdefault(uses.role, Counter())[record_id.tobytes()] += count
    return {role: +counter for role, counter in counts.items()}  # + drops what was taken 0 times


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("keys", ["all", "of the stage"])
def test_uses_are_what_the_stage_took(run, stage, keys):
    root, recorder = run
    parameters = make_tree(SETTINGS)
    if keys == "of the stage":
        wanted = {*read_stages(REPOSITORY)[stage].params, *(["pretrain.seq_len"] if stage == "ppo" else [])}
        parameters = {key: value_at(parameters, key) for key in wanted}
    found = _added_up(usage.uses_of(stage, root, parameters))
    truth = {role: counter for (of, role), counter in recorder.counts.items() if of == stage}
    shown = found.pop("shown", None)
    assert found == truth
    if stage == "evaluate":
        samples = json.loads((root / "evaluation" / "samples.json").read_text())
        assert shown == Counter(bytes.fromhex(sample["record_id"]) for sample in samples)


def test_the_run_has_what_could_be_miscounted(run):
    """Records that came often, once and never, in every kind of sampling; else the test above shows little."""
    counts = run[1].counts
    assert {1, 2} < set(counts["pretrain", "trained"].values())
    assert 0 < len(counts["pretrain", "validated"]) < 6
    assert set(counts["sft", "trained"].values()) == {1, 2}
    assert len(set(counts["sft", "validated"].values())) > 1, "a validation batch spans two epochs"
    assert 0 < len(counts["sft_continued", "trained"]) < 60
    assert set(counts["reward_model", "compared"].values()) == {2}
    assert 0 < len(counts["reward_model", "compared"]) < 12, "some comparisons have no winner"
    assert set(counts["ppo", "prompt"].values()) == {1, 2}
    assert 0 < len(counts["ppo", "trained"]) <= 40
    assert set(counts["evaluate", "evaluated"].values()) == {5, 6}


def test_data_and_tokenizer_hold_what_their_tables_hold(run):
    root, _ = run
    kept = _added_up(usage.uses_of("data", root, {}))["kept"]
    assert len(kept) == 40 + 6 + 6 + 60 + 40 + 12 + 12
    found = _added_up(usage.uses_of("tokenizer", root, {}))
    assert found["tokenized"] == kept
    train = {*_column(root, "text.train", "record_id"), *_column(root, "demonstrations.train", "record_id")}
    assert set(found["tokenizer"]) == train
    assert set(found["evaluated"]) == set(_column(root, "text.test", "record_id"))


def test_a_kept_tokenizer_learnt_nothing_from_this_data(run, tmp_path):
    shutil.copytree(run[0] / "tokens", tmp_path / "tokens")
    shutil.copytree(run[0] / "metrics", tmp_path / "metrics")
    path = tmp_path / "metrics" / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kept": True}))
    assert usage.TOKENIZER not in _added_up(usage.uses_of("tokenizer", tmp_path, {}))


def test_other_stages_use_no_records(run):
    assert usage.uses_of("report", run[0], {}) == []


def test_a_missing_parameter_and_a_missing_artifact_are_named(run, tmp_path):
    with pytest.raises(UserError, match=r"needs the parameter pretrain "):
        usage.uses_of("pretrain", run[0], {"seed": 1})
    with pytest.raises(UserError, match=r"preferences/comparisons\.parquet cannot be read"):
        usage.uses_of("dpo", tmp_path, make_tree(SETTINGS))
    (tmp_path / "preferences").mkdir()
    (tmp_path / "preferences" / "comparisons.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"preferences/comparisons\.parquet cannot be read"):
        usage.uses_of("dpo", tmp_path, make_tree(SETTINGS))


def test_neither_torch_nor_pandas_is_loaded(run):
    code = (
        "import json, sys; from pathlib import Path\n"
        "import tasks.lineage.index; from tasks.lineage.records import usage\n"
        f"for stage in {STAGES!r}: assert usage.uses_of(stage, Path(sys.argv[1]), json.loads(sys.argv[2]))\n"
        "print(sorted({'torch', 'pandas', 'tokenizers', 'datasets', 'prefect', 'ray'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(run[0]), json.dumps(make_tree(SETTINGS))]
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_constants_are_those_of_the_stages():
    assert usage.N_CALIBRATING == reward_model._N_DEMONSTRATIONS
    assert usage.WINDOWS_A_TEXT_BATCH == evaluate.WINDOWS_PER_TEXT_BATCH
    assert usage.BEST_OF_N == evaluate.BEST_OF_N
    assert sampling.PROMPTS_A_ROUND == prompts._TURNS


def test_calibration_takes_the_first_by_hash_that_fit(tmp_path):
    ids = [seed_of(i).to_bytes(8, "big") * 2 for i in range(400)]
    lengths = [10 + i % 3 for i in range(400)]
    index = {"record_id": ids, "length": lengths, "offset": [0] * 400, "prompt_length": [1] * 400, "task": ["a"] * 400}
    records.write(tmp_path / "tokens" / "demonstrations.train.index.parquet", index)
    (tmp_path / "models" / "reward_model").mkdir(parents=True)
    (tmp_path / "models" / "reward_model" / "config.json").write_text('{"max_position_embeddings": 11}')
    comparisons = {"record_id": ids[:1], "split": ["train"], "ranks": [[1, 2]], "judge": ["programmatic"]}
    records.write(tmp_path / "preferences" / "comparisons.parquet", comparisons)
    found = _added_up(usage.uses_of("reward_model", tmp_path, make_tree(SETTINGS)))["calibrated"]
    both = sorted(zip(ids, lengths, strict=True), key=lambda pair: seed_of(7, "demonstrations", pair[0]))
    assert set(found) == {record_id for record_id, length in both[: usage.N_CALIBRATING] if length <= 11}


@settings(deadline=None)
@given(lengths=st.lists(st.sampled_from([1, 8, 16, 24]), min_size=1, max_size=12), n_batches=st.integers(1, 6))
def test_validation_text_is_taken_up_to_the_same_document(lengths, n_batches):
    with tempfile.TemporaryDirectory() as folder:
        ids = [seed_of(i).to_bytes(8, "big") * 2 for i in range(len(lengths))]
        offsets = (np.cumsum(lengths) - lengths).tolist()
        index = {"record_id": ids, "offset": offsets, "length": lengths, "n_bytes": [1] * len(ids)}
        path = Path(folder) / "tokens" / "text.validation.npy"
        records.write(path.with_name("text.validation.index.parquet"), index)
        records.write(path.with_name("text.train.index.parquet"), index | {"length": [99] * len(ids)})
        np.save(path, np.repeat(np.arange(len(ids)), lengths).astype(np.uint16))
        tokens, _ = text_documents(Path(folder), "validation", n_tokens=n_batches * 8)
        section = {"n_steps": 1, "batch_size": 1, "seq_len": 8, "evaluate_every": 1, "n_validation_batches": n_batches}
        found = _added_up(usage.uses_of("pretrain", Path(folder), {"seed": 1, "pretrain": section}))
    assert set(found["validated"]) == {ids[number] for number in set(tokens.tolist())}
