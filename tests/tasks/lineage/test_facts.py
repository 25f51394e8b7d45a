"""Facts are counted by hand here: licences, findings, overlap, and how artifacts inherit them."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data import overlap
from tasks.data.records import record_id
from tasks.errors import UserError
from tasks.lineage import contamination, detectors, facts
from tasks.lineage.contamination import Row
from tasks.lineage.data_versions import read_table, versions, workspace_version
from tests.helpers import REPOSITORY
from tests.tasks.lineage import small_run
from tests.tasks.lineage.small_run import EMAIL, question, text

RUN = "one two three four five six seven eight nine ten eleven twelve thirteen"  # 13 words


@pytest.fixture
def checkout(tmp_path):
    return small_run.make(tmp_path)


def of_workspace(checkout, **options):
    return facts.of_version(checkout, workspace_version(checkout), **options)


def facts_file(checkout):
    return checkout.state / "facts" / f"{workspace_version(checkout).digest}.json"


def test_licences_are_counted_by_origin_table_and_split(checkout):
    counted = {c.origin: (c.license, c.n_records, c.total) for c in of_workspace(checkout).licenses}
    assert counted == {
        "maths": ("CC0-1.0", {"demonstrations": {"preference": 1, "test": 1, "train": 1}}, 3),
        "python_docs/matplotlib 3.11.2": ("PSF-2.0", {"text": {"train": 1}}, 1),
        "python_docs/numpy 2.4.6": ("BSD-3-Clause", {"text": {"test": 1, "train": 2}}, 3),
    }


def test_the_digest_of_an_origin_is_that_of_its_sorted_record_ids(checkout):
    counts = {count.origin: count for count in of_workspace(checkout).licenses}
    contents = ["Add 2 and 3.\x005", "Add 7 and 1.\x008", "Add 4 and 4.\x008"]
    ids = sorted(record_id("maths", content) for content in contents)
    assert counts["maths"].digest == hashlib.sha256(b"".join(ids)).hexdigest()


def test_a_finding_says_where_and_of_which_kind_and_never_the_value(checkout):
    (finding,) = of_workspace(checkout).findings
    content = f"Created by Jane Roe {EMAIL} a while ago."
    assert finding == facts.Finding(
        record=record_id("python_docs", content).hex(), table="text", field="text", start=20, end=20 + len(EMAIL),
        kind="email", source="python_docs", package="numpy", split="train",
    )  # fmt: skip
    written = facts_file(checkout).read_text()
    assert finding.record in written
    assert EMAIL not in written
    assert "Jane" not in written


def test_findings_are_looked_for_in_prompts_and_answers_too(checkout):
    asked = question("Who wrote +49 30 901820?", f"Ask {EMAIL}.")
    small_run.write_data(checkout.root, questions=[asked])
    found = of_workspace(checkout).findings
    assert [(f.field, f.kind) for f in found if f.table == "demonstrations"] == [
        ("answer", "email"),
        ("prompt", "phone"),
    ]


def test_a_facts_file_is_the_same_bytes_from_another_process(checkout):
    of_workspace(checkout)
    first = facts_file(checkout).read_bytes()
    facts_file(checkout).unlink()
    program = (
        "import sys; from pathlib import Path; from tasks.runtime.checkout import Checkout\n"
        "from tasks.lineage import facts; from tasks.lineage.data_versions import workspace_version\n"
        "checkout = Checkout(Path(sys.argv[1])); facts.of_version(checkout, workspace_version(checkout))"
    )
    environment = {"PYTHONHASHSEED": "1", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", program, str(checkout.root)], check=True, cwd=REPOSITORY, env=environment)
    assert facts_file(checkout).read_bytes() == first


def test_known_facts_are_not_computed_again(checkout, monkeypatch):
    first = of_workspace(checkout)
    monkeypatch.setattr(facts, "compute", lambda *_: pytest.fail("computed again"))
    assert of_workspace(checkout) == first
    monkeypatch.undo()
    assert of_workspace(checkout, words=14).overlap.words == 14


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 1}', None])
def test_a_facts_file_that_does_not_fit_is_made_anew(checkout, damage, monkeypatch):
    first = of_workspace(checkout)
    if damage is None:
        monkeypatch.setattr(detectors, "VERSION", detectors.VERSION + 1)
        monkeypatch.setattr(detectors, "DETECTORS", ())
        assert of_workspace(checkout).findings == ()
        return
    facts_file(checkout).write_text(damage)
    assert of_workspace(checkout) == first
    assert json.loads(facts_file(checkout).read_text())["findings"]


def test_fresh_trusts_no_facts_file(checkout):
    first = of_workspace(checkout)
    told = json.loads(facts_file(checkout).read_text())
    facts_file(checkout).write_text(json.dumps({**told, "findings": []}))
    assert of_workspace(checkout).findings == ()
    assert of_workspace(checkout, fresh=True) == first


def measured(*rows, words=13):
    parsed = [
        Row(record=f"{i:032x}", table="t", split=split, source="s", license="", package="", version="", fields=fields)
        for i, (split, fields) in enumerate(rows)
    ]
    return contamination.measure(lambda: iter(parsed), words)


def test_thirteen_words_in_common_are_an_overlap_and_twelve_are_not():
    training = ("train", {"text": f"Before. {RUN.title()}! After."})
    shared = measured(training, ("test", {"text": f"so {RUN} too"}), ("validation", {"text": RUN[4:]}))
    assert [(item.record[-1], item.n_runs, item.split) for item in shared.shared] == [("1", 1, "test")]
    assert shared.n_items == {"s": 2}
    assert shared.fraction("s") == 0.5
    assert shared.fraction("another") == 0


def test_preferences_are_training_text_too():
    shared = measured(("preference", {"answer": RUN}), ("test", {"text": RUN})).shared
    assert [(item.record[-1], item.n_runs) for item in shared] == [("1", 1)]


def test_a_run_does_not_reach_from_one_field_or_record_into_the_next():
    half, rest = RUN[:30], RUN[30:]
    training = [("train", {"prompt": half, "answer": rest}), ("preference", {"text": half}), ("train", {"text": rest})]
    assert measured(*training, ("test", {"text": RUN})).shared == ()


def test_short_texts_and_prompts_overlap_as_wholes_and_answers_do_not():
    training = ("train", {"prompt": "Add 2 and 3.", "answer": "Return the sum."})
    held_out = [
        ("test", {"prompt": "ADD 2 and 3.", "answer": "6"}),
        ("test", {"text": "Return the sum."}),
        ("test", {"prompt": "Add 3 and 3.", "answer": "Return the sum."}),
    ]
    assert [(item.record[-1], item.n_runs) for item in measured(training, *held_out).shared] == [("1", 0), ("2", 0)]


_texts = st.lists(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=3, max_size=12).map(" ".join), max_size=6)


@settings(deadline=None)
@given(_texts, _texts)
def test_the_overlap_is_what_the_proof_of_the_data_stage_counts(held_out, training):
    rows = [("train", {"answer": t}) for t in training] + [("test", {"answer": t}) for t in held_out]
    found = measured(*rows, words=5).shared
    assert bool(found) == (overlap.count_overlaps(held_out, training, 5)["overlaps"] > 0)
    index = overlap.RunIndex(training, 5)
    expected = {i for i, t in enumerate(held_out, start=len(training)) if index.shared_spans(t)}
    assert {int(item.record, 16) for item in found} == expected


def test_an_artifact_inherits_the_facts_of_its_data(checkout):
    small_run.record(checkout)
    found = facts.of_artifact(checkout, "models/ppo")
    assert found.unstated == ()
    assert [data.digest for data in found.data] == [workspace_version(checkout).digest]
    assert sum(count.total for count in found.licenses) == 7
    assert [finding.kind for finding in found.findings] == ["email"]
    assert found.overlap.n_items == {"maths": 1, "python_docs": 1}


def test_two_data_versions_behind_one_model_are_united(checkout):
    """SFT saw the first version, PPO the second, whose test text stands in what SFT was trained on."""
    small_run.record(checkout, "data", "sft")
    old = [path.read_bytes() for path in (checkout.root / "data").glob("*.parquet")]
    first = workspace_version(checkout)
    new_text = text(small_run.TEXTS[0].text, split="test", license="MIT")
    small_run.write_data(checkout.root, [new_text, text("Another text of thirteen or fewer words.")])
    small_run.record(checkout, "data", at=1_800_000_000.0)
    small_run.record(checkout, "ppo", at=1_800_000_100.0)
    with pytest.raises(UserError, match="neither in the workspace nor in DVC's cache"):
        facts.of_artifact(checkout, "models/ppo")
    for content in old:
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        cached = checkout.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(content)
    found = facts.of_artifact(checkout, "models/ppo")
    assert {data.digest for data in found.data} == {first.digest, workspace_version(checkout).digest}
    assert {count.license for count in found.licenses} == {"BSD-3-Clause", "CC0-1.0", "MIT", "PSF-2.0"}
    assert [item.record for item in found.overlap.shared] == [new_text.record_id.hex()]
    assert all(data.overlap.shared == () for data in found.data)


def test_data_from_the_cache_is_hashed_and_a_damaged_one_refused(checkout):
    version = workspace_version(checkout)
    path = checkout.root / "data" / "text.parquet"
    content = path.read_bytes()
    assert read_table(checkout, version, "data/text.parquet") == content
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match=r"data/text.parquet with SHA-256 [0-9a-f]{64}"):
        read_table(checkout, version, "data/text.parquet")


def test_without_a_statement_the_workspace_counts_and_it_is_said(checkout):
    found = facts.of_artifact(checkout, "models/ppo")
    assert found.unstated == ("models/ppo as it stands",)
    assert sum(count.total for count in found.licenses) == 7


def test_a_missing_statement_behind_is_named_and_its_data_still_found(checkout):
    small_run.record(checkout)
    (checkout.root / "lineage" / "statements" / "000001-data.json").unlink()
    found = facts.of_artifact(checkout, "models/ppo")
    assert any(entry.startswith("data/text.parquet, read by sft") for entry in found.unstated)
    assert any(entry.startswith("statement ") and entry.endswith("named by sft") for entry in found.unstated)
    assert sum(count.total for count in found.licenses) == 7


def test_an_output_made_by_hand_has_no_statement(checkout):
    small_run.record(checkout)
    small_run.write_model(checkout.root, "ppo", "weights from elsewhere")
    assert facts.of_artifact(checkout, "models/ppo").unstated == ("models/ppo as it stands",)


def test_rejects_are_no_part_of_the_data_behind_a_model(checkout):
    made = small_run.record(checkout)
    (version,) = versions(list(made.values()))
    assert sorted(version.files) == ["data/demonstrations.parquet", "data/text.parquet"]


@pytest.mark.parametrize("artifact", ["models/none", "nothing"])
def test_what_is_not_there_is_a_user_error(checkout, artifact):
    with pytest.raises(UserError, match="is not in"):
        facts.of_artifact(checkout, artifact)
    (checkout.root / "data" / "text.parquet").unlink()
    with pytest.raises(UserError, match=r"data/text\.parquet is missing"):
        facts.of_artifact(checkout, "models/ppo")
