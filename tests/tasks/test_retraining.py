"""What is new in data, and whether that is enough: by hand arithmetic and on small tables."""

from __future__ import annotations

import math

import pytest
import yaml

from tasks.data import records
from tasks.data.records import DEMONSTRATION_COLUMNS, TEXT_COLUMNS, Demonstration, TextRecord
from tasks.files import read_json
from tasks.retraining import baseline
from tasks.retraining import profile as profiles
from tasks.retraining.profile import Profile, compare, jensen_shannon, reasons
from tasks.runtime.checkout import Checkout

LIMITS = {"length": 0.05, "vocabulary": 0.05, "source": 0.05}


def test_jensen_shannon_by_hand():
    assert jensen_shannon([3, 1], [6, 2]) == 0.0
    assert jensen_shannon([5, 0], [0, 9]) == 1.0
    # p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4)
    by_hand = (math.log2(1 / 0.75) + 0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25)) / 2
    assert jensen_shannon([4, 0], [2, 2]) == pytest.approx(by_hand)
    assert jensen_shannon([0, 0], [0, 0]) == 0.0
    assert jensen_shannon([0, 0], [1, 0]) == 1.0


def write(root, texts: list[str], *, license: str = "MIT") -> Profile:
    found = [TextRecord(source="files:own.jsonl", license=license, group=t, text=t, split="train") for t in texts]
    asked = [
        Demonstration(
            source="maths", license="CC0", group=str(i), task="addition", prompt=f"{i} + 1 = ?", answer=str(i + 1),
            target=str(i + 1), split="train",
        )
        for i in range(5)
    ]  # fmt: skip
    records.write(root / "data" / "text.parquet", records.to_columns(found, TEXT_COLUMNS))
    records.write(root / "data" / "demonstrations.parquet", records.to_columns(asked, DEMONSTRATION_COLUMNS))
    return Profile.of(root)


def test_the_same_data_is_nothing_new_and_survives_the_disk(tmp_path):
    first = write(tmp_path, [f"a text about number {i}" for i in range(20)])
    assert len(first.ids) == 25
    assert first.sources == {"files:own.jsonl (MIT)": 20, "maths (CC0)": 5}
    first.write(tmp_path / "profile.json")
    found = compare(Profile.taken(read_json(tmp_path / "profile.json")), Profile.of(tmp_path))
    assert (found.n_new, found.n_gone, found.new_labels) == (0, 0, False)
    assert found.length_drift == found.vocabulary_drift == found.source_drift == 0.0
    assert reasons(found, min_new_records=1, limits=LIMITS) == []


def test_new_records_longer_texts_other_words_and_licences_are_told_apart(tmp_path):
    texts = [f"a text about number {i}" for i in range(20)]
    first = write(tmp_path / "a", texts)
    more = compare(first, write(tmp_path / "b", [*texts[1:], "a text about number 99"]))
    assert (more.n_new, more.n_gone) == (1, 1)
    assert reasons(more, min_new_records=2, limits=LIMITS) == []
    assert reasons(more, min_new_records=1, limits=LIMITS) == [
        "1 new records (at least 1)",
        "1 records are gone (at least 1)",
    ]
    longer = compare(first, write(tmp_path / "c", [" ".join([t] * 40) for t in texts]))
    assert [r.split(" of ")[0] for r in reasons(longer, min_new_records=99, limits=LIMITS)] == ["length drift"]
    other = compare(first, write(tmp_path / "d", [f"q wert yuiop zxcvbn {i}" for i in range(20)]))
    assert "vocabulary drift" in " ".join(reasons(other, min_new_records=99, limits=LIMITS))
    licensed = compare(first, write(tmp_path / "e", texts, license="GPL-3.0-only"))
    assert [r.split(" of ")[0] for r in reasons(licensed, min_new_records=99, limits=LIMITS)] == ["source drift"]
    assert licensed.source_drift == pytest.approx(20 / 25)


def test_a_new_file_of_rankings_is_a_reason(tmp_path):
    first = write(tmp_path, ["one text"])
    before = Profile(**{**first.__dict__, "labels": "a"})
    after = Profile(**{**first.__dict__, "labels": "b"})
    assert reasons(compare(before, after), min_new_records=1, limits=LIMITS) == ["new human labels"]
    assert reasons(compare(before, before), min_new_records=1, limits=LIMITS) == []
    assert profiles.compare(before, first).new_labels is False


def lock_of(root, data: str, models_of: str) -> bytes:
    """A dvc.lock whose data has the digest `data`, and whose tokenizer read `models_of`."""

    def tables(md5: str) -> list[dict[str, str]]:
        return [{"path": path, "md5": md5} for path in baseline.TABLES]

    stages = {"data": {"outs": tables(data)}, "tokenizer": {"deps": tables(models_of)}, "evaluate": {}}
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return (root / "dvc.lock").read_bytes()


def test_the_lock_to_go_back_to_is_that_of_the_models(tmp_path):
    checkout = Checkout(tmp_path)
    kept = tmp_path / ".axon" / "retrain" / "dvc.lock"
    first = lock_of(tmp_path, "a", "a")
    baseline.keep_lock(checkout)
    lock_of(tmp_path, "b", "a")  # killed behind the stage data
    baseline.keep_lock(checkout)
    assert kept.read_bytes() == first
    second = lock_of(tmp_path, "b", "b")  # somebody ran the pipeline meanwhile
    baseline.keep_lock(checkout)
    assert kept.read_bytes() == second


def test_a_training_that_began_is_gone_on_with_until_it_is_decided(tmp_path):
    checkout = Checkout(tmp_path)
    lock_of(tmp_path, "a", "a")
    baseline.keep_lock(checkout)
    assert baseline.begun(checkout) is None
    baseline.begin(checkout, "380 new records", "an occasion")
    begun = baseline.begun(checkout)
    assert begun is not None
    assert (begun.why, begun.occasion) == ("380 new records", "an occasion")
    assert not (tmp_path / ".axon" / "retrain" / "dvc.lock").exists(), "nothing is put back any more"
    baseline.end(checkout)
    assert baseline.begun(checkout) is None
