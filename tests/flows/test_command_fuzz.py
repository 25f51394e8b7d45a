"""Mutated inputs through the command line itself: one clear message and its exit code, nothing touched.

A few of each kind in every run; `make test-slow` tries over 1,000. tests/tasks/test_fuzz.py does the same to functions.
"""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import strategies as st

from tests.flows.fuzzing import WORDS, Commands, few_and_many, for_many
from tests.tasks.test_fuzz import OWN, SCALARS, keys, mutated

pytestmark = pytest.mark.engines


@few_and_many(20, 150)
def test_params_yaml(axon: Commands, n: int):
    content = (axon.root / "params.yaml").read_bytes()
    for_many(n, mutated(content), lambda mutant: refused_or_planned(axon, {"params.yaml": mutant}, "params.yaml"))


def refused_or_planned(axon: Commands, files: dict[str, bytes], name: str, *argv: str) -> None:
    """A dry run either says what would run, or refuses; then so does the run itself, in the same words."""
    dry = axon("run", "--dry-run", *argv, files=files)
    if dry.code == 0:
        dry.is_clean(0)
        assert "nothing was run" in dry.stdout
        assert dry.changed == ()
        return
    dry.refuses(name)
    real = axon("run", *argv, files=files)
    real.refuses(name)
    assert real.stderr == dry.stderr


@few_and_many(15, 150)
def test_values_of_params_yaml(axon: Commands, n: int):
    content = (axon.root / "params.yaml").read_text()

    def check(case: tuple[str, object]) -> None:
        key, value = case
        tree = yaml.safe_load(content)
        *path, last = key.split(".")
        section = tree
        for part in path:
            section = section[part]
        section[last] = value
        refused_or_planned(axon, {"params.yaml": yaml.safe_dump(tree).encode()}, "params.yaml")

    for_many(n, st.tuples(st.sampled_from(keys(yaml.safe_load(content))), SCALARS), check)


@few_and_many(15, 150)
def test_assignments(axon: Commands, n: int):
    known = keys(yaml.safe_load((axon.root / "params.yaml").read_text()))
    pairs = st.tuples(st.sampled_from(known), WORDS).map("=".join)

    def check(assignment: str) -> None:
        refused_or_planned(axon, {}, "--set", f"--set={assignment}")

    for_many(n, st.one_of(WORDS, pairs), check)


@few_and_many(12, 100)
def test_dvc_yaml(axon: Commands, n: int):
    content = (axon.root / "dvc.yaml").read_bytes()
    for_many(n, mutated(content), lambda mutant: refused_or_planned(axon, {"dvc.yaml": mutant}, "dvc.yaml"))


@few_and_many(12, 100)
def test_dvc_lock(axon: Commands, n: int):
    content = (axon.root / "dvc.lock").read_bytes()
    for_many(n, mutated(content), lambda mutant: refused_or_planned(axon, {"dvc.lock": mutant}, "dvc.lock"))


@few_and_many(4, 60)
def test_files_of_one_s_own(axon: Commands, n: int):
    named = "data.files=[{path: sources/own.jsonl, license: MIT}]"
    check = lambda mutant: refused_or_planned(axon, {"sources/own.jsonl": mutant}, "sources/own.jsonl", "--set", named)  # noqa: E731
    for_many(n, mutated(OWN), check)


@few_and_many(4, 50)
def test_constraints(axon: Commands, n: int):
    content = (axon.root / "constraints.txt").read_bytes()

    def check(mutant: bytes) -> None:
        told = axon("doctor", files={"constraints.txt": mutant})
        told.is_clean(0, 1)
        assert "constraints.txt" in told.stdout
        assert told.changed == ()
        planned = axon("run", "--dry-run", files={"constraints.txt": mutant})
        if planned.code:
            planned.refuses("constraints.txt")

    for_many(n, mutated(content), check)


MODEL_FILES = ("config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json", "generation_config.json")


@few_and_many(15, 120)
def test_a_model_s_directory(axon: Commands, n: int):
    def check(case: tuple[str, bytes | None]) -> None:
        name, mutant = case
        command, files = ["generate", "1 + 1 = ?", "--model=sft", "--max-new-tokens=2"], {f"models/sft/{name}": mutant}
        if mutant != contents[name]:
            axon(*command, files=files).refuses("models/sft", "dvc.lock", codes=(1,))
        unknown = axon(*command, files=files | {"dvc.lock": None})  # then what can be loaded is
        unknown.is_clean(0, 1, 2)
        assert unknown.changed == ()
        if unknown.code:
            unknown.refuses("models/sft", codes=(1, 2))

    there = [name for name in MODEL_FILES if (axon.root / "models" / "sft" / name).is_file()]
    contents = {name: (axon.root / "models" / "sft" / name).read_bytes() for name in there}
    cases = st.sampled_from(there).flatmap(
        lambda name: st.tuples(st.just(name), st.one_of(st.none(), mutated(contents[name])))
    )
    for_many(n, cases, check)


@few_and_many(6, 50)
def test_policy(axon: Commands, n: int):
    def check(mutant: bytes) -> None:
        told = axon("audit", "models/sft", "--policy=policy.yaml", files={"policy.yaml": mutant})
        if told.code == 2:
            told.refuses("policy.yaml")
        told.is_clean(0, 1, 2)

    for_many(n, mutated((axon.root / "policy.yaml").read_bytes()), check)


@few_and_many(4, 60)
def test_statements(axon: Commands, n: int):
    folder = axon.root / "lineage" / "statements"
    names = sorted(path.name for path in folder.iterdir())
    contents = {name: (folder / name).read_bytes() for name in names}

    def check(case: tuple[str, bytes | None]) -> None:
        name, mutant = case
        if mutant == contents[name]:
            return
        files = {f"lineage/statements/{name}": mutant}
        audited = axon("audit", files=files)
        audited.is_clean(1)
        assert name[:6] in audited.stdout, "the finding names the statement"
        for command in (["lineage", "models/ppo"], ["history"], ["report", "--live"]):
            axon(*command, files=files).is_clean(0, 1, 2)

    cases = st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), st.one_of(st.none(), mutated(contents[name])))
    )
    for_many(n, cases, check)


STATE = {
    ".axon/schedule/schedule.json": (
        json.dumps({"cron": None, "every_s": 3600.0, "on_data": False, "limit_s": 86400.0, "paused": False}).encode(),
        [["schedule"], ["schedule", "--pause"]],
    ),
    ".axon/schedule/requests/a.json": (b'{"why": "asked for", "time": 1700000000.5}', [["schedule"]]),
    ".axon/schedule/done/a.json": (
        b'{"occasion": "schedule", "began": 1.0, "ended": 2.0, "outcome": "kept: x"}',
        [["schedule"]],
    ),
    ".axon/promotion/pending.json": (b'{"aliases": {"champion": "1"}}', [["run", "--dry-run"], ["run"], ["promote"]]),
    ".axon/registered.json": (None, [["run", "--dry-run"]]),
    ".axon/lineage-head.json": (None, [["keys"], ["report", "--live"], ["audit"]]),
    ".axon/keys/signing.pem": (None, [["keys"], ["audit"]]),
}


@few_and_many(8, 120)
def test_files_of_the_state(axon: Commands, n: int):
    contents = {name: made or (axon.root / name).read_bytes() for name, (made, _) in STATE.items()}
    schedule = ".axon/schedule/schedule.json"

    def check(case: tuple[str, bytes, int]) -> None:
        name, mutant, which = case
        argv = STATE[name][1][which % len(STATE[name][1])]
        files = {name: mutant} if name == schedule else {schedule: contents[schedule], name: mutant}
        told = axon(*argv, files=files)
        told.is_clean(0, 1, 2, 3)
        if told.code == 2 or (told.code == 1 and argv != ["audit"]):
            assert name.rpartition("/")[2] in told.stderr, told

    cases = st.sampled_from(sorted(STATE)).flatmap(
        lambda name: st.tuples(st.just(name), mutated(contents[name]), st.integers(0, 2))
    )
    for_many(n, cases, check)
