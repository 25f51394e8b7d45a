"""Retraining: pull what is new, decide whether it matters, train, ask the gate, promote or keep, and record why.

Safe to repeat and to kill: every part of it goes on from where it was, a champion is replaced by the gate alone, and
an occasion (`AXON_OCCASION`, or the execution) comes to one decision, however often it is tried.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from flows import gate, pipeline, registration
from tasks.errors import UserError
from tasks.lineage import registrations
from tasks.lineage.statement import Statement
from tasks.parameters import Parameters, load
from tasks.promotion import decisions
from tasks.registry import CHAMPION, NAME, Version
from tasks.retraining import baseline, pulling
from tasks.retraining import profile as profiles
from tasks.retraining.profile import Newness, Profile
from tasks.runtime import guard, leftovers
from tasks.runtime.checkout import Checkout
from tasks.runtime.reproduction import StageFailed
from tasks.tracking.journal import Journal

OCCASION = "AXON_OCCASION"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`action`: promoted, kept, or not retrained; `why` says so in a sentence."""

    action: str
    why: str


def retrain(checkout: Checkout, *, force: bool = False) -> Outcome:
    """Retrain if there is enough new, or in any case with `force`. Raises `UserError` where something is wrong."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    def waiting(holder: str) -> None:
        console.print(f"waiting for {holder} to end …")

    with guard.exclusive(checkout.locks / "run", who="axon retrain", waiting=waiting):
        for told in leftovers.clear(checkout):
            console.print(f"[dim]{told}[/dim]")
        decisions.settle(checkout)
        with Journal(checkout.journals, "retrain") as record:
            params = load(checkout.root)
            record.start("retrain", kind="retrain", params={"retrain": params.retrain.model_dump(mode="json")})
            occasion = os.environ.get(OCCASION) or record.id
            try:
                outcome = _decided(checkout, occasion) or _retrain(
                    checkout, params, console, record, occasion, force=force
                )
            except StageFailed as error:
                raise UserError(
                    f"stage {error.stage} failed (exit code {error.code}); what it said is above. The champion stays. "
                    "What is done is kept; run `axon retrain` again when it is mended.",
                    exit_code=1,
                ) from None
            record.metrics(0, {"promoted": float(outcome.action == decisions.PROMOTED)})
    console.print(f"[bold]{outcome.action}[/bold]: {outcome.why}")
    registration.print_anchor(checkout, console)
    return outcome


def _decided(checkout: Checkout, occasion: str) -> Outcome | None:
    """What this occasion has come to already, if it was cut short behind its decision."""
    statements = decisions.statements_of(checkout)
    begun = baseline.begun(checkout)
    if begun is not None and decisions.of_occasion(statements, begun.occasion) is not None:
        baseline.end(checkout)
    found = decisions.of_occasion(statements, occasion)
    return _outcome(found) if found is not None else None


def _outcome(found: Statement) -> Outcome:
    facts = found.parameters
    return Outcome(action=str(facts["action"]), why=f"{facts['reason']} (decided before it was cut short)")


def _retrain(
    checkout: Checkout, params: Parameters, console: Console, record: Journal, occasion: str, *, force: bool
) -> Outcome:
    started = time.time()
    for source in pulling.pull(checkout):
        console.print(f"pulled {source}")
    begun = baseline.begun(checkout)
    if begun is not None:
        occasions = list(dict.fromkeys(filter(None, [begun.occasion, occasion])))
        return _train(checkout, params, console, f"{begun.why} (goes on)", occasions)
    before = baseline.of(checkout, pulling.labels(checkout, params))
    baseline.keep_lock(checkout)
    _bring(checkout, params, ["data"], console)
    now = Profile.of(checkout.root, labels=pulling.labels(checkout, params))
    found = profiles.compare(before, now) if before is not None else None
    why = _reasons(params, found, force=force)
    if found is not None:
        record.metrics(0, {f"new/{name}": float(value) for name, value in asdict(found).items()})
    console.print(f"training again: {'; '.join(why)}" if why else "not enough is new to train again")
    if not why:
        baseline.put_back(checkout)
        return _leave(checkout, params, found, started, record, occasion)
    baseline.begin(checkout, "; ".join(why), occasion)
    return _train(checkout, params, console, "; ".join(why), [occasion])


def _train(checkout: Checkout, params: Parameters, console: Console, because: str, occasions: list[str]) -> Outcome:
    """Train and decide; cut short anywhere, the next retraining comes here again, whatever is new by then."""
    version = _bring(checkout, params, [], console)
    outcome = _decide(checkout, params, console, version, because, occasions)
    baseline.end(checkout)
    return outcome


def _reasons(params: Parameters, found: Newness | None, *, force: bool) -> list[str]:
    if force:
        return ["asked for"]
    if found is None:
        return ["nothing was trained here before"]
    limits = params.retrain
    drifts = {"length": limits.length_drift, "vocabulary": limits.vocabulary_drift, "source": limits.source_drift}
    return profiles.reasons(found, min_new_records=limits.min_new_records, limits=drifts)


def _bring(checkout: Checkout, params: Parameters, targets: list[str], console: Console) -> Version | None:
    """Run what is stale of `targets` (all stages if there are none); the registered version then."""
    prepared = pipeline.prepare(checkout, params, targets, console)
    if prepared.plan.nothing_to_do and targets:
        return None
    return pipeline.execute(prepared, is_whole=not targets)


def _leave(
    checkout: Checkout,
    params: Parameters,
    found: Newness | None,
    started: float,
    record: Journal,
    occasion: str,
) -> Outcome:
    """Record that nothing was trained, and what was looked at."""
    statements = decisions.statements_of(checkout)
    held = registrations.aliases(statements, NAME).get(CHAMPION)
    news = asdict(found) if found is not None else {}
    why = f"not enough is new: {_in_words(news)}"
    if held is not None:
        decisions.record(
            checkout,
            action=decisions.NOT_RETRAINED,
            version=held,
            champion=held,
            reason=why,
            content={"new": news, "retrain": params.retrain.model_dump(mode="json"), "occasions": [occasion]},
            started=started,
            execution=record.id,
        )
    return Outcome(action=decisions.NOT_RETRAINED, why=why)


def _in_words(news: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.removeprefix('n_').replace('_', ' ')} {value:.4f}" if isinstance(value, float) else
        f"{name.removeprefix('n_').replace('_', ' ')} {value}"
        for name, value in news.items()
    )  # fmt: skip


def _decide(
    checkout: Checkout,
    params: Parameters,
    console: Console,
    version: Version | None,
    because: str,
    occasions: list[str],
) -> Outcome:
    """Hold the new version against the champion."""
    from flows import promotion

    if version is None:
        return Outcome(action=decisions.KEPT, why=f"{because}; nothing was registered")
    started = time.time()
    about = {"because": because, "occasions": occasions}
    challenger, champion = gate.candidates(checkout, version.version)
    if champion is None or (champion.version == challenger.version and version.is_new):
        return Outcome(action=decisions.PROMOTED, why=f"{because}; there was no champion")
    if champion.version == challenger.version:
        decisions.record(
            checkout,
            action=decisions.KEPT,
            version=champion.version,
            champion=champion.version,
            reason="training made the champion again",
            content=about,
            started=started,
        )
        return Outcome(action=decisions.KEPT, why=f"{because}; training made the champion again")
    with gate.engines(checkout, params):
        decision = gate.decide(checkout, params, challenger, champion, about=about)
    promotion.show(console, challenger, champion, decision)
    action = decisions.PROMOTED if decision.promotes else decisions.KEPT
    return Outcome(action=action, why="; ".join([because, *decision.reasons]))
