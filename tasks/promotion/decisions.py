"""Which version is the champion, by which decision: recorded as a signed statement first, then done in the registry.

The statement is what counts. A process that ends between the two leaves a note; the next command finds it and sets the
alias that the statement gives.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.files import read_json, write_bytes, write_json
from tasks.lineage import hashing, keys, recording, registrations, statement, surroundings
from tasks.lineage.statement import Statement
from tasks.lineage.store import StatementStore, Stored
from tasks.promotion import items
from tasks.promotion.items import EvaluationSet
from tasks.registry import CHAMPION, NAME
from tasks.runtime.checkout import Checkout
from tasks.state_files import DAMAGE
from tasks.tracking import mlflow_store

KIND = "decide"
PROMOTED, KEPT, ROLLED_BACK, NOT_RETRAINED = "promoted", "kept", "rolled back", "not retrained"


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version as its statement registers it; `figures` are those of its own evaluation, where they were recorded."""

    version: str
    model: str
    md5: str
    figures: Mapping[str, float | None]
    statement: Statement


def registered(statements: list[Statement]) -> dict[str, Registered]:
    """Version → what its newest registration says."""
    return {
        str(s.parameters["version"]): Registered(
            version=str(s.parameters["version"]),
            model=str(s.parameters["model"]),
            md5=str(s.parameters["md5"]),
            figures=s.parameters.get("figures") or {},
            statement=s,
        )
        for s in statements
        if s.kind == "register" and s.parameters.get("name") == NAME
    }


def statements_of(checkout: Checkout) -> list[Statement]:
    return [stored.statement for stored in StatementStore.of(checkout).all()]


def history(statements: list[Statement]) -> list[Statement]:
    """The decisions, oldest first."""
    return [s for s in statements if s.kind == KIND and s.parameters.get("name") == NAME]


def of_occasion(statements: list[Statement], occasion: str | None) -> Statement | None:
    """The decision that a retraining came to, by the id of its occasion; None while it has come to none."""
    found = (s for s in reversed(history(statements)) if occasion in s.parameters.get("occasions", ()))
    return next(found, None) if occasion else None


def _note(checkout: Checkout) -> Path:
    return checkout.state / "promotion" / "pending.json"


def record(
    checkout: Checkout,
    *,
    action: str,
    version: str,
    champion: str | None,
    reason: str,
    started: float,
    content: Mapping[str, Any] | None = None,
    evaluated_on: EvaluationSet | None = None,
    execution: str | None = None,
) -> Stored:
    """State a decision on `version`, then carry it out. `champion`: who held the place before.

    action: "promoted" and "rolled back" give `version` the place, "kept" and "not retrained" leave it. Raises
    `UserError` where statements are switched off: nobody could say later why a model was let out.
    """
    if not recording.is_on():
        raise UserError(f"{recording.SWITCH}=off: a decision without a statement cannot be answered for. Unset it.")
    root, store = checkout.state.parent, StatementStore.of(checkout)
    known = registered(statements_of(checkout))
    subjects = _subjects(root, version, evaluated_on)
    aliases = {CHAMPION: version} if action in (PROMOTED, ROLLED_BACK) else {}
    facts = {
        "name": NAME, "action": action, "version": version, "champion": champion, "aliases": aliases, "reason": reason,
        **(content or {}),
    }  # fmt: skip
    behind = [known[v].statement for v in (version, champion) if v in known]
    body = statement.build(
        KIND,
        subjects=subjects,
        external={"parameters": facts},
        internal={},
        materials=statement.behind(behind),
        execution=execution,
        pipeline=None,
        started=started,
        finished=time.time(),
        who=surroundings.who(checkout.root),
    )
    key = keys.signing_key(checkout)
    write_json(_note(checkout), {"aliases": aliases})
    written = store.append(KIND, body, key)
    settle(checkout)
    return written


def _subjects(root: Path, version: str, evaluated_on: EvaluationSet | None) -> dict[str, hashing.FileDigest]:
    """The files that a decision speaks for: the list of items, and signature and bill of materials of the version."""
    subjects: dict[str, hashing.FileDigest] = {}
    if evaluated_on is not None:
        name = f"{items.FOLDER}/{evaluated_on.digest}.json"
        if not (root / name).is_file():
            write_bytes(root / name, evaluated_on.to_bytes())
            (root / name).chmod(0o644)
        subjects.update(hashing.tree(root / name).named(name))
    beside = f"lineage/models/{NAME}-{version}"
    if (root / beside).is_dir():
        subjects.update(hashing.tree(root / beside).named(beside))
    return subjects


def settle(checkout: Checkout) -> None:
    """Set in the registry what the newest decision says, if it was not done yet. Each alias moves in one step."""
    note = _note(checkout)
    if not note.is_file():
        return
    stated = registrations.aliases(statements_of(checkout), NAME)
    try:
        wanted = dict(read_json(note)["aliases"])
    except DAMAGE:  # the statements say it too
        wanted = {alias: version for alias, version in stated.items() if alias == CHAMPION}
    if not wanted:
        note.unlink()
        return
    if all(stated.get(alias) == version for alias, version in wanted.items()):
        store = mlflow_store.client(checkout)
        for alias, version in wanted.items():
            store.set_registered_model_alias(NAME, alias, version)
    note.unlink()


def last_set(checkout: Checkout, statements: list[Statement]) -> Mapping[str, Any] | None:
    """The list of the items that the last decision of the gate was made on; None if there was none."""
    for decided in reversed(history(statements)):
        digest = decided.parameters.get("evaluation_set")
        path = checkout.state.parent / items.FOLDER / f"{digest}.json"
        if digest and path.is_file():
            content: Mapping[str, Any] = read_json(path)
            return content
    return None
