"""How a model was made, as CycloneDX's `formulation`: one workflow for each statement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tasks.lineage import ancestry, bom_graph
from tasks.lineage.bom_graph import Graph
from tasks.lineage.model_card import properties
from tasks.lineage.statement import Statement
from tasks.tracking.mlflow_store import flatten


def workflow(statement: Statement, graph: Graph, product: str | None) -> dict[str, Any]:
    """One execution of a stage; `product` refers to the registered model if the statement is that of its making."""
    inputs = [bom_graph.reference(path, digests["sha256"]) for path, digests in statement.inputs.items()]
    made = [(out, ancestry.digest_of(statement, out)) for out in statement.outputs]
    outputs = [bom_graph.reference(out, sha256) for out, sha256 in made if sha256]
    if product is not None:
        outputs.append(product)
    return {
        "bom-ref": f"statement/{statement.sequence:06d}-{statement.stage}",
        "uid": statement.digest,
        "name": str(statement.stage),
        "taskTypes": ["build"],
        "timeStart": statement.started,
        "timeEnd": statement.finished,
        "inputs": [{"resource": {"ref": ref}} for ref in _in_graph(inputs, graph)],
        "outputs": [{"type": "artifact", "resource": {"ref": ref}} for ref in _in_graph(outputs, graph)],
        "properties": properties(_details(statement)),
    }


def _in_graph(references: Iterable[str], graph: Graph) -> list[str]:
    return [ref for ref in dict.fromkeys(references) if ref in graph.components]


def _details(statement: Statement) -> dict[str, Any]:
    """What determined the execution, without who and on which host."""
    environment = {key: statement.environment.get(key) for key in ("machine", "processor", "accelerator")}
    return {
        "statement:sha256": statement.digest,
        "command": statement.external.get("command"),
        "code:sha256": statement.closure,
        "code:commit": statement.commit,
        "code:is_dirty": statement.is_dirty,
        **{f"determines:{name}": value for name, value in statement.determines.items()},
        **{f"environment:{name}": value for name, value in environment.items()},
        **{f"parameter:{name}": value for name, value in flatten(statement.parameters).items()},
    }
