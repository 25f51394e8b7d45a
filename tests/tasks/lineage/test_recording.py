"""What is recorded is what is on disk, counted and hashed without Axon's help."""

import hashlib
import importlib.metadata
import subprocess
import sys
import time

import pytest

from tasks.errors import UserError
from tasks.lineage import envelope, keys, recording, statement, surroundings
from tasks.lineage.hashing import FileDigest
from tasks.lineage.store import StatementStore
from tasks.runtime import stages
from tests.helpers import REPOSITORY
from tests.tasks.lineage.workspace import VALUES, git, make_checkout, record, write_lock

# Two blocks of one MD5 and two SHA-256 (Wang, Feng, Lai and Yu 2004, as published by them).
_A = (
    "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f8955ad340609f4b30283e488832571415a"
    "085125e8f7cdc99fd91dbdf280373c5bd8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0"
    "e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70"
)
_B = (
    "d131dd02c5e6eec4693d9a0698aff95c2fcab50712467eab4004583eb8fb7f8955ad340609f4b30283e4888325f1415a"
    "085125e8f7cdc99fd91dbd7280373c5bd8823e3156348f5bae6dacd436c919c6dd53e23487da03fd02396306d248cda0"
    "e99f33420f577ee8ce54b67080280d1ec69821bcb6a8839396f965ab6ff72a70"
)


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_subjects_are_every_file_of_every_output(checkout):
    made = record(checkout, "make").statement
    assert made.subjects == {
        "metrics/make.json": FileDigest(sha256("{}\n"), 3),
        "models/small/config.json": FileDigest(sha256("{}"), 2),
        "models/small/model.safetensors": FileDigest(sha256("weights"), 7),
    }
    outputs = made.body["predicate"]["buildDefinition"]["internalParameters"]["outputs"]
    assert outputs["metrics/make.json"] == {"md5": hashlib.md5(b"{}\n").hexdigest(), "size": 3, "n_files": 1}
    assert (outputs["models/small"]["size"], outputs["models/small"]["n_files"]) == (9, 2)
    assert outputs["models/small"]["md5"] == stages.digest(checkout.root / "models" / "small")


def test_the_inputs_are_data_code_and_environment(checkout):
    inputs = record(checkout, "make").statement.inputs
    assert {path: facts["kind"] for path, facts in inputs.items()} == {
        "constraints.txt": "environment",
        "sources": "data",
        "tasks/steps/make.py": "code",
        "tasks/training": "code",
    }
    assert inputs["tasks/steps/make.py"]["sha256"] == sha256("A = 1\n")
    assert inputs["sources"]["sha256"] == sha256(f"{sha256('none' + chr(10))}  README.md\n")
    assert inputs["tasks/training"]["md5"] == stages.digest(checkout.root / "tasks" / "training")


def test_the_closure_is_all_code_by_its_path_and_the_commit_that_has_it(checkout):
    made = record(checkout, "make").statement
    command = "sha256sum tasks/steps/make.py tasks/training/loop.py | sha256sum"
    found = subprocess.run(["sh", "-c", command], cwd=checkout.root, check=True, capture_output=True, text=True)
    assert made.closure == found.stdout.split()[0]
    assert made.commit == git(checkout.root, "rev-parse", "HEAD").strip()
    assert not made.is_dirty


@pytest.mark.parametrize("path", ["tasks/training/loop.py", "tasks/training/new.py"])
def test_code_that_the_commit_does_not_have_is_dirty(checkout, path):
    clean = record(checkout, "use").statement
    (checkout.root / path).write_text("C = 3\n")
    dirty = record(checkout, "use").statement
    assert (clean.is_dirty, dirty.is_dirty) == (False, True)
    assert clean.closure != dirty.closure
    (checkout.root / "tasks" / "steps" / "make.py").write_text("no code of stage use\n")
    assert record(checkout, "use").statement.closure == dirty.closure


def test_a_checkout_without_git_has_no_commit_and_is_dirty(checkout):
    git(checkout.root, "checkout", "-q", "--orphan", "nothing")
    made = record(checkout, "use").statement
    assert (made.commit, made.is_dirty) == (None, True)


def test_a_stage_names_the_statements_behind_its_data(checkout):
    older = record(checkout, "make").statement
    newer = record(checkout, "make").statement
    used = record(checkout, "use").statement
    assert used.statements_behind == [newer.digest] != [older.digest]
    assert newer.statements_behind == []
    assert used.inputs["models/small"]["md5"] == newer.outputs["models/small"]


def test_an_input_that_no_statement_speaks_for_has_none_behind_it(checkout):
    record(checkout, "make")
    (checkout.root / "models" / "small" / "config.json").write_text("[1]")
    assert record(checkout, "use").statement.statements_behind == []


def test_the_part_of_an_output_is_found_by_its_files(checkout):
    import yaml

    graph = yaml.safe_load((checkout.root / "dvc.yaml").read_text())
    graph["stages"]["use"]["deps"] = ["models/small/config.json"]
    (checkout.root / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    made = record(checkout, "make").statement
    used = record(checkout, "use").statement
    assert used.statements_behind == [made.digest]
    assert used.inputs["models/small/config.json"]["kind"] == "data"


def test_what_determines_the_result_is_what_the_stage_depends_on(checkout):
    made, used = record(checkout, "make").statement, record(checkout, "use").statement
    assert made.determines == {"seed": 7, "threads": None, "precision": None, "device": None, "workers": 1}
    assert used.determines == {"seed": 7, "threads": 2, "precision": "float32", "device": "cpu", "workers": 1}
    assert used.parameters == {
        **{k: VALUES[k] for k in ("seed", "threads", "precision", "device")},
        "use": {"rate": 0.1},
    }
    assert made.external == {"stage": "make", "command": "python -m flows.make", "parameters": {"seed": 7}}


def test_who_where_and_when(checkout):
    before = time.time()
    made = record(checkout, "make", started=1000.25, pipeline="cd" * 16).statement
    assert made.who["email"] == "someone@example.org"
    assert made.who["host"] == subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    assert made.started == "1970-01-01T00:16:40.250000Z"
    assert made.finished >= statement.utc(before)
    assert (made.execution, made.pipeline) == ("ab" * 16, "cd" * 16)
    assert made.body["predicate"]["runDetails"]["metadata"]["invocationId"] == "ab" * 16


def test_the_environment_is_what_python_and_the_kernel_say(checkout):
    environment = record(checkout, "make").statement.environment
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["libraries"] == {name: importlib.metadata.version(name) for name in ("cryptography", "pytest")}
    assert environment["machine"] == subprocess.run(["uname", "-m"], capture_output=True, text=True).stdout.strip()
    assert environment["accelerator"] is None


def test_versions_are_those_of_the_metadata_for_every_pinned_library():
    versions = surroundings.libraries(REPOSITORY / "constraints.txt")
    assert len(versions) > 200
    assert versions == {name: importlib.metadata.version(name) for name in versions}


def test_the_statement_is_signed_and_in_the_chain(checkout):
    first, second = record(checkout, "make"), record(checkout, "use")
    assert second.path.name == "000002-use.json"
    assert second.statement.previous == first.statement.digest
    assert envelope.verify(second.envelope, keys.public_keys(checkout.root)) == second.statement.payload


def test_an_input_that_changed_while_the_stage_ran_fails_it(checkout):
    stage = stages.read_stages(checkout.root)["use"]
    inputs = {dep: stages.digest(checkout.root / dep) for dep in stage.deps}
    (checkout.root / "models" / "small" / "config.json").write_text("other")
    with pytest.raises(UserError, match=r"models/small: an input of stage use changed while it ran") as caught:
        record(checkout, "use", inputs=inputs)
    assert caught.value.exit_code == 1
    assert StatementStore.of(checkout).all() == []


def test_an_output_that_changed_after_it_was_written_fails_it(checkout):
    outputs = {"metrics/use.json": stages.digest(checkout.root / "metrics" / "use.json")}
    (checkout.root / "metrics" / "use.json").write_text("other")
    with pytest.raises(UserError, match="changed after it was written"):
        record(checkout, "use", outputs=outputs)
    (checkout.root / "metrics" / "use.json").rename(checkout.root / "metrics" / "moved.json")
    with pytest.raises(UserError, match=r"changed after it was written: .*metrics/use\.json is missing"):
        record(checkout, "use", outputs=outputs)


def test_another_file_of_the_same_md5_is_not_taken_for_what_was_made(checkout):
    model = checkout.root / "models" / "small" / "model.safetensors"
    model.write_bytes(bytes.fromhex(_A))
    record(checkout, "make")
    before = stages.digest(checkout.root / "models" / "small")
    model.write_bytes(bytes.fromhex(_B))
    assert stages.digest(checkout.root / "models" / "small") == before
    with pytest.raises(UserError, match="replaced on purpose"):
        record(checkout, "use")


def test_a_statement_that_cannot_be_written_fails_the_stage_before_and_after(checkout):
    (checkout.root / "lineage").write_text("in the way")
    with pytest.raises(UserError, match=r"statement of stage make cannot be written.*AXON_LINEAGE=off") as caught:
        record(checkout, "make")
    assert caught.value.exit_code == 1
    stage = stages.read_stages(checkout.root)["make"]
    with pytest.raises(UserError, match="cannot be written"):
        recording.prepare(checkout, stage, {})


def test_a_damaged_statement_is_found_before_the_work(checkout):
    made = record(checkout, "make")
    made.path.write_text("{}")
    stage = stages.read_stages(checkout.root)["use"]
    with pytest.raises(UserError, match=r"000001-make\.json is not a readable statement"):
        recording.prepare(checkout, stage, {"models/small": "0" * 32})


def test_a_run_names_its_lock_and_what_made_it(checkout):
    record(checkout, "make")
    made, used = record(checkout, "make").statement, record(checkout, "use").statement
    write_lock(checkout)
    (checkout.root / "metrics" / "use.json").write_text("later")
    record(checkout, "use")
    run = recording.record_run(
        checkout, parameters=VALUES, targets=["use"], execution="cd" * 16, started=time.time()
    ).statement
    assert {path: digest.sha256 for path, digest in run.subjects.items()} == {
        name: hashlib.sha256((checkout.root / name).read_bytes()).hexdigest()
        for name in ("dvc.lock", "dvc.yaml", "params.yaml")
    }
    assert (run.kind, run.statements_behind) == ("run", [made.digest, used.digest])
    assert run.external == {"targets": ["use"], "parameters": VALUES}
    assert (run.execution, run.pipeline) == ("cd" * 16, "cd" * 16)


def register(checkout, **changed):
    arguments = {
        "name": "axon-chat",
        "version": "3",
        "aliases": ("challenger",),
        "model": "small",
        "md5": stages.digest(checkout.root / "models" / "small"),
        "pipeline": None,
        "started": time.time(),
    }
    return recording.record_registration(checkout, **{**arguments, **changed}).statement


def test_a_registration_speaks_for_the_model_and_what_lies_beside_it(checkout):
    made = record(checkout, "make").statement
    write_lock(checkout)
    beside = checkout.root / "lineage" / "models" / "axon-chat-3"
    beside.mkdir(parents=True)
    (beside / "model.sig").write_text("signature")
    (beside / "bom.cdx.json").write_text("{}")
    (beside / "other.txt").write_text("no part of it")
    assert not recording.has_registration(checkout, "axon-chat", "3", made.outputs["models/small"])
    registered = register(checkout)
    assert {path: digest.sha256 for path, digest in registered.subjects.items()} == {
        "lineage/models/axon-chat-3/bom.cdx.json": sha256("{}"),
        "lineage/models/axon-chat-3/model.sig": sha256("signature"),
        "models/small/config.json": sha256("{}"),
        "models/small/model.safetensors": sha256("weights"),
    }
    assert registered.parameters == {
        "name": "axon-chat",
        "version": "3",
        "aliases": ["challenger"],
        "model": "models/small",
        "md5": made.outputs["models/small"],
    }
    assert registered.statements_behind == [made.digest]
    assert recording.has_registration(checkout, "axon-chat", "3", made.outputs["models/small"])
    assert not recording.has_registration(checkout, "axon-chat", "4", made.outputs["models/small"])


def test_an_alias_that_has_moved_is_not_stated_yet(checkout):
    md5 = record(checkout, "make").statement.outputs["models/small"]
    register(checkout)

    def is_stated(version, *aliases):
        return recording.has_registration(checkout, "axon-chat", version, md5, aliases)

    assert is_stated("3", "challenger")
    assert not is_stated("3")
    assert not is_stated("3", "challenger", "champion")
    register(checkout, version="4", aliases=("champion", "challenger"))
    assert not is_stated("3", "challenger")
    assert is_stated("3")
    assert is_stated("4", "challenger", "champion")


def test_a_model_other_than_the_registered_one_gets_no_statement(checkout):
    with pytest.raises(UserError, match="not what was registered as axon-chat version 3"):
        register(checkout, md5="0" * 32 + ".dir")


def test_the_switch(monkeypatch):
    monkeypatch.delenv(recording.SWITCH, raising=False)
    assert recording.is_on()
    monkeypatch.setenv(recording.SWITCH, "OFF")
    assert not recording.is_on()
    monkeypatch.setenv(recording.SWITCH, "no")
    with pytest.raises(UserError, match="AXON_LINEAGE=no in the environment must be on or off"):
        recording.is_on()


def test_recording_imports_no_engine():
    code = "import sys, tasks.lineage.recording, tasks.lineage.events; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "ray", "mlflow", "prefect", "dvc", "openlineage", "duckdb", "pandas"} & set(loaded)
