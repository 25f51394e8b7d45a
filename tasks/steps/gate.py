"""Measure challenger and champion on the items of a decision. No stage of the pipeline: the gate asks for it.

Reads `request.json` in the folder of the decision (the models' directories, the items, the room both have) and writes
`measured.json` there.
"""

from __future__ import annotations

from tasks.files import read_json, write_json
from tasks.promotion import measuring
from tasks.promotion.items import EvaluationSet
from tasks.promotion.measuring import Lengths
from tasks.steps.context import StepContext

REQUEST, MEASURED = "request.json", "measured.json"


def run(context: StepContext) -> None:
    request = read_json(context.checkpoints / REQUEST)
    items = EvaluationSet(request["prompts"], [(record, text) for record, text in request["texts"]])
    work = measuring.shards(items, request["models"], Lengths(**request["lengths"]), context.params)
    results = context.fan_out("gate", "tasks.promotion.measuring:run", [item for _, item in work])
    found = [(key, result) for (key, _), result in zip(work, results, strict=True)]
    write_json(context.checkpoints / MEASURED, measuring.tables(items, found, context.params.gate.n_seeds))
