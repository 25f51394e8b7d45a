"""Normalisation, filters, duplicates and splits on texts small enough to judge by eye."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data import near_duplicates, preparation
from tasks.data.cleaning import Limits, normalise, why_rejected
from tasks.data.records import TextRecord, read, record_id, write
from tasks.data.splits import assign, split_of_demonstration
from tasks.parameter_sections import NearDuplicates, Splits
from tests.helpers import REPOSITORY, serial_fan_out

LIMITS = Limits(min_chars=10, max_chars=200, min_letter_fraction=0.5)
SHARES = Splits(preference=0.2, validation=0.1, test=0.1)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("e\u0301te\u0301", "été"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("\ufeffa\x00b\u200bc\x1b", "abc"),
        ("a  \n\n\n\n b\t\n", "a\n\n b"),
        ("x\ud800y", "x\ufffd\ufffd\ufffdy"),
        ("  keep\n    indent", "keep\n    indent"),
    ],
)
def test_normalise(text: str, clean: str) -> None:
    assert normalise(text) == clean


@given(st.text())
def test_normalise_is_idempotent_and_utf8(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    once.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("short", "too_short"),
        ("long " * 50, "too_long"),
        ("1 + 2 = 3; 4 * 5 = 20", "few_letters"),
        ("\n".join(["same line here"] * 8), "repetitive"),
        ("A sentence like any other.", None),
    ],
)
def test_filters_say_why(text: str, reason: str | None) -> None:
    why = why_rejected(text, LIMITS)
    assert (why and why[0]) == reason


def _record(text: str, group: str = "g") -> TextRecord:
    return TextRecord(source="s", license="MIT", group=group, text=text)


WORDS = [f"word{i}" for i in range(60)]
ONE = " ".join(WORDS)
NEAR = " ".join([*WORDS[:-1], "other"])  # 55 of 57 runs of five words are shared: Jaccard 55/57
FAR = " ".join(reversed(WORDS))


def test_shingles_of_equal_runs_agree_exactly() -> None:
    one, near = (set(near_duplicates.shingle_hashes(t).tolist()) for t in (ONE, NEAR))
    assert (len(one), len(near), len(one & near)) == (56, 56, 55)
    assert not one & set(near_duplicates.shingle_hashes(FAR).tolist())


def test_minhash_estimates_jaccard() -> None:
    generator = np.random.default_rng(0)
    for share in (0.3, 0.7):
        cut = int(400 * share)
        words = [f"w{i}" for i in generator.integers(0, 10**6, 400)]
        texts = " ".join(words), " ".join(words[:cut] + [f"v{i}" for i in range(400 - cut)])
        sets = [set(near_duplicates.shingle_hashes(t).tolist()) for t in texts]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        signatures = [near_duplicates.signature(t, 256) for t in texts]
        assert np.mean(signatures[0] == signatures[1]) == pytest.approx(exact, abs=0.12)


def test_duplicates_leave_one_of_a_cluster_and_are_kept_as_rejects() -> None:
    rejects = preparation.Rejects()
    records = [_record(t) for t in (FAR, ONE, NEAR, ONE)]
    exact = preparation.drop_exact(records, rejects)
    like = NearDuplicates(threshold=0.8, permutations=64)
    kept = preparation.drop_near(exact, "x", like, serial_fan_out, rejects)
    assert [r.text for r in kept] == [FAR, ONE]
    assert [(r.reason, r.text) for r in rejects.texts] == [("exact_duplicate", ONE), ("near_duplicate", NEAR)]


def test_clusters_are_transitive() -> None:
    # a~b and b~c are alike, a and c are less so; all three are one cluster all the same.
    a = np.arange(64, dtype=np.uint64)
    b, c = a.copy(), a.copy()
    b[:10] += np.uint64(1000)
    c[:10] += np.uint64(1000)
    c[54:] += np.uint64(1000)
    assert np.mean(a == c) < 0.8 <= np.mean(a == b)
    assert near_duplicates.clusters([a, c, b], 0.8) == [0, 0, 0]


def test_signatures_are_the_same_in_another_process() -> None:
    code = f"from tasks.data.near_duplicates import sign; print(sign({{'texts': [{ONE!r}], 'permutations': 64}}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == str(near_duplicates.sign({"texts": [ONE], "permutations": 64}))


def test_a_group_keeps_its_split_when_others_come() -> None:
    few, many = assign((f"g{i}" for i in range(500)), SHARES), assign((f"g{i}" for i in range(1000)), SHARES)
    assert few.items() <= many.items()
    shares = [sum(s == name for s in many.values()) / 1000 for name in ("test", "validation")]
    assert shares == pytest.approx([0.1, 0.1], abs=0.03)


@pytest.mark.parametrize("n", [3, 4, 5])
def test_no_split_is_empty_for_few_groups(n: int) -> None:
    for start in range(20):
        found = set(assign((f"{start}-{i}" for i in range(n)), SHARES).values())
        assert found == {"train", "validation", "test"}


def test_preference_is_a_share_of_the_whole_and_of_training_groups_only() -> None:
    splits = [split_of_demonstration(f"s{i}", "train", SHARES) for i in range(4000)]
    assert splits.count("preference") / 4000 == pytest.approx(0.2 / 0.8, abs=0.03)
    assert split_of_demonstration("s1", "test", SHARES) == "test"


def test_parquet_is_deterministic_and_comes_back(tmp_path) -> None:
    columns = {"record_id": [record_id("s", "x"), record_id("s", "y")], "text": ["x", "é"], "length": [1, 2]}
    for name in ("one.parquet", "two.parquet"):
        write(tmp_path / name, columns)
    assert read(tmp_path / "one.parquet") == columns
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.parquet", "two.parquet"]
    assert record_id("a", "bc") != record_id("ab", "c")
