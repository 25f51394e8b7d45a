"""What an audit says of states that are no tampering, and of those that one alone of its parts can see."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from flows import audit as command
from tasks.errors import UserError
from tasks.files import read_json
from tasks.lineage import keys, policy, recording
from tasks.lineage.audit import anchoring
from tasks.lineage.store import StatementStore
from tasks.runtime import stages
from tests.tasks.lineage import audited_run, small_run
from tests.tasks.lineage.auditing import altered, newest_values, places, report_of
from tests.tasks.lineage.workspace import git


def test_an_untouched_checkout_is_well_and_everything_is_counted(audited):
    report = report_of(audited)
    assert report.findings == []
    assert report.exit_code == 0
    assert report.anchor.place == ".axon/lineage-head.json"
    # data, sft, ppo, evaluate, run, register; then ppo, evaluate, run, register
    assert report.checked["chain"]["statements"] == report.checked["chain"]["signatures"] == 10
    assert report.checked["chain"]["links"] == 9
    assert report.checked["agreement"] == {"files": 3, "entries": 4, "values": 25}
    assert report.checked["artifacts"]["outputs"] == 6
    assert report.checked["artifacts"]["outputs of earlier executions"] == 2
    assert report.checked["cache"]["objects"] == 11  # 4 files, 3 directories of 2 files, one of them shared
    assert report.checked["tracking"]["runs"] == 8
    assert report.checked["tracking"]["logged models"] == 3
    assert report.checked["registered"]["versions"] == report.checked["registered"]["signatures"] == 2
    assert not any(report.not_reachable.values())


def test_an_unfinished_edit_of_the_parameters_is_called_that(copied):
    values = newest_values(copied)
    values["ppo"]["kl_coef"] = 0.5
    audited_run.write_parameters(copied.root, values)
    [finding] = report_of(copied).findings
    assert finding.place == "params.yaml"
    assert "params.yaml is not that of the newest run" in finding.found
    assert "ppo.kl_coef is 0.5, was 1e-05" in finding.found
    assert "axon run" in finding.what_to_do


def test_another_comment_in_the_parameters_is_found_too(copied):
    path = copied.root / "params.yaml"
    path.write_text(path.read_text() + "# more\n")
    [finding] = report_of(copied).findings
    assert "its values are the same" in finding.found


def test_a_new_file_among_the_sources_is_named(copied):
    (copied.root / "sources" / "more.jsonl").write_text("{}\n")
    assert places(report_of(copied)) == ["sources/more.jsonl"]


def test_a_stage_that_ran_after_the_newest_run_is_no_finding(copied):
    values = newest_values(copied)
    (copied.root / "metrics" / "evaluate.json").write_text(json.dumps({"ppo": small_run.FIGURES, "dpo": {}}))
    audited_run.execute(copied, stages.read_stages(copied.root)["evaluate"], values, None)
    audited_run.Sender(copied).deliver()
    report = report_of(copied)
    assert report.findings == []
    assert "evaluate ran after the newest whole run" in " ".join(report.notes)
    values["ppo"]["kl_coef"] = 0.5
    audited_run.write_parameters(copied.root, values)
    assert places(report_of(copied)) == ["params.yaml ppo.kl_coef"]


def test_a_stage_that_was_taken_out_of_the_pipeline_is_no_finding(copied):
    tree = yaml.safe_load((copied.root / "dvc.yaml").read_text())
    del tree["stages"]["evaluate"]
    (copied.root / "dvc.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    lock = audited_run.parse_yaml((copied.root / "dvc.lock").read_text(), "dvc.lock")
    del lock["stages"]["evaluate"]
    (copied.root / "dvc.lock").write_text(audited_run.dumps_yaml(lock))
    assert places(report_of(copied)) == ["dvc.lock", "dvc.yaml"]
    recording.record_run(copied, parameters=newest_values(copied), targets=[], execution="e" * 32, started=1.0)
    report = report_of(copied)
    assert report.checked["artifacts"]["outputs"] == 5
    assert [place for place in places(report) if not place.startswith("MLflow run pipeline eeee")] == []


def test_what_ran_without_statements_is_found(copied):
    values = newest_values(copied)
    stage = stages.read_stages(copied.root)["evaluate"]
    (copied.root / "metrics" / "evaluate.json").write_text("{}")
    audited_run.lock(copied.root, stage, {"seed": values["seed"]})
    found = places(report_of(copied))
    assert "dvc.lock" in found
    assert "dvc.lock evaluate outs metrics/evaluate.json" in found
    assert "metrics/evaluate.json" in found


def test_without_an_anchor_it_says_so(copied):
    (copied.state / "lineage-head.json").unlink()
    report = report_of(copied)
    assert report.findings == []
    assert report.exit_code == 3
    assert "Nothing anchors this chain" in " ".join(report.notes)
    newest = StatementStore.of(copied).head()
    assert report_of(copied, anchor=anchoring.given([newest.key], newest.digest)).exit_code == 0


@pytest.mark.parametrize(
    ("given", "head", "words"),
    [(["a" * 64], None, "give both"), ([], "a" * 64, "give both"), (["a" * 64], "abc", "64 hexadecimal digits")],
)
def test_half_an_anchor_is_a_mistake(given, head, words):
    with pytest.raises(UserError, match=words):
        anchoring.given(given, head)


def test_statements_after_the_given_head_are_told(audited):
    earlier = StatementStore.of(audited).all()[-3]
    key = StatementStore.of(audited).head().key
    report = report_of(audited, anchor=anchoring.given([key], earlier.statement.digest))
    assert report.exit_code == 0
    assert "2 statements came after the head that was given" in " ".join(report.notes)


def test_a_replaced_key_is_found_unless_both_are_given(copied):
    old = keys.load(copied)
    keys.private_path(copied).unlink()
    audited_run.add_statement(copied, "audit", {})
    new = keys.load(copied)
    report = report_of(copied)
    assert len(report.findings) == 10
    assert all("signature by the key of the anchor" in finding.expected for finding in report.findings)
    head = StatementStore.of(copied).head().digest
    assert report_of(copied, anchor=anchoring.given([old.fingerprint, new.fingerprint], head)).exit_code == 0


def test_a_private_key_that_is_not_the_public_one_s_is_found(copied):
    other = ec.generate_private_key(ec.SECP256R1())
    path = keys.private_path(copied)
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    [finding] = report_of(copied).findings
    assert finding.place == ".axon/keys/signing.pem"
    assert "private half of" in finding.found


def test_a_private_key_that_others_can_read_is_found(copied):
    keys.private_path(copied).chmod(0o644)
    assert places(report_of(copied)) == [".axon/keys/signing.pem"]


def test_code_edited_since_is_told_and_the_commit_counts(copied):
    (copied.root / "tasks" / "steps" / "ppo.py").write_text("# edited\n")
    report = report_of(copied)
    assert report.findings == []
    assert report.checked["code"]["closures at their commit"] == 4
    assert "The code of ppo was edited since" in " ".join(report.notes)


def test_code_that_was_not_committed_is_compared_with_the_working_tree(copied):
    path = copied.root / "tasks" / "steps" / "ppo.py"
    path.write_text("# not committed\n")
    audited_run.run(copied, newest_values(copied), ["ppo"])
    report = report_of(copied)
    assert report.findings == []
    assert "ppo was not committed" in " ".join(report.notes)
    path.write_text("# lost\n")
    [finding] = report_of(copied).findings
    assert finding.place.endswith("-ppo.json code")
    assert "neither in the working tree nor at HEAD" in finding.found
    path.write_text("# not committed\n")
    git(copied.root, "add", "-A")
    git(copied.root, "commit", "-q", "-m", "later")
    path.write_text("# lost\n")
    report = report_of(copied)
    assert report.findings == []
    assert report.checked["code"]["closures at HEAD"] == 1


def test_a_commit_with_other_code_is_found(copied):
    """Git's objects are replaced: the commit of the statement no longer has what ran."""
    commit = git(copied.root, "rev-parse", "HEAD~1").strip()
    blob = git(copied.root, "rev-parse", f"{commit}:tasks/steps/ppo.py").strip()
    other = git(copied.root, "hash-object", "-w", "tasks/steps/sft.py").strip()
    git(copied.root, "replace", blob, other)
    found = places(report_of(copied))
    assert [place for place in found if place.endswith("code")] == [
        "lineage/statements/000003-ppo.json code",
        "lineage/statements/000007-ppo.json code",
    ]


def test_without_git_the_working_tree_counts(copied):
    shutil.rmtree(copied.root / ".git")
    report = report_of(copied)
    assert report.findings == []
    assert "cannot be looked up without git" in " ".join(report.notes)


def test_a_target_is_audited_with_what_is_behind_it_alone(copied):
    (copied.root / "models" / "ppo" / "config.json").write_text("{}")
    report = report_of(copied, target="models/sft")
    assert report.findings == []
    assert report.checked["artifacts"]["outputs"] == 4  # three tables and SFT
    assert places(report_of(copied, target="ppo")) == ["models/ppo/config.json"]
    assert places(report_of(copied, target="axon-chat@2")) == ["models/ppo/config.json"]
    with pytest.raises(UserError, match="did you mean"):
        report_of(copied, target="path:models/sfx")


def test_a_policy_is_held_against_the_models_in_use(audited):
    tree = yaml.safe_load((small_run.Path(__file__).parents[3] / "policy.yaml").read_text())
    tree["forbidden_licenses"] = ["CC0-1.0"]
    report = report_of(audited, policy=policy.check(tree))
    assert report.checked["policy"]["models"] == 2
    broken = [finding for finding in report.of("policy") if finding.expected.startswith("forbidden_licenses")]
    assert [finding.place.partition(",")[0] for finding in broken] == ["models/ppo: maths"] * len(broken)
    assert broken
    assert report.exit_code == 1


def test_the_command_prints_what_was_checked_and_each_finding(copied, capsys):
    assert command.audit(copied, None, keys=[], head=None, policy=None, to=None, form="text") == 0
    printed = capsys.readouterr().out
    assert "chain       well         10 statements, 10 signatures, 9 links" in printed
    assert StatementStore.of(copied).head().digest in printed
    assert printed.endswith("All is well.\n")
    (copied.root / "models" / "ppo" / "config.json").write_text("{}")
    assert command.audit(copied, None, keys=[], head=None, policy=None, to=None, form="text") == 1
    printed = capsys.readouterr().out
    assert "artifacts   1 finding" in printed
    assert "1. models/ppo/config.json\n   expected  SHA-256 " in printed
    assert command.audit(copied, None, keys=[], head=None, policy=None, to=None, form="json") == 1
    tree = json.loads(capsys.readouterr().out)
    assert tree["exit_code"] == 1
    assert [finding["place"] for finding in tree["findings"]] == ["models/ppo/config.json"]
    with pytest.raises(UserError, match="allowed are text and json"):
        command.audit(copied, None, keys=[], head=None, policy=None, to=None, form="xml")


def test_nothing_is_written(copied):
    def state():
        files = [p for p in copied.root.rglob("*") if p.is_file() and ".git" not in p.parts]
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    before = state()
    report_of(copied)
    assert state() == before


def test_a_head_that_is_no_head_is_found(copied):
    path = copied.state / "lineage-head.json"
    known = read_json(path)
    path.write_text(json.dumps({**known, "sequence": 3}, indent=2, sort_keys=True) + "\n")
    assert places(report_of(copied)) == [".axon/lineage-head.json"]
    path.write_text(json.dumps({**known, "key": "0" * 64}, indent=2, sort_keys=True) + "\n")
    assert set(places(report_of(copied))) == {".axon/lineage-head.json", ".axon/keys/signing.pem"}
    path.write_text("{}")
    report = report_of(copied)
    assert places(report) == [".axon/lineage-head.json"]
    assert report.exit_code == 1


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "stages: 3",
        "stages: {ppo: 3}",
        "stages: {ppo: {deps: 3, outs: x, params: [1]}}",
        "stages:\n- a",
        ": :",
        "",
    ],
)
def test_a_lock_file_of_any_form_is_told(copied, text):
    (copied.root / "dvc.lock").write_text(text)
    report = report_of(copied)
    assert "dvc.lock" in places(report)
    assert report.exit_code == 1


@pytest.mark.parametrize("facts", [["a"], {"name": "axon-chat"}, {"name": 1, "version": "1", "model": "m", "md5": "x"}])
def test_a_registration_of_another_form_is_told(copied, facts):
    audited_run.add_statement(copied, "register", facts)
    assert "lineage/statements/000011-register.json" in places(report_of(copied))


@pytest.mark.parametrize("name", ["dvc.yaml", "dvc.lock", "params.yaml"])
@pytest.mark.parametrize("content", [b"\xa0", b"stages: {data: 1}", b"a: 2020-13-45", b"\x00", b"- a", b"{"])
def test_a_file_of_any_content_is_told(audited, still_store, name, content):
    with altered(audited.root / name, content):
        assert name in places(report_of(audited))
