"""What an audit says of DVC's cache and of MLflow: earlier versions, what is not there, what nobody stated."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

from tasks.lineage.store import StatementStore
from tasks.runtime import stages
from tasks.tracking.journal import Journal
from tests.tasks.lineage import audited_run
from tests.tasks.lineage.auditing import newest_values, places, report_of

# Two files of the same MD5: Wang, Feng, Lai and Yu 2004, "Collisions for Hash Functions MD4, MD5, HAVAL-128, RIPEMD".
_COLLISION = (
    "d131dd02c5e6eec4693d9a0698aff95c2fcab5{}712467eab4004583eb8fb7f8955ad340609f4b30283e4888325{}1415a085125e8f7cdc99fd91"
    "dbd{}280373c5bd8823e3156348f5bae6dacd436c919c6dd53e2{}487da03fd02396306d248cda0e99f33420f577ee8ce54b67080{}80d1ec6982"
    "1bcb6a8839396f965{}b6ff72a70"
)


COLLIDING = [
    bytes.fromhex(_COLLISION.format(*digits))
    for digits in (("8", "7", "f", "b", "a", "2"), ("0", "f", "7", "3", "2", "a"))
]


def test_earlier_versions_that_are_nowhere_are_counted_and_no_finding(copied):
    old = StatementStore.of(copied).all()[2].statement  # ppo of the first run
    md5 = old.outputs["models/ppo"]
    (copied.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]).unlink()
    copies = [
        path for path in (copied.state / "mlflow-artifacts" / "models").iterdir()
        if stages.digest(path / "artifacts") == md5
    ]  # fmt: skip
    assert len(copies) == 1
    shutil.rmtree(copies[0])
    report = report_of(copied)
    # the version that was registered then is still there for whoever asks for it, and its files are not
    assert {place.partition("/")[0] for place in places(report)} == {"MLflow axon-chat version 1"}
    assert report.not_reachable["artifacts"] == {"outputs of earlier executions": 1}
    assert report.not_reachable["tracking"] == {"models of earlier executions": 1}


def test_files_of_the_same_md5_are_told_apart(copied):
    one, other = COLLIDING
    weights = copied.root / "models" / "ppo" / "model.safetensors"
    weights.write_bytes(one)
    values = newest_values(copied)
    audited_run.run(copied, values, ["ppo", "evaluate"])
    assert report_of(copied).findings == []
    weights.write_bytes(other)
    name = audited_run.cache(copied.root, weights)
    place = copied.root / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]
    place.chmod(0o600)
    place.write_bytes(other)
    found = places(report_of(copied))
    assert "models/ppo/model.safetensors" in found
    assert place.relative_to(copied.root).as_posix() in found


def test_without_a_store_of_mlflow_it_says_so(copied):
    (copied.state / "mlflow.db").unlink()
    report = report_of(copied)
    assert report.findings == []
    assert report.not_reachable["tracking"] == {"MLflow store": 1}
    assert not (copied.state / "mlflow.db").exists()


def test_a_damaged_store_of_mlflow_is_found(copied):
    (copied.state / "mlflow.db").write_bytes(b"SQLite format 3\0" + bytes(5000))
    assert ".axon/mlflow.db" in places(report_of(copied))


def test_what_mlflow_was_not_told_yet_is_no_finding(copied):
    values = newest_values(copied)
    with Journal(copied.journals, "pipeline") as record:
        record.start("pipeline", kind="pipeline", params=values)
        audited_run.execute(copied, stages.read_stages(copied.root)["evaluate"], values, record.id)
    report = report_of(copied)
    assert report.findings == []
    assert report.not_reachable["tracking"] == {"runs that MLflow was not told of yet": 1}
    audited_run.Sender(copied).deliver()
    assert report_of(copied).not_reachable["tracking"] == {"runs without a statement": 1}  # the pipeline's


def test_a_version_that_no_statement_registers_is_found(copied):
    from tasks.tracking import mlflow_store

    store = mlflow_store.client(copied)
    source = store.get_model_version("axon-chat", "1").source
    store.create_model_version("axon-chat", source=source, tags={"axon.digest": "0"})
    assert places(report_of(copied)) == ["MLflow axon-chat version 3"]


def test_a_folder_of_a_version_that_no_statement_registers_is_found(copied):
    shutil.copytree(
        copied.root / "lineage" / "models" / "axon-chat-1", copied.root / "lineage" / "models" / "axon-chat-9"
    )
    assert places(report_of(copied)) == ["lineage/models/axon-chat-9"]


def test_aliases_that_a_request_to_forget_took_are_not_missed(copied):
    from tasks.tracking import mlflow_store

    store = mlflow_store.client(copied)
    store.set_model_version_tag("axon-chat", "1", "contains-removed-data", "true")
    store.delete_registered_model_alias("axon-chat", "champion")
    assert places(report_of(copied)) == [
        "MLflow axon-chat version 1 tags contains-removed-data",
        "MLflow axon-chat alias champion",
    ]
    held = {"version": "1", "certainty": "true", "aliases": ["champion"]}
    audited_run.add_statement(copied, "forget", {"versions": [held]})
    assert report_of(copied).findings == []
    old = StatementStore.of(copied).all()[2].statement.outputs["models/ppo"]
    for model in store.search_logged_models([mlflow_store.experiment_id(store, copied)]):
        if model.tags["axon.digest"] == old:  # as the purge does
            shutil.rmtree(model.artifact_location.removeprefix("file://"))
            store.delete_logged_model(model.model_id)
    report = report_of(copied)
    assert report.findings == []
    assert report.not_reachable["registered"]["models that were purged"] == 1


def test_a_local_remote_is_hashed_too(copied, tmp_path):
    remote = tmp_path / "remote"
    shutil.copytree(copied.root / ".dvc" / "cache" / "files", remote / "files")
    with (copied.root / ".dvc" / "config").open("a") as config:
        config.write(f"['remote \"store\"']\n    url = {remote}\n['remote \"away\"']\n    url = s3://bucket/path\n")
    report = report_of(copied)
    assert report.findings == []
    assert report.checked["cache"]["objects"] == 22
    assert report.not_reachable["cache"] == {"remotes that are not local": 1}
    [path] = list((remote / "files" / "md5").glob("??/*.dir"))[:1]
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b'"', b"'", 1))
    [place] = places(report_of(copied))
    assert place.startswith("remote store: ")
    assert place.endswith(f"{path.parent.name}/{path.name}")


def test_an_altered_run_cache_is_found(copied):
    [path, *_] = sorted((copied.root / ".dvc" / "cache" / "runs").glob("??/*/*"))
    path.write_text(path.read_text().replace("md5: ", "md5: 0", 1))
    assert places(report_of(copied)) == [path.relative_to(copied.root).as_posix()]


def test_a_run_that_claims_a_statement_is_found(copied):
    from tasks.tracking import mlflow_store

    store = mlflow_store.client(copied)
    experiment = mlflow_store.experiment_id(store, copied)
    store.create_run(experiment, run_name="ppo", tags={"axon.execution": "f" * 32, "axon.statement": "0" * 64})
    [place] = places(report_of(copied))
    assert place.startswith("MLflow run ppo ffff")
    with closing(sqlite3.connect(copied.state / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone()[0] == 9
