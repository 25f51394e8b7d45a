"""The gate: challenger and champion measured on the same held-out items, the rules applied, the decision recorded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows import services
from flows.progress import Progress
from tasks import registry
from tasks.errors import UserError
from tasks.files import read_json, write_json
from tasks.lineage import registrations
from tasks.lineage.statement import Statement
from tasks.model_configs import padded_positions
from tasks.parameters import Parameters
from tasks.promotion import decisions, gate
from tasks.promotion.decisions import Registered
from tasks.promotion.gate import Decision, Measured, Rules
from tasks.promotion.items import EvaluationSet, HeldOut
from tasks.registry import CHALLENGER, CHAMPION, NAME
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout
from tasks.tracking import journal
from tasks.tracking.journal import Journal


@contextmanager
def engines(checkout: Checkout, params: Parameters) -> Iterator[None]:
    """What a gate needs outside a pipeline run: Ray, and somebody who tells MLflow."""
    guard.close_earlier_runs(checkout)
    with (
        guard.run_guard(checkout, uuid.uuid4().hex),
        services.ray_head(checkout, params) as wait_for_ray,
        services.mlflow_sender(checkout),
    ):
        wait_for_ray()
        yield


def candidates(checkout: Checkout, version: str | None) -> tuple[Registered, Registered | None]:
    """The version asked for (default: the challenger), and the champion. Raises `UserError` for one that is unknown,
    or that holds records which were asked to be forgotten."""
    statements = decisions.statements_of(checkout)
    known = decisions.registered(statements)
    aliases = registrations.aliases(statements, NAME)
    wanted = version or aliases.get(CHALLENGER)
    if wanted is None:
        raise UserError(f"{NAME} has no challenger; `axon run` registers one.", exit_code=1)
    refuse_unfit(wanted, known, statements)
    held = aliases.get(CHAMPION)
    return known[wanted], known.get(held) if held else None


def refuse_unfit(version: str, known: Mapping[str, Registered], statements: list[Statement]) -> None:
    if version not in known:
        raise UserError(f"{NAME} has no version {version}; registered: {', '.join(known) or 'none'}.")
    if version in registrations.with_removed_data(statements):
        raise UserError(f"{NAME} version {version} holds records that were asked to be forgotten: it stays out.")


def decide(
    checkout: Checkout,
    params: Parameters,
    challenger: Registered,
    champion: Registered,
    *,
    about: Mapping[str, Any] | None = None,
) -> Decision:
    """Measure both on the same items, apply the rules, record the decision and carry it out. Needs a running Ray.

    about: what else the statement says, of the retraining that asks.
    """
    started = time.time()
    with Journal(checkout.journals, "gate") as record:
        parent = os.environ.get(journal.PIPELINE_ID)
        record.start("gate", kind="gate", parent=parent, params={"gate": params.gate.model_dump(mode="json")})
        directories = _directories(checkout, challenger, champion)
        items = _items(checkout, params, directories, (challenger, champion))
        measured = _measure(checkout, params, items, directories, record)
        measured |= _divergence(challenger, champion)
        if params.gate.metric not in measured:
            raise UserError(
                f"gate.metric={params.gate.metric} cannot be measured: no held-out prompt is right or wrong. Choose "
                "score or win_rate in params.yaml.",
                exit_code=1,
            )
        rules = Rules(
            metric=params.gate.metric,
            margin=params.gate.margin,
            guards=_guards(params, items),
            level=params.gate.level,
            n_resamples=params.gate.n_resamples,
            seed=params.seed,
        )
        decision = gate.decide(measured, rules, findings=_findings(checkout, challenger))
        figures = {name: _means(measured[name]) for name in dict.fromkeys([rules.metric, *decision.guards])}
        written = decisions.record(
            checkout,
            action=decisions.PROMOTED if decision.promotes else decisions.KEPT,
            version=challenger.version,
            champion=champion.version,
            reason="; ".join(decision.reasons) or _why(rules, decision),
            content={
                "gate": params.gate.model_dump(mode="json"),
                "seed": params.seed,
                "improvement": asdict(decision.improvement),
                "guards": {name: asdict(found) for name, found in decision.guards.items()},
                "figures": figures,
                "evaluation_set": items.digest,
                "n_items": {"prompts": len(items.prompts), "texts": len(items.texts)},
                **(about or {}),
            },
            evaluated_on=items,
            started=started,
            execution=record.id,
        )
        record.metrics(0, _told(decision, figures))
        record.end("FINISHED", outputs={}, statement=written.reference)
    return decision


def _why(rules: Rules, decision: Decision) -> str:
    found = decision.improvement
    return (
        f"{rules.metric} improves by {found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}], above the margin of "
        f"{rules.margin:g}; no guarded figure worsens beyond its limit"
    )


def _told(decision: Decision, figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The decision as MLflow shows it."""
    improvement = {f"improvement/{name}": value for name, value in asdict(decision.improvement).items()}
    sides = {f"{role}/{name}": value for name, pair in figures.items() for role, value in pair.items()}
    return {"promoted": float(decision.promotes), **improvement, **sides}


def _directories(checkout: Checkout, challenger: Registered, champion: Registered) -> dict[str, str]:
    return {
        CHALLENGER: str(registry.download(checkout, challenger.version)),
        CHAMPION: str(registry.download(checkout, champion.version)),
    }


def _items(
    checkout: Checkout, params: Parameters, directories: Mapping[str, str], versions: tuple[Registered, Registered]
) -> EvaluationSet:
    """The items of the last decision where they are still held out; else new ones."""
    from tasks.lineage import holders
    from tasks.lineage.graph import Graph
    from tasks.tokenizers import bytelevel, chat

    statements = decisions.statements_of(checkout)
    graph = Graph(statements)
    starts = [version.statement for version in versions]
    unknown = holders.contents(graph, checkout, " and ".join(f"{NAME}@{v.version}" for v in versions), starts).unindexed
    if unknown:
        raise UserError(
            f"the record index does not know {len(unknown)} execution(s) behind the two versions, so nobody can say "
            "which records they were trained on. Restore .axon/records, or promote with --force --reason.",
            exit_code=1,
        )
    known = set(holders.record_ids(graph, checkout, starts))
    tokenizers = [bytelevel.load(Path(directory)) for directory in directories.values()]
    longest = params.preferences.prompt_tokens

    def fits(prompt: str) -> bool:
        return all(len(chat.encode_prompt(tokenizer, prompt)) <= longest for tokenizer in tokenizers)

    held_out = HeldOut.of(checkout.root, fits=fits, known=known)
    drawn = held_out.draw(params.gate)
    listed = decisions.last_set(checkout, statements)
    again = held_out.again(listed) if listed else None
    is_as_large = again is not None and (len(again.prompts), len(again.texts)) == (len(drawn.prompts), len(drawn.texts))
    return again if again is not None and is_as_large else drawn


def _measure(
    checkout: Checkout, params: Parameters, items: EvaluationSet, directories: Mapping[str, str], record: Journal
) -> dict[str, Measured]:
    """Both models on the items, by the workers of Ray; a gate that was cut short goes on where it was."""
    from tasks.promotion import measuring
    from tasks.runtime.cluster import WorkerLost, stage_workers
    from tasks.runtime.place import Files, Place
    from tasks.steps.gate import MEASURED, REQUEST

    positions = [padded_positions(read_json(Path(d) / "config.json")) for d in directories.values()]
    answer = params.preferences.max_new_tokens
    lengths = {
        "prompt": params.preferences.prompt_tokens,
        "answer": answer,
        "window": min(params.pretrain.seq_len, *positions),
    }
    if lengths["prompt"] + answer > min(positions):
        raise UserError(
            f"preferences.prompt_tokens + max_new_tokens = {lengths['prompt'] + answer} tokens do not fit a model of "
            f"{min(positions)} positions, which is one of the two; lower them in params.yaml.",
            exit_code=1,
        )
    request = {"models": dict(directories), "lengths": lengths, "prompts": items.prompts, "texts": items.texts}
    identity = json.dumps([request, params.gate.model_dump(mode="json"), params.seed, params.precision, params.device])
    folder = checkout.state / "promotion" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    write_json(folder / REQUEST, request)
    # The two models are in this checkout's registry, and not among what a store brings to other nodes.
    place = Place(root=str(checkout.root))
    with stage_workers(checkout, "gate", params, place=place) as workers, Progress("gate") as progress:

        def on_event(event: dict[str, Any]) -> None:
            progress.show(event)
            record.metrics(event["step"], event["values"], event["time"])

        try:
            workers.run(Files(checkpoints=str(folder)), on_event)
        except WorkerLost as error:
            raise UserError(f"a worker of the gate was lost ({error}); ask again: it goes on.", exit_code=1) from None
    found = measuring.measured(items, read_json(folder / MEASURED))
    shutil.rmtree(folder)  # it holds text of the items, which the list of them does not
    return found


def _divergence(challenger: Registered, champion: Registered) -> dict[str, Measured]:
    """How far each is from its own SFT model, as its evaluation found; nothing where one was not recorded."""
    import numpy as np

    values = [version.figures.get("kl_to_sft") for version in (challenger, champion)]
    if any(value is None for value in values):
        return {}
    of_challenger, of_champion = (np.array([[value]], dtype=np.float64) for value in values)
    return {"kl_to_sft": Measured(challenger=of_challenger, champion=of_champion)}


def _guards(params: Parameters, items: EvaluationSet) -> dict[str, float]:
    """The limits that apply: exact match only where a prompt is right or wrong."""
    from tasks.evaluation.prompts import is_text

    limits = params.gate.limits.model_dump()
    if all(is_text(prompt["task"]) for prompt in items.prompts):
        del limits["exact_match"]
    return limits


def _findings(checkout: Checkout, challenger: Registered) -> list[str]:
    """What an audit of the challenger, and of all behind it, finds; the policy is a part of it.

    Data that came while it was trained is for the next retraining, and speaks against nobody.
    """
    from tasks.lineage import policy
    from tasks.lineage.audit import examination

    rules = policy.load(checkout.root / policy.FILE)
    report = examination.of_checkout(
        checkout, target=f"{NAME}@{challenger.version}", policy=rules, sources_may_move=True
    ).report
    return [f"audit: {f.place}: expected {f.expected}, found {f.found}" for f in report.findings]


def _means(measured: Measured) -> dict[str, float]:
    import numpy as np

    return {
        role: float(np.average(values.mean(axis=1), weights=measured.weights))
        for role, values in ((CHALLENGER, measured.challenger), (CHAMPION, measured.champion))
    }
