"""The record index after a run: what stands in the workspace is indexed, what came by git alone is left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.lineage import indexing
from tasks.runtime.checkout import Checkout
from tests.tasks.lineage import forget_workspace as workspace


@pytest.fixture
def checkout(planted, tmp_path) -> Checkout:
    """A copy of the finished run without its index."""
    shutil.copytree(planted.root, tmp_path / "checkout")
    shutil.rmtree(tmp_path / "checkout" / ".axon" / "records")
    return Checkout(tmp_path / "checkout")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("uses-*.parquet")}


def update(checkout: Checkout) -> list[Path]:
    return indexing.bring_up_to_date(checkout, workspace.parameters(checkout).model_dump(mode="json"))


def test_a_lost_index_is_made_anew_from_what_stands_in_the_workspace(planted, checkout):
    update(checkout)
    assert names(checkout.state / "records") == names(planted.state / "records") != set()
    assert update(checkout) == []


def test_a_clone_has_the_statements_and_not_what_they_made(checkout):
    for folder in ("data", "tokenizer", "tokens", "models"):
        shutil.rmtree(checkout.root / folder, ignore_errors=True)
    assert update(checkout) == []


def test_what_was_made_from_data_that_was_replaced_is_left_out(checkout):
    (checkout.root / "data" / "text.parquet").write_bytes(b"the data of tomorrow")
    assert update(checkout) == []
