"""`axon run`: check the parameters, ask DVC what is stale, and start engines only if something is."""

from __future__ import annotations

import sys

from rich.console import Console

from flows import pipeline, registration, settings, summary
from tasks import registry
from tasks.data import sources
from tasks.errors import UserError
from tasks.parameters import Parameters
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout
from tasks.runtime.reproduction import Plan, StageFailed


def run(
    checkout: Checkout,
    targets: list[str],
    assignments: list[str],
    *,
    dry_run: bool,
    run_cache: bool | None = None,
) -> None:
    """The command; raises `UserError` with exit code 2 for configuration and 1 for a failed run."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    params, text, difference = settings.apply(checkout.root, assignments)
    _check_sources(params, checkout)
    if difference:
        console.print(difference, markup=False)
    if dry_run:
        _show(console, pipeline.prepare(checkout, params, targets, console).plan)
        return

    def waiting(holder: str) -> None:
        console.print(f"waiting for {holder} to end …")

    with guard.exclusive(checkout.locks / "run", who="axon run", waiting=waiting):
        _settle(checkout)
        # The graph is read before parameters are written: an unknown stage changes nothing.
        if text:
            pipeline.check_targets(checkout, targets)
            settings.write(checkout.root, text)
        prepared = pipeline.prepare(checkout, params, targets, console, run_cache=run_cache)
        if prepared.plan.nothing_to_do and (targets or registry.is_registered(checkout)):
            console.print("Nothing to do: every stage is current" + ("." if targets else ", the model is registered."))
            return
        try:
            version = pipeline.execute(prepared)
        except StageFailed as error:
            raise UserError(
                f"stage {error.stage} failed (exit code {error.code}); what it said is above. Stages before it are "
                f"done; run `axon run` again when it is mended.",
                exit_code=2 if error.code == 2 else 1,
            ) from None
    summary.print_table(console, checkout.root, prepared.graph, prepared.seconds)
    if not targets:
        summary.print_samples(console, checkout.root)
        summary.print_next(console, checkout.root, version)
    registration.print_anchor(checkout, console)


def _check_sources(params: Parameters, checkout: Checkout) -> None:
    try:
        sources.check_sources(params, checkout.root)
    except UnicodeDecodeError as error:  # files of one's own are read with care, this one belongs to the checkout
        raise UserError(f"constraints.txt is not UTF-8 text ({error}): git checkout constraints.txt") from None


def _settle(checkout: Checkout) -> None:
    """Finish a promotion that was cut short; it is looked for without importing what that needs."""
    if (checkout.state / "promotion" / "pending.json").is_file():
        from tasks.promotion import decisions

        decisions.settle(checkout)


def _show(console: Console, plan: Plan) -> None:
    """The dry run: what is stale and why, what follows, what is current."""
    for name, reasons in plan.stale.items():
        console.print(f"stale    {name}", style="bold")
        for reason in reasons:
            console.print(f"           {reason}", markup=False)
    for name in plan.follow:
        console.print(f"follows  {name}")
    for name in plan.current:
        console.print(f"current  {name}", style="dim")
    console.print(f"{len(plan.stale)} stale, {len(plan.follow)} follow, {len(plan.current)} current; nothing was run.")
