"""What statements say of registered versions: which alias points at which, after all that was recorded."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.lineage.statement import Statement


def aliases(statements: Iterable[Statement], name: str) -> dict[str, str]:
    """Alias → version of the registered model `name`, as registrations, decisions and requests to forget leave them.

    A registration names all aliases that its version has then; a decision those that it moves; an alias points at one
    version.
    """
    found: dict[str, str] = {}
    for statement in statements:
        facts = statement.parameters
        if statement.kind == "register" and facts.get("name") == name:
            version = str(facts.get("version"))
            found = {alias: held for alias, held in found.items() if held != version}
            found.update((str(alias), version) for alias in facts.get("aliases") or ())
        elif statement.kind == "decide" and facts.get("name") == name:
            found.update((str(alias), str(version)) for alias, version in (facts.get("aliases") or {}).items())
        elif statement.kind == "forget":
            gone = {str(held.get("version")) for held in facts.get("versions") or ()}
            found = {alias: held for alias, held in found.items() if held not in gone}
    return found


def with_removed_data(statements: Iterable[Statement]) -> dict[str, str]:
    """Version → certainty, "true" or "unknown", that it holds records which were asked to be forgotten."""
    return {
        str(held.get("version")): str(held.get("certainty"))
        for statement in statements
        if statement.kind == "forget"
        for held in statement.parameters.get("versions") or ()
    }
