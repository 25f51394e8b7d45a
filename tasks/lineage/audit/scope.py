"""What an audit with a TARGET looks at: the statements of the target and all behind them."""

from __future__ import annotations

from tasks.errors import UserError
from tasks.lineage import ancestry
from tasks.lineage.audit.scene import Scene
from tasks.lineage.graph import Graph
from tasks.lineage.statement import Statement
from tasks.lineage.targets import Resolver

_ALLOWED = "An output, a stage, a run or a registered version can be audited."


def narrow(scene: Scene, target: str) -> str:
    """Set `scene.scope` to what stands behind the target; returns its name. Raises `UserError` for an unknown one."""
    known = [entry.statement for entry in scene.entries]
    found = Resolver(Graph(known), scene.checkout).resolve(target)
    if not found.statements:
        raise UserError(f"{found.name} has no statement of its own that could be audited. {_ALLOWED}")
    digests: set[str] = set()
    for statement in found.statements:
        digests |= {behind.digest for behind in ancestry.trace(statement, known).statements}
        digests |= {other.digest for other in known if _registers(other, statement)}
    scene.scope = frozenset(digests)
    scene.outputs = tuple((artifact.path, artifact.digest) for artifact in found.artifacts)
    return found.name


def _registers(other: Statement, statement: Statement) -> bool:
    """Whether `other` registers a model that `statement` made."""
    facts = other.parameters
    return other.kind == "register" and statement.outputs.get(facts.get("model", "")) == facts.get("md5")
