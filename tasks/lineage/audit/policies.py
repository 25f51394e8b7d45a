"""A policy against the facts of everything behind the models that are asked about."""

from __future__ import annotations

from tasks import registry
from tasks.errors import UserError
from tasks.lineage import ancestry, data_versions, facts, registrations
from tasks.lineage.audit.findings import shown
from tasks.lineage.audit.scene import Entry, Scene
from tasks.lineage.policy import Policy, evaluate


def check(scene: Scene, policy: Policy) -> None:
    """Evaluate the policy for every model asked about; a broken rule is a finding.

    Facts are computed anew from the records (2 MB of text a second), once for each version of the data.
    """
    part = scene.part("policy")
    known = [entry.statement for entry in scene.entries]
    computed: set[str] = set()
    for out, entry in _models(scene):
        part.count("models")
        behind = ancestry.trace(entry.statement, known).statements
        versions = {version.digest for version in data_versions.versions(behind)}
        is_fresh = not versions or not versions <= computed
        computed |= versions
        try:
            found = facts.of_statement(
                scene.checkout, entry.statement, known, out, words=policy.overlap_words, fresh=is_fresh
            )
        except UserError as error:
            part.find(out, expected="the records behind it", found=str(error), do="Fetch them with `dvc pull`.")
            continue
        part.count("licences", len(found.licenses))
        part.count("held-out records", sum(found.overlap.n_items.values()))
        for violation in evaluate(policy, found):
            part.find(
                f"{out}: {violation.where}",
                expected=f"{violation.rule}: {violation.allowed}",
                found=shown(violation.value),
                do=violation.what_to_do,
            )


def _models(scene: Scene) -> list[tuple[str, Entry]]:
    """Outputs with their newest makers: the registered models asked about; without a TARGET those with an alias, and
    the newest. Where nothing is registered: the outputs of the target, or every model that no other is made from."""
    known = [entry.statement for entry in scene.entries]
    versions = [entry for entry in scene.asked if entry.statement.kind == "register"]
    if scene.scope is None:
        named = set(registrations.aliases(known, registry.NAME).values())
        versions = [e for e in versions if str(e.statement.parameters.get("version")) in named or e is versions[-1]]
    wanted = [(str(e.statement.parameters.get("model")), str(e.statement.parameters.get("md5"))) for e in versions]
    if not wanted:
        current = [entry.statement for entry in scene.current_asked.values()]
        read = {path for statement in current for path in statement.inputs}
        wanted = list(scene.outputs) or [
            (out, md5)
            for statement in current
            for out, md5 in statement.outputs.items()
            if out.startswith("models/") and (out not in read or scene.scope is not None)
        ]
    makers = {(out, md5): entry for entry in scene.entries for out, md5 in entry.statement.outputs.items()}
    return [(out, makers[out, md5]) for out, md5 in dict.fromkeys(wanted) if (out, md5) in makers]
