"""Mutated arguments and environment values through the command line itself; see tests/flows/test_command_fuzz.py."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import strategies as st

from tests.flows.fuzzing import WORDS, Commands, as_argument, few_and_many, for_many
from tests.tasks.test_fuzz import mutated

pytestmark = pytest.mark.engines

# The argument comes behind these words and before those.
ARGUMENTS: dict[str, list[str]] = {
    "": [],
    "audit": [],
    "audit --format": [],
    "audit --head": [],
    "audit --key": [],
    "audit --offline": [],
    "audit --policy": [],
    "audit --reproduce --tolerance": ["no-stage"],
    "forget --record": [],
    "forget --where": [],
    "generate --model=sft --max-new-tokens=2": [],
    "generate x --model": [],
    "generate x --model=sft --max-new-tokens": [],
    "generate x --model=sft --max-new-tokens=2 --seed": ["--temperature=1"],
    "generate x --model=sft --max-new-tokens=2 --temperature": [],
    "generate x --model=sft --max-new-tokens=2 --temperature=1 --top-p": [],
    "generate x --model=sft --max-new-tokens=2 --temperature=1 --top-k": [],
    "generate x --model=sft --max-new-tokens=2 --temperature=1 --min-p": [],
    "generate x --model=sft --max-new-tokens=2 --repetition-penalty": [],
    "generate x --model=sft --max-new-tokens=2 --stop": [],
    "generate x --model=sft --max-new-tokens=2 --beams": [],
    "generate x --model=sft --max-new-tokens=2 --precision": [],
    "history --format": [],
    "lineage": [],
    "lineage diff run": [],
    "lineage model": ["--records"],
    "lineage record": [],
    "lineage show": ["--format=json"],
    "promote": [],
    "promote --force --reason=why": [],
    "restore": [],
    "rollback --reason=why --to": [],
    "run --dry-run": [],
    "schedule --cron": [],
    "schedule --cron='0 3 * * *' --timezone": [],
    "schedule --every": [],
    "schedule --on-data --limit": [],
}
# What may be right, so that mutations of it reach beyond the first check.
SEEDS = ["run~1", "1", "models/ppo", "sft~1", "axon-chat@champion", "0 3 * * *", "6h", "maths", "0.5", "text = 'x'"]


@few_and_many(2, 10)
@pytest.mark.parametrize("before", sorted(ARGUMENTS))
def test_arguments(axon: Commands, before: str, n: int):
    def check(word: str) -> None:
        told = axon(*shlex.split(before), word, *ARGUMENTS[before])
        told.is_clean(0, 1, 2, 3)
        if told.code == 2:
            told.refuses()
        if told.code == 1 and "audit" not in before:
            assert told.stderr.strip()

    mutants = st.sampled_from(SEEDS).flatmap(lambda seed: mutated(seed.encode())).map(as_argument)
    for_many(n, st.one_of(WORDS, mutants), check, name=before)


ENVIRONMENT = [
    ("AXON_LINEAGE", "off", [["run"], ["promote", "1"]]),
    ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9", [["lineage", "axon-chat@champion"], ["generate", "x"], ["audit"]]),
    ("PREFECT_API_URL", "http://127.0.0.1:9/api", [["run", "--dry-run"]]),
    ("RAY_ADDRESS", "127.0.0.1:9", [["run", "--dry-run"]]),
]


@few_and_many(8, 80)
def test_values_of_the_environment(axon: Commands, n: int):
    def check(case: tuple[tuple[str, str, list[list[str]]], bytes, int]) -> None:
        (name, allowed, commands), mutant, which = case
        if name == "AXON_LINEAGE" and as_argument(mutant).lower() in ("on", allowed):
            return  # no mistake: it would run
        variables = {
            name: as_argument(mutant),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
        }
        told = axon(*commands[which % len(commands)], variables=variables)
        told.is_clean(0, 1, 2, 3)
        assert told.changed == ()
        if told.code == 2:
            told.refuses(name)

    def mutations(one: tuple[str, str, list[list[str]]]) -> st.SearchStrategy:
        values = st.one_of(mutated(one[1].encode()), WORDS.map(str.encode))
        return st.tuples(st.just(one), values, st.integers(0, 2))

    for_many(n, st.sampled_from(ENVIRONMENT).flatmap(mutations), check)
