"""`axon promote | rollback | history`: which version is the champion, decided by the gate or a person, with reasons."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows import gate, quality, registration
from tasks.errors import UserError
from tasks.lineage import registrations
from tasks.lineage.statement import Statement
from tasks.lineage.wording import when
from tasks.parameters import load
from tasks.promotion import decisions
from tasks.promotion import quality as measured
from tasks.promotion.decisions import Registered
from tasks.promotion.gate import Decision
from tasks.registry import CHAMPION, NAME
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout


@contextmanager
def _alone(checkout: Checkout, who: str) -> Iterator[None]:
    """Hold the run lock, with whatever an earlier decision left undone done."""

    def waiting(holder: str) -> None:
        print(f"waiting for {holder} to end …", file=sys.stderr)

    with guard.exclusive(checkout.locks / "run", who=who, waiting=waiting):
        decisions.settle(checkout)
        yield


def promote(checkout: Checkout, version: str | None, *, force: bool, reason: str | None) -> bool:
    """Hold the challenger (or `version`) against the champion; whether it has the place now."""
    if reason is not None:
        _check_reason(reason)
    if force != (reason is not None):
        raise UserError("--force and --reason go together: who goes past the gate says why.")
    params = load(checkout.root)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    with _alone(checkout, "axon promote"):
        challenger, champion = gate.candidates(checkout, version)
        if champion is not None and champion.version == challenger.version:
            console.print(f"{NAME} version {challenger.version} is the champion already.")
            return True
        if force or champion is None:
            why = reason or "there is no champion"
            decisions.record(
                checkout,
                action=decisions.PROMOTED,
                version=challenger.version,
                champion=champion.version if champion else None,
                reason=why,
                content={"forced": force},
                started=time.time(),
            )
            console.print(f"[green]promoted[/green] {NAME} version {challenger.version}: {escape(why)}")
            promoted = True
        else:
            with gate.engines(checkout, params):
                decision = gate.decide(checkout, params, challenger, champion)
            show(console, challenger, champion, decision)
            promoted = decision.promotes
        registration.print_anchor(checkout, console)
    return promoted


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise UserError("--reason must say why, for everyone to read.")


def show(console: Console, challenger: Registered, champion: Registered, decision: Decision) -> None:
    """The decision for a reader: the verdict, then each figure with its interval."""
    table = Table(box=SIMPLE, pad_edge=False, header_style="bold")
    for name in ("figure", "improvement", "interval"):
        table.add_column(name, justify="left" if name == "figure" else "right", no_wrap=True)
    rows = {"the gate's metric": decision.improvement, **decision.guards}
    for name, found in rows.items():
        has_interval = found.low != found.high
        table.add_row(name, f"{found.mean:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}" if has_interval else "")
    console.print(table)
    if decision.promotes:
        console.print(f"[green]promoted[/green] {NAME} version {challenger.version} in place of {champion.version}")
        return
    console.print(
        f"[yellow]kept[/yellow] {NAME} version {champion.version}; version {challenger.version} is not promoted:"
    )
    for reason in decision.reasons:
        console.print(f"  - {escape(reason)}")


def rollback(checkout: Checkout, to: str | None, *, reason: str) -> None:
    """Give the place back to the champion before this one, or to version `to`."""
    _check_reason(reason)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    with _alone(checkout, "axon rollback"):
        statements = decisions.statements_of(checkout)
        known = decisions.registered(statements)
        held = registrations.aliases(statements, NAME).get(CHAMPION)
        wanted = to or _before(statements, held)
        if wanted is None:
            raise UserError(f"{NAME} has had no other champion to go back to; name one with --to VERSION.", exit_code=1)
        gate.refuse_unfit(wanted, known, statements)
        if wanted == held:
            raise UserError(f"{NAME} version {wanted} is the champion already.")
        decisions.record(
            checkout,
            action=decisions.ROLLED_BACK,
            version=wanted,
            champion=held,
            reason=reason,
            started=time.time(),
        )
        console.print(f"[green]rolled back[/green] to {NAME} version {wanted}" + (f" from {held}" if held else ""))
        registration.print_anchor(checkout, console)


def _before(statements: list[Statement], held: str | None) -> str | None:
    """Who was champion before the one that is, and still may be: a version that was rolled back from is not."""
    removed = registrations.with_removed_data(statements)
    stack: list[str] = []
    for decided in decisions.history(statements):
        facts = decided.parameters
        if not facts["aliases"]:
            continue
        version, before = str(facts["version"]), facts.get("champion")
        if facts["action"] == decisions.ROLLED_BACK and version in stack:
            stack = stack[: stack.index(version) + 1]
            continue
        if not stack and before:
            stack.append(str(before))
        stack.append(version)
    return next((v for v in reversed(stack) if v != held and v not in removed), None)


def history(checkout: Checkout, *, form: str) -> None:
    """Print every decision, oldest first, and what was measured for it; asks no server."""
    if form not in ("text", "json"):
        raise UserError(f"--format {form}: allowed are text and json.")
    statements = decisions.statements_of(checkout)
    decided = decisions.history(statements)
    if form == "json":
        print(json.dumps([_as_json(s) for s in decided], indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    if not decided:
        console.print(
            "No decision yet: the first registered version became the champion, `axon promote` asks the gate."
        )
        return
    table = Table(title=f"Decisions on {NAME}", title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    for column in ("when (UTC)", "decision", "version", "before"):
        table.add_column(column, no_wrap=True)
    table.add_column("why", overflow="fold")
    for statement in decided:
        facts = statement.parameters
        action = f"{facts['action']}{', forced' if facts.get('forced') else ''}"
        at = when(statement.finished).removesuffix(" UTC")
        why = str(facts["reason"]) + (f" (trained for: {facts['because']})" if facts.get("because") else "")
        table.add_row(at, action, str(facts["version"]), str(facts.get("champion") or "–"), escape(why))
    console.print(table)
    quality.show(console, measured.points(statements))


def _as_json(statement: Statement) -> dict[str, Any]:
    return {**statement.parameters, "when": statement.finished, "statement": statement.digest, "who": statement.who}
