"""`axon forget`: show what a request would touch, put it on the removal list, and purge what was made before."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any

import typer
from rich.console import Console

from flows import settings
from tasks import parameters, registry
from tasks.errors import UserError
from tasks.lineage import forget as forgetting
from tasks.lineage.forget import Plan, Request
from tasks.lineage.forgetting import purge as purging
from tasks.lineage.forgetting.candidates import KEPT, Candidate
from tasks.lineage.forgetting.purge import Survey
from tasks.lineage.store import Stored
from tasks.parameters import Parameters
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout

_N_SHOWN = 20


def forget(checkout: Checkout, request: Request, *, yes: bool) -> None:
    """Show the blast radius; with `yes` also write the removal list and all that goes with it."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    request.check()
    params = parameters.load(checkout.root)
    if not yes:
        console.print("Reading the sources …")
        _show(console, forgetting.plan(checkout, params, request))
        console.print("Nothing was changed. The same command with --yes does it.")
        return
    with _alone(checkout, console):
        console.print("Reading the sources …")
        plan = forgetting.plan(checkout, params, request)
        _show(console, plan)
        if plan.changes_nothing:
            console.print("All of it is on the removal list already, and nothing holds it any more.")
            return
        _take_out_of_parameters(checkout, params, plan, console)
        certificate = forgetting.apply(checkout, params, plan)
    n_new = len(plan.removal.entries)
    console.print(f"Written: sources/removals.json ({n_new} new entries, digests alone). Commit it.")
    _show_certificate(console, certificate)
    console.print("Next: `axon run` makes everything again without it; then `axon forget --purge` removes what is old.")


def purge(checkout: Checkout, *, yes: bool) -> None:
    """Show what still holds removed records outside of the current artifacts; remove it once confirmed."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    params = parameters.load(checkout.root)
    with _alone(checkout, console):
        found = purging.survey(checkout, params)
        if found.is_empty:
            console.print("Nothing to purge.")
            return
        _show_survey(console, found)
        if not yes and not typer.confirm("Remove these for good?"):
            raise UserError("nothing was removed.", exit_code=1)
        content, certificate = purging.purge(checkout, found)
    console.print("Removed. What remains:")
    for place in content["remains"]:
        console.print(f"  - {place}")
    _show_certificate(console, certificate)


def _alone(checkout: Checkout, console: Console) -> AbstractContextManager[None]:
    def waiting(holder: str) -> None:
        console.print(f"waiting for {holder} to end …")

    return guard.exclusive(checkout.locks / "run", who="axon forget", waiting=waiting)


def _take_out_of_parameters(checkout: Checkout, params: Parameters, plan: Plan, console: Console) -> None:
    """Files of which every line goes are removed, so that `data.files` may not name them any more."""
    emptied = {cut.path for cut in plan.cuts if cut.is_all}
    if not emptied:
        return
    left = [own.model_dump() for own in params.data.files if own.path not in emptied]
    if not left and not params.data.python_docs.packages:
        raise UserError(
            f"nothing was changed: without {', '.join(sorted(emptied))} there is no text to pretrain on. Name other "
            "files or packages under data in params.yaml first."
        )
    _, text, difference = settings.apply(checkout.root, [f"data.files={json.dumps(left, ensure_ascii=False)}"])
    console.print(difference)
    settings.write(checkout.root, text)


def _show(console: Console, plan: Plan) -> None:
    removal, everything = plan.removal, plan.candidates.all
    before = f", {plan.n_listed} of them listed before" if plan.n_listed else ""
    console.print(f"Asked for: {_records(len(removal.asked))}{before}")
    if removal.along:
        console.print(f"With them, as copies or near-duplicates: {_records(len(removal.along))}")
    if removal.made:
        console.print(f"Made from these: {_records(len(removal.made))}")
    shown = [*sorted(removal.asked), *sorted(removal.along), *sorted(removal.made)]
    for number in shown[:_N_SHOWN]:
        console.print(f"  {_line(everything[number])}")
    if len(shown) > _N_SHOWN:
        by_source = Counter(everything[number].record.source for number in shown)
        listed = ", ".join(f"{source} {n}" for source, n in sorted(by_source.items()))
        console.print(f"  … {len(shown)} in all: {listed}")
    if plan.quoting:
        console.print(f"Staying although one of these stands in it word for word: {_records(len(plan.quoting))}")
        for number in sorted(plan.quoting)[:_N_SHOWN]:
            console.print(f"  {_line(everything[number])}")
    _show_holders(console, plan)
    _show_work(console, plan)


def _records(n: int) -> str:
    return f"{n} record" + "s" * (n != 1)


def _line(candidate: Candidate) -> str:
    """One record without any of its text."""
    identity = (candidate.shown_id or candidate.record.record_id).hex()
    what = f"kept for {candidate.split}" if candidate.status == KEPT else candidate.status
    where = ":".join(map(str, candidate.place)) if candidate.place else candidate.record.source
    return f"{identity}  {candidate.kind}, {what}  {where}"


def _show_holders(console: Console, plan: Plan) -> None:
    if plan.workspace:
        console.print("Rows in what is there now:")
        for path, n in plan.workspace.items():
            console.print(f"  {path}  {n}")
    current = [holding for holding in plan.holdings if holding.is_current]
    if plan.holdings:
        console.print("Made with them, by the record index:")
        for holding in current:
            roles = ", ".join(f"{role} {n}" for role, n in holding.roles.items())
            console.print(f"  {holding.path}  {roles}")
        if len(plan.holdings) > len(current):
            console.print(f"  and {len(plan.holdings) - len(current)} outputs of earlier runs")
    for version in plan.versions:
        names = f" ({', '.join(version.aliases)})" if version.aliases else ""
        how = "holds them" if version.certainty == "true" else "cannot be shown to be free of them"
        then = "is tagged already" if version.is_marked else "is tagged"
        then += f" and loses {' and '.join(version.aliases)}" if version.aliases else ""
        console.print(f"Registered version: {registry.NAME} {version.version}{names} {how}; it {then}.")
    if not plan.versions:
        console.print("Registered versions: none holds them.")


def _show_work(console: Console, plan: Plan) -> None:
    for cut in [*plan.cuts, *plan.rankings]:
        lines = "all its lines: the file is removed" if cut.is_all else f"{len(cut.lines)} line(s) are taken out"
        console.print(f"{cut.path}: {lines}.")
    if any(cut.is_all for cut in plan.rankings):
        console.print("No human ranking is left then: set preferences.judge in params.yaml to another.")
    if plan.request.keep_sources and any(candidate.place for candidate in plan.records):
        console.print("The files they stand in are left as they are.")
    known = [seconds for seconds in plan.seconds.values() if seconds is not None]
    unknown = len(plan.seconds) - len(known)
    if plan.seconds:
        time = f"about {max(1, round(sum(known) / 60))} min by the last runs" if known else "no run tells how long"
        rest = f", and {unknown} that no run tells of" if known and unknown else ""
        console.print(f"Stages to run again: {', '.join(plan.seconds)} ({time}{rest}).")
    console.print(f"Tokenizer: {plan.tokenizer}.")


def _show_survey(console: Console, found: Survey) -> None:
    console.print("To be removed for good:")
    unused = found.cache.unused
    if unused and not found.cache.is_shared:
        console.print(
            f"  {_size(sum(unused.values()))}  DVC's cache: {len(unused)} objects that dvc.lock does not record, "
            "also those of other branches and of experiments"
        )
    for folder in found.folders:
        console.print(f"  {_size(folder.size)}  {folder.what}: {folder.path}")
    for model in found.models:
        console.print(f"  {'':>9}  logged model {model.name} {model.md5}")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:6.1f} MB"


def _show_certificate(console: Console, certificate: Stored | None) -> None:
    if certificate is None:
        console.print("Statements are switched off (AXON_LINEAGE=off): there is no certificate.")
        return
    statement: Any = certificate.statement
    console.print(f"Certificate: {certificate.path}, signed; digest {statement.digest}")
