"""Each rule of the policy is broken in one way and said so, and nothing else is said."""

import copy
import json

import pytest
import yaml

from tasks.errors import UserError
from tasks.lineage import detectors, licenses, policy
from tasks.lineage.policy import Violation
from tests.helpers import REPOSITORY
from tests.tasks.lineage import small_run
from tests.tasks.lineage.small_run import question, text

TREE = yaml.safe_load((REPOSITORY / policy.FILE).read_text())


@pytest.fixture
def checkout(tmp_path):
    made = small_run.make(tmp_path)
    small_run.record(made)
    (tmp_path / policy.FILE).write_text(yaml.safe_dump(TREE))
    return made


def changed(**values):
    """The policy of the repository with dotted keys replaced."""
    tree = copy.deepcopy(TREE)
    for key, value in values.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return policy.check(tree)


def broken(checkout, **values):
    return policy.check_artifact(checkout, "models/ppo", changed(**values))


def rules(violations):
    return [violation.rule for violation in violations]


def test_the_policy_of_the_repository_is_kept(checkout):
    assert policy.load(REPOSITORY / policy.FILE).require_statements
    assert policy.check_before_registration(checkout) == []


def test_a_licence_that_is_not_allowed(checkout):
    assert broken(checkout, allowed_licenses=["BSD-*", "CC0-1.0"]) == [
        Violation(
            rule="allowed_licenses",
            where="python_docs/matplotlib 3.11.2, 1 record(s)",
            value="licence 'PSF-2.0'",
            allowed="only BSD-*, CC0-1.0",
            what_to_do="Take the source out of data in params.yaml and run again, correct its licence there if it is "
            "wrong, or change allowed_licenses in policy.yaml.",
        )
    ]


def test_a_forbidden_licence_wins_over_an_allowed_one(checkout):
    (violation,) = broken(checkout, allowed_licenses=["*"], forbidden_licenses=["psf-*", "GPL-3.0-only"])
    assert violation.rule == "forbidden_licenses"
    assert "PSF-2.0" in violation.value


@pytest.mark.parametrize(
    ("license", "is_permitted"),
    [
        ("MIT", True),
        ("mit", True),
        ("Apache-2.0", False),
        ("MIT OR Apache-2.0", True),
        ("MIT AND Apache-2.0", False),
        ("MIT AND (Apache-2.0 OR BSD-3-Clause)", True),
        ("MIT OR GPL-3.0-only", True),
        ("BSD-3-Clause AND AGPL-3.0-only", False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", True),
        ("GPL-3.0-only WITH Autoconf-exception-3.0", False),
        ("LicenseRef-Ours", True),
        ("LicenseRef-Theirs", False),
        ("NOASSERTION", False),
        ("All rights reserved (see site)", False),
        ("", False),
    ],
)
def test_expressions_of_licences(license, is_permitted):
    allowed = ["MIT", "BSD-*", "GPL-2.0-only", "LicenseRef-Ours"]
    refusal = licenses.why_refused(license, allowed, ["AGPL-*", "GPL-3.0-*"])
    assert (refusal is None) == is_permitted


def test_a_licence_that_spdx_does_not_know_is_named_with_a_suggestion(checkout):
    small_run.write_data(checkout.root, [text("A text of one's own.", license="CC BY 4.0", source="files:own.jsonl")])
    small_run.record(checkout)
    (violation,) = policy.check_before_registration(checkout)
    assert violation.value == "licence 'CC BY 4.0', 'CC BY 4.0' is no SPDX licence (did you mean CC-BY-4.0?)"
    assert violation.where == "files:own.jsonl/numpy 2.4.6, 1 record(s)"


def test_findings_beyond_the_limit_are_told_by_place_and_not_by_value(checkout):
    (violation,) = broken(checkout, max_findings={"email": 0})
    record = small_run.TEXTS[1].record_id.hex()
    assert (violation.rule, violation.value) == ("max_findings.email", "1 in 1 record(s)")
    assert violation.where == f"record {record} (python_docs, text 20-{20 + len(small_run.EMAIL)})"
    assert small_run.EMAIL not in str(violation)


def test_an_accepted_finding_is_not_counted(checkout):
    record = small_run.TEXTS[1].record_id.hex()
    accepted = {"record": record, "kind": "email", "reason": "the author agreed"}
    assert broken(checkout, max_findings={"email": 0}, accepted_findings=[accepted]) == []
    of_another_kind = {**accepted, "kind": "phone"}
    of_another_record = {**accepted, "record": "0" * 32}
    for other in (of_another_kind, of_another_record):
        assert rules(broken(checkout, max_findings={"email": 0}, accepted_findings=[other])) == ["max_findings.email"]


def test_many_findings_are_shown_shortened(checkout):
    small_run.write_data(checkout.root, [text(f"Mail {i}{small_run.EMAIL} today.") for i in range(5)])
    small_run.record(checkout)
    (violation,) = broken(checkout, max_findings={"email": 4})
    assert violation.value == "5 in 5 record(s)"
    assert violation.where.count("record ") == 3
    assert violation.where.endswith("and 2 more")
    assert broken(checkout, max_findings={"email": 5}) == []


def test_evaluation_overlap_by_source(checkout):
    questions = [*small_run.QUESTIONS, question("Add 2 and 3.", "6", split="test")]
    small_run.write_data(checkout.root, questions=questions)
    small_run.record(checkout)
    (violation,) = policy.check_before_registration(checkout)
    assert violation.rule == "max_evaluation_overlap"
    assert violation.where == f"maths, records {questions[-1].record_id.hex()}"
    assert violation.value.startswith("1 of 2 held-out records (50.00%)")
    assert broken(checkout, max_evaluation_overlap={"maths": 0.5}) == []
    assert rules(broken(checkout, max_evaluation_overlap={"*": 1.0})) == ["max_evaluation_overlap"]


def test_a_missing_statement(checkout):
    (checkout.root / "lineage" / "statements" / "000002-sft.json").unlink()
    found = rules(policy.check_before_registration(checkout))
    assert set(found) == {"require_statements"}
    assert broken(checkout, require_statements=False) == []


def test_a_violation_is_one_line_with_everything(checkout):
    (violation,) = broken(checkout, max_findings={"email": 0})
    line = str(violation)
    assert "\n" not in line
    assert all(part in line for part in (violation.where, violation.value, violation.allowed, violation.what_to_do))


def test_registration_checks_the_model_that_the_evaluation_chooses(checkout):
    """PPO wins in the figures of the run; nothing was said about models/dpo."""
    assert policy.check_before_registration(checkout) == []
    small_run.write_model(checkout.root, "dpo", "weights of dpo")
    assert rules(policy.check_before_registration(checkout, "dpo")) == ["require_statements"]


def test_registration_trusts_no_facts_file(checkout):
    strict = {**TREE, "max_findings": {**TREE["max_findings"], "email": 0}}
    (checkout.root / policy.FILE).write_text(yaml.safe_dump(strict))
    assert rules(policy.check_before_registration(checkout)) == ["max_findings.email"]
    (path,) = (checkout.state / "facts").glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "findings": []}))
    assert rules(policy.check_before_registration(checkout)) == ["max_findings.email"]


MISTAKES = {
    "version": (2, "version=2: input should be 1"),
    "allowed_licenses": (["BSD-3-Claus"], "allowed_licenses.0='BSD-3-Claus': no SPDX licence is called that (did you"),
    "forbidden_licenses": (["GPL3*"], "forbidden_licenses.0='GPL3*': no SPDX licence is called that"),
    "max_findings": ({"email": -1}, "max_findings.email=-1: input should be greater than or equal to 0"),
    "accepted_findings": ([{"record": "12", "kind": "email", "reason": "x"}], "accepted_findings.0.record='12'"),
    "max_evaluation_overlap": ({"*": 2}, "max_evaluation_overlap.*=2: input should be less than or equal to 1"),
    "overlap_words": ("13", "overlap_words='13': input should be a valid integer"),
    "require_statements": (1, "require_statements=1: input should be a valid boolean"),
}


@pytest.mark.parametrize("key", MISTAKES)
def test_a_wrong_value_is_one_user_error_that_names_it(key):
    value, message = MISTAKES[key]
    with pytest.raises(UserError) as raised:
        changed(**{key: value})
    assert message in str(raised.value)
    assert "1 mistake(s)" in str(raised.value)
    assert raised.value.exit_code == 2


def test_all_mistakes_are_told_at_once():
    tree = {key: value for key, value in TREE.items() if key != "require_statements"}
    tree |= {"max_finding": {}, "overlap_words": 0}
    with pytest.raises(UserError) as raised:
        policy.check(tree, where="mine.yaml")
    message = str(raised.value)
    assert "mine.yaml: 3 mistake(s)" in message
    assert "max_finding is not a rule; did you mean max_findings?" in message
    assert "require_statements is missing" in message


def test_every_kind_and_every_source_needs_a_limit():
    tree = copy.deepcopy(TREE)
    del tree["max_findings"]["iban"]
    del tree["max_evaluation_overlap"]["*"]
    with pytest.raises(UserError, match=r"(?s)max_findings\.iban is missing.*max_evaluation_overlap"):
        policy.check(tree)
    assert set(TREE["max_findings"]) == set(detectors.KINDS)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"max_findings\.emails='emails': input should be 'email'"):
        changed(max_findings={"emails": 3})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version: 1\nversion: 1\n", "version is given 2 times"),
        ("a: [", "not readable YAML"),
        ("- 1\n", "must hold a mapping of rules, but holds list"),
        ("", "must hold a mapping of rules, but holds NoneType"),
        ("\ud800".encode("utf-8", "surrogatepass"), "not readable YAML"),
        (None, "is missing"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_user_error(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as raised:
        policy.load(path)
    assert str(path) in str(raised.value)
