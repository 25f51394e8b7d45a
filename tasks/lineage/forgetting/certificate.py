"""The signed statement of what was removed and what remains; without the key and the statements there is none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tasks.data import removal_list
from tasks.lineage import hashing, keys, recording, statement, surroundings
from tasks.lineage.store import StatementStore, Stored
from tasks.runtime.checkout import Checkout

NAME = "forget"
MAX_RECORDS_NAMED = 1000


def write(checkout: Checkout, action: str, content: Mapping[str, Any], *, started: float) -> Stored | None:
    """Sign and append a certificate of `action` ("list" or "purge"); None where statements are switched off.

    Its subjects are the removal list and `dvc.lock`; `content` are its parameters. Of many records only the first are
    named: the digest of the list stands for all.
    """
    if not recording.is_on():
        return None
    root, store = checkout.root, StatementStore.of(checkout)
    subjects = {}
    for name in (str(removal_list.PATH), "dvc.lock"):
        if (root / name).is_file():
            subjects.update(hashing.tree(root / name).named(name))
    named = {**content, "records": list(content.get("records", []))[:MAX_RECORDS_NAMED]}
    body = statement.build(
        NAME,
        subjects=subjects,
        external={"action": action, "parameters": named},
        internal={},
        materials=statement.behind(list(recording.current(checkout, store).values())),
        execution=None,
        pipeline=None,
        started=started,
        finished=time.time(),
        who=surroundings.who(root),
    )
    return store.append(NAME, body, keys.signing_key(checkout))
