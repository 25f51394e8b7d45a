"""What is slow to make and never altered."""

from __future__ import annotations

import pytest

from tests.tasks.lineage import audited_run


@pytest.fixture(scope="session")
def audited(tmp_path_factory):
    """The checkout of `audited_run`, for tests that alter nothing, or put everything back."""
    return audited_run.make(tmp_path_factory.mktemp("audited"))


@pytest.fixture
def copied(audited, tmp_path):
    """A copy of it, for one test."""
    return audited_run.move(audited, tmp_path / "checkout")
