"""Whatever is altered in the covered rows of MLflow's database is found, and the finding names it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tasks.lineage.audit import examination
from tests.tasks.lineage.auditing import flipped, names, told

SEED = 20261


# Each: a name, SQL that alters covered rows, and what the place of the finding must hold. {ppo} is the newest PPO run.
ROWS = [
    ("UPDATE runs SET name = 'sft' WHERE run_uuid = '{ppo}'", "run ppo", "name"),
    ("UPDATE runs SET status = 'FAILED' WHERE run_uuid = '{ppo}'", "run ppo", "status"),
    ("UPDATE runs SET status = 'RUNNING' WHERE run_uuid = '{ppo}'", "run ppo", "status"),
    ("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = '{ppo}'", "run ppo", "lifecycle_stage"),
    ("UPDATE runs SET artifact_uri = artifact_uri || 'x' WHERE run_uuid = '{ppo}'", "run ppo", "artifact_uri"),
    ("UPDATE params SET value = '0.05' WHERE key = 'ppo.kl_coef' AND run_uuid = '{ppo}'", "run ppo", "ppo.kl_coef"),
    ("UPDATE params SET key = 'ppo.x' WHERE key = 'ppo.kl_coef' AND run_uuid = '{ppo}'", "run ppo", "ppo.kl_coef"),
    ("DELETE FROM params WHERE key = 'seed' AND run_uuid = '{ppo}'", "run ppo", "seed"),
    ("INSERT INTO params (key, value, run_uuid) VALUES ('extra', '1', '{ppo}')", "run ppo", "extra"),
    ("UPDATE tags SET value = '0' WHERE key = 'input.models/sft' AND run_uuid = '{ppo}'", "ppo", "input.models/sft"),
    ("UPDATE tags SET value = '0' WHERE key = 'output.models/ppo' AND run_uuid = '{ppo}'", "ppo", "output.models/ppo"),
    ("DELETE FROM tags WHERE key = 'axon.statement' AND run_uuid = '{ppo}'", "run ppo", "axon.statement"),
    ("UPDATE tags SET value = '{zeros}' WHERE key = 'axon.statement' AND run_uuid = '{ppo}'", "ppo", "axon.statement"),
    ("UPDATE tags SET value = 'pipeline' WHERE key = 'axon.kind' AND run_uuid = '{ppo}'", "run ppo", "axon.kind"),
    ("UPDATE tags SET value = 'x' WHERE key = 'mlflow.runName' AND run_uuid = '{ppo}'", "run ppo", "runName"),
    ("UPDATE tags SET value = '{ppo}' WHERE key = 'mlflow.parentRunId' AND run_uuid = '{ppo}'", "run ppo", "parent"),
    ("DELETE FROM tags WHERE key = 'mlflow.parentRunId' AND run_uuid = '{ppo}'", "run ppo", "parent"),
    ("UPDATE tags SET value = 'other' WHERE key = 'axon.execution' AND run_uuid = '{ppo}'", "MLflow run ppo"),
    ("INSERT INTO tags (key, value, run_uuid) VALUES ('input.more', '0', '{ppo}')", "run ppo", "input.more"),
    ("UPDATE params SET value = '8' WHERE key = 'seed' AND run_uuid = '{pipeline}'", "run pipeline", "seed"),
    ("UPDATE tags SET value = 'x' WHERE key = 'axon.statement' AND run_uuid = '{pipeline}'", "pipeline", "statement"),
    ("UPDATE params SET value = '8' WHERE key = 'seed' AND run_uuid = '{old_ppo}'", "run ppo", "seed"),
    ("DELETE FROM datasets WHERE name = 'models/sft'", "data set", "models/sft"),
    ("UPDATE datasets SET digest = '0' WHERE name = 'models/sft'", "data set", "models/sft"),
    ("UPDATE datasets SET name = 'models/sfu' WHERE name = 'models/sft'", "data set", "models/sft"),
    ("UPDATE datasets SET dataset_source = '{{}}' WHERE name = 'models/sft'", "data set", "models/sft"),
    ("DELETE FROM inputs WHERE destination_type = 'MODEL_OUTPUT' AND source_id = '{ppo}'", "logged model"),
    ("DELETE FROM inputs WHERE destination_id = '{ppo}'", "run ppo", "data set"),
    ("UPDATE logged_models SET name = 'sfu' WHERE name = 'sft'", "logged model", "name"),
    ("UPDATE logged_models SET status = 1 WHERE name = 'sft'", "logged model", "status"),
    ("UPDATE logged_models SET source_run_id = '{ppo}' WHERE name = 'sft'", "logged model", "source_run_id"),
    ("UPDATE logged_models SET artifact_location = artifact_location || '/x'", "logged model", "artifact_location"),
    ("UPDATE logged_models SET lifecycle_stage = 'deleted' WHERE name = 'sft'", "logged model sft"),
    ("UPDATE logged_model_tags SET tag_value = '0'", "logged model", "axon.digest"),
    ("DELETE FROM logged_model_tags", "logged model", "axon.digest"),
    ("UPDATE model_versions SET source = (SELECT source FROM model_versions WHERE version = 1) WHERE version = 2",
     "axon-chat version 2"),
    ("UPDATE model_versions SET source = 'file:///nowhere' WHERE version = 2", "axon-chat version 2", "source"),
    ("UPDATE model_versions SET storage_location = 'file:///nowhere' WHERE version = 2", "version 2", "download"),
    ("UPDATE model_versions SET run_id = '{old_ppo}' WHERE version = 2", "axon-chat version 2", "run_id"),
    ("UPDATE model_versions SET status = 'FAILED_REGISTRATION' WHERE version = 2", "axon-chat version 2", "status"),
    ("UPDATE model_versions SET version = 3 WHERE version = 2", "axon-chat version 2"),
    ("UPDATE model_version_tags SET value = '0' WHERE key = 'axon.digest' AND version = 2", "version 2", "axon.digest"),
    ("UPDATE model_version_tags SET value = 'sft' WHERE key = 'axon.stage' AND version = 1", "version 1", "axon.stage"),
    ("DELETE FROM model_version_tags WHERE version = 1", "axon-chat version 1", "tags"),
    ("UPDATE registered_model_aliases SET version = 2 WHERE alias = 'champion'", "alias champion"),
    ("UPDATE registered_model_aliases SET alias = 'chanpion' WHERE alias = 'champion'", "alias champion"),
    ("DELETE FROM registered_model_aliases WHERE alias = 'challenger'", "alias challenger"),
    ("INSERT INTO registered_model_aliases (alias, version, name, workspace) "
     "VALUES ('best', 1, 'axon-chat', 'default')", "alias best"),
    ("UPDATE experiments SET artifact_location = 'file:///nowhere' WHERE name = 'axon'", "MLflow run", "artifact_uri"),
    ("UPDATE experiments SET name = 'axom' WHERE name = 'axon'", "MLflow run"),
    ("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'axon'", "MLflow experiment"),
]  # fmt: skip


@pytest.fixture(scope="module")
def store(audited):
    """(SQL → alter the rows while a block runs, the names that SQL may use)."""
    path = audited.state / "mlflow.db"
    kept = sqlite3.connect(":memory:")
    with closing(sqlite3.connect(path)) as connection:
        connection.backup(kept)

        def run_of(name: str, order: str) -> str:
            query = f"SELECT run_uuid FROM runs WHERE name = '{name}' ORDER BY start_time {order}"
            return str(connection.execute(query).fetchone()[0])

        ids = {"ppo": run_of("ppo", "DESC"), "old_ppo": run_of("ppo", "ASC"), "pipeline": run_of("pipeline", "DESC")}

    @contextmanager
    def alter(*statements: str) -> Iterator[None]:
        with closing(sqlite3.connect(path)) as connection:
            changed = sum(connection.execute(sql.format(**ids, zeros="0" * 64)).rowcount for sql in statements)
            assert changed > 0, statements
            connection.commit()
        try:
            yield
        finally:
            with closing(sqlite3.connect(path)) as connection:
                kept.backup(connection)

    return alter


@pytest.mark.parametrize(("sql", "parts"), [(row[0], row[1:]) for row in ROWS], ids=range(len(ROWS)))
def test_an_altered_row_of_mlflow_is_found(audited, store, sql, parts):
    with store(sql):
        report = examination.of_checkout(audited).report
    assert report.exit_code == 1, sql
    assert names(report, *parts), told(report)


def test_a_run_whose_rows_are_all_gone_is_found(audited, store):
    tables = ("params", "tags", "metrics", "latest_metrics", "runs")
    with store(*[f"DELETE FROM {table} WHERE run_uuid = '{{old_ppo}}'" for table in tables]):
        report = examination.of_checkout(audited).report
    assert names(report, "MLflow run ppo"), told(report)


def test_random_alterations_of_parameters_and_tags_are_found(audited, store):
    chance = random.Random(SEED)
    with closing(sqlite3.connect(audited.state / "mlflow.db")) as connection:
        rows = [("params", *row) for row in connection.execute("SELECT key, run_uuid, value FROM params")]
        rows += [
            ("tags", *row)
            for row in connection.execute("SELECT key, run_uuid, value FROM tags")
            if row[0].startswith(("axon.", "input.", "output."))
        ]
    for table, key, run, value in chance.sample(rows, 30):
        other = (
            flipped(value.encode(), chance).decode("latin-1").replace("'", "''").replace("{", "{{").replace("}", "}}")
        )
        with store(f"UPDATE {table} SET value = '{other}' WHERE key = '{key}' AND run_uuid = '{run}'"):
            report = examination.of_checkout(audited).report
        assert names(report, "MLflow", key if key != "axon.execution" else ""), f"{key}\n{told(report)}"


# Alterations of the whole chain, each with what the place of the finding must hold.
