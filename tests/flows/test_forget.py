"""A record planted in a source, followed with the real engines through to the policy, and forgotten."""

import json
from pathlib import Path

import pytest

from tests.flows.workspace import TINY, Workspace
from tests.tasks.data import corpus
from tests.tasks.lineage.forget_workspace import PLANTED_ID, holding

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.timeout(1800)]
PLANTED = {
    # All text is the planted corpus, so that the few steps of the tiny run get to see the record.
    "data.files": corpus.OVERRIDES["data.files"],
    "data.python_docs.packages": [],
    "data.max_damaged_fraction": 0.2,
    "tokenizer.vocab_size": 400,  # what is left of the text without the record has no more
}
MODELS = {f"models/{name}" for name in ("pretrain", "sft", "reward_model", "ppo", "dpo", "sft_continued")}


def holders(workspace: Workspace) -> dict[str, str]:
    """What the planted record is said to have shaped, by path or version, with the digest of each."""
    result = workspace.axon("lineage", "record", PLANTED_ID.hex(), "--format", "json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["unindexed"] == []
    return {holder["name"]: holder["md5"] for holder in found["holders"] if holder["is_shaped"]}


def done(workspace: Workspace, *arguments: str) -> str:
    result = workspace.axon(*arguments)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_a_planted_record_reaches_the_policy_and_is_nowhere_after_forget_rebuild_and_purge(tmp_path: Path):
    workspace = Workspace.create(tmp_path / "checkout")
    workspace.set_parameters(TINY | PLANTED)
    corpus.planted(workspace.root)
    done(workspace, "run")
    held = holders(workspace)
    assert {name for name in held if "@" in name} == {"axon-chat@1"}
    assert {holder.partition("@")[0] for holder in held} >= MODELS
    assert any(path.startswith(".dvc/cache/") for path in holding(workspace.root))

    said = done(workspace, "forget", "--record", PLANTED_ID.hex(), "--yes")
    assert "axon-chat 1 (challenger, champion) holds them; it is tagged and loses challenger and champion" in said
    assert "models/ppo" in said
    again = done(workspace, "run")
    assert "✓ ppo" in again
    lock = workspace.lock.decode()
    assert [name for name, md5 in holders(workspace).items() if md5 in lock] == []

    done(workspace, "forget", "--purge", "--yes")
    # The tests themselves, of which the workspace has a copy, spell the record out.
    assert [path for path in holding(workspace.root) if not path.startswith("tests/")] == []
    audit = workspace.axon("audit")
    assert audit.returncode == 0, audit.stdout[-3000:]
