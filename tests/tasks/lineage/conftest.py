"""What is slow to make and never altered."""

from __future__ import annotations

import pytest

from tasks.lineage.audit import anchoring, examination, snapshot
from tasks.lineage.store import StatementStore
from tests.tasks.lineage import audited_run, forget_workspace


@pytest.fixture(scope="session")
def audited(tmp_path_factory):
    """The checkout of `audited_run`, for tests that alter nothing, or put everything back."""
    return audited_run.make(tmp_path_factory.mktemp("audited"))


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """The checkout of `forget_workspace` behind its first run; whoever alters anything takes a copy."""
    checkout = forget_workspace.make(tmp_path_factory.mktemp("planted") / "checkout")
    assert forget_workspace.run(checkout) == ["data", "tokenizer", "pretrain"]
    return checkout


@pytest.fixture
def copied(audited, tmp_path):
    """A copy of it, for one test."""
    return audited_run.move(audited, tmp_path / "checkout")


@pytest.fixture(scope="session")
def anchor(audited):
    """The anchor of its chain, as an outside auditor was given it."""
    head = StatementStore.of(audited).head()
    return anchoring.given([head.key], head.digest)


@pytest.fixture
def still_store(audited, monkeypatch):
    """MLflow's store is read once: for tests that alter files and no row of it."""
    scene = examination.of_checkout(audited)
    assert not scene.report.findings
    known = snapshot.load(scene)
    monkeypatch.setattr(snapshot, "load", lambda _: known)
