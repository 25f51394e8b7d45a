"""Empty databases made at installation: copied once, never over one in use, and what the engine itself would make."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tasks.tracking import databases


def tables(path: Path) -> dict[str, list[str]]:
    """The words of each statement; MLflow writes the members of a check in the order of a set."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {name: sorted(re.findall(r"\w+", sql)) for name, sql in rows}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Where an environment of its own keeps its empty databases; none is there."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    folder = tmp_path / "env" / "share" / "axon"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("engine", ["prefect", "mlflow"])
def test_an_installed_database_is_used_by_the_first_run(engine, tmp_path, installed):
    (installed / databases._empty(engine).name).write_bytes(b"empty tables")
    databases.provide(engine, tmp_path / "state" / "x.db")
    assert (tmp_path / "state" / "x.db").read_bytes() == b"empty tables"
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["x.db"]


def test_the_folder_of_a_database_is_its_owners_alone(tmp_path, installed):
    (installed / databases._empty("prefect").name).write_bytes(b"empty tables")
    databases.provide("prefect", tmp_path / "prefect" / "prefect.db")
    assert (tmp_path / "prefect").stat().st_mode & 0o777 == 0o700


def test_where_files_cannot_have_two_names_the_engine_makes_its_own(tmp_path, installed, monkeypatch):
    def refuse(*_arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(databases.os, "link", refuse)
    (installed / databases._empty("mlflow").name).write_bytes(b"empty tables")
    databases.provide("mlflow", tmp_path / "state" / "x.db")
    assert list((tmp_path / "state").iterdir()) == []


def test_a_database_in_use_is_left_alone(tmp_path, installed):
    (installed / databases._empty("mlflow").name).write_bytes(b"empty")
    (tmp_path / "x.db").write_bytes(b"years of runs")
    databases.provide("mlflow", tmp_path / "x.db")
    assert (tmp_path / "x.db").read_bytes() == b"years of runs"


def test_without_an_installed_one_the_engine_makes_its_own(tmp_path, installed):
    databases.provide("mlflow", tmp_path / "x.db")
    assert not (tmp_path / "x.db").exists()


def test_the_empty_database_has_the_tables_that_mlflow_makes(tmp_path, installed):
    made = tmp_path / "made"
    made.mkdir()
    environment = os.environ | {"STORE": f"sqlite:///{tmp_path / 'own.db'}"}
    # Beside the other: all migrations, twice, are what takes the time here.
    own = subprocess.Popen(databases._MLFLOW, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    databases._make("mlflow", databases._MLFLOW, {"STORE": f"sqlite:///{made / 'mlflow.db'}"}, made / "mlflow.db")
    assert own.wait(timeout=300) == 0
    (kept,) = installed.iterdir()
    assert tables(kept) == tables(tmp_path / "own.db")
    with closing(sqlite3.connect(kept)) as database:
        assert database.execute("SELECT count(*) FROM experiments").fetchone() == (0,)
