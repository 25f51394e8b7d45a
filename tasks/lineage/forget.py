"""Forget records: what a request would touch (`plan`), and making it so (`apply`). `forgetting.purge` does the rest.

Nothing here removes an artifact: the removal list makes the stages stale, and the next run makes them without the
records. Until then everything still holds them.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data import removal_list, removals
from tasks.data.records import TRAIN, Reject
from tasks.data.removals import Removals
from tasks.errors import UserError
from tasks.lineage.forgetting import candidates as candidate_records
from tasks.lineage.forgetting import certificate, holders, listing, notes, rewriting, selection, versions
from tasks.lineage.forgetting.candidates import Candidate, Candidates
from tasks.lineage.forgetting.holders import Holding
from tasks.lineage.forgetting.listing import Removal
from tasks.lineage.forgetting.rewriting import Cut
from tasks.lineage.forgetting.versions import Held
from tasks.lineage.records.ids import parse
from tasks.lineage.store import StatementStore, Stored
from tasks.parameters import Parameters
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout
from tasks.runtime.stages import Stage
from tasks.steps.context import FanOut

ALWAYS_CHANGED = ("data/manifest.json", "data/rejects.parquet")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks: exactly one of `records` (ids, 32 hex digits), `source` and `where`; and how."""

    records: tuple[str, ...] = ()
    source: str | None = None
    where: str | None = None
    reason: str = "on request"
    keep_tokenizer: bool = False
    keep_sources: bool = False

    def check(self) -> None:
        """Raises `UserError` unless one way of selecting is given, ids are ids, and the reason fits the list."""
        given = [bool(self.records), self.source is not None, self.where is not None]
        if sum(given) != 1:
            raise UserError("axon forget needs one of --record ID (as often as you like), --source NAME, --where EXPR.")
        for record in self.records:
            parse(record)
        if len(self.reason) > removal_list.MAX_REASON_CHARS or "\n" in self.reason:
            raise UserError(
                f"--reason has {len(self.reason)} characters; allowed is one line of at most "
                f"{removal_list.MAX_REASON_CHARS}, without any of the text that is to go."
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The blast radius of a request.

    workspace: rows in each Parquet file of the outputs. quoting: records that stay and quote a removed one. seconds:
    what each stage to run again took when it last ran, None where no journal says. n_listed: records asked for that
    are on the list already. tokenizer: "trained again", "kept", or "as it is" where it never saw the records.
    """

    request: Request
    candidates: Candidates
    removal: Removal
    n_listed: int
    cuts: list[Cut]
    rankings: list[Cut]
    workspace: Mapping[str, int]
    holdings: list[Holding]
    versions: list[Held]
    quoting: set[int]
    seconds: Mapping[str, float | None]
    tokenizer: str

    @property
    def records(self) -> list[Candidate]:
        return [self.candidates.all[number] for number in sorted(self.removal.all)]

    @property
    def changes_nothing(self) -> bool:
        to_mark = any(version.aliases or not version.is_marked for version in self.versions)
        return not (self.removal.entries or self.cuts or self.rankings or self.seconds or to_mark)


def plan(
    checkout: Checkout,
    params: Parameters,
    request: Request,
    *,
    today: datetime.date | None = None,
    fan_out: FanOut | None = None,
) -> Plan:
    """Read the sources, find what the request means and everything that goes with it, and who holds it.

    Changes nothing. Takes about as long as the data stage.
    """
    request.check()
    root = checkout.root
    if request.keep_tokenizer:
        rewriting.check_tokenizer(root)
    listed = removals.read(root)
    fan_out = fan_out or candidate_records.local_fan_out(params.runtime.sampling_workers)
    found = candidate_records.read(root, params, fan_out)
    removal = listing.find(
        found,
        _chosen(found, request, listed),
        listed,
        like=params.data.near_duplicates,
        fan_out=fan_out,
        reason=request.reason,
        when=today or datetime.date.today(),
    )
    wanted = {identity for number in removal.all for identity in found.all[number].ids}
    wanted |= {parse(text) for text in request.records}
    graph = stages.read_stages(root)
    statements = [stored.statement for stored in StatementStore.of(checkout).all()]
    known = holders.find(checkout, statements, wanted)
    kept = removal.all & found.kept
    cuts, rankings = _cuts(checkout, params, request, found, removal, listed)
    affected = _affected(checkout, graph, request, removal, bool(kept), bool(cuts or rankings))
    seconds = holders.seconds_by_stage(checkout)
    return Plan(
        request=request,
        candidates=found,
        removal=removal,
        n_listed=sum(listed.lists(found.all[number].record) for number in removal.asked),
        cuts=cuts,
        rankings=rankings,
        workspace=holders.in_workspace(root, graph, wanted),
        holdings=known.holdings,
        versions=versions.registered(checkout, statements, known, current_holds=bool(kept)),
        quoting=listing.quoting(found, removal),
        seconds={stage: seconds.get(stage) for stage in affected},
        tokenizer=_tokenizer(root, params, request, [found.all[number] for number in kept], "tokenizer" in affected),
    )


def _chosen(found: Candidates, request: Request, listed: Removals) -> set[int]:
    if request.records:
        return selection.by_ids(found, request.records, listed)
    if request.source is not None:
        return selection.by_source(found, request.source)
    chosen = selection.by_expression(found, str(request.where))
    if not chosen:
        raise UserError(f"--where {request.where!r} is true of none of {len(found.all)} records.")
    return chosen


def _cuts(
    checkout: Checkout, params: Parameters, request: Request, found: Candidates, removal: Removal, listed: Removals
) -> tuple[list[Cut], list[Cut]]:
    """The lines to be taken out of people's own files, and out of human rankings."""
    if request.keep_sources:
        return [], []
    places = [place for number in removal.all if (place := found.all[number].place) is not None]
    everything = Removals((*listed.entries, *removal.entries))
    return (
        rewriting.plan(checkout.root, places, found.n_lines),
        rewriting.plan_rankings(checkout.root, params, everything),
    )


def _affected(
    checkout: Checkout,
    graph: Mapping[str, Stage],
    request: Request,
    removal: Removal,
    is_kept: bool,
    is_cut: bool,
) -> list[str]:
    """The stages that the next run makes again. Records that were rejected anyway change no data that others read."""
    changed = {str(removal_list.PATH)} if removal.entries or is_cut else set()
    if request.keep_tokenizer != rewriting.is_tokenizer_kept(checkout.root):
        changed.add(str(rewriting.KEPT_TOKENIZER))
    same = {out for stage in graph.values() for out in stage.outs} - set(ALWAYS_CHANGED) if not is_kept else set()
    return holders.affected_stages(graph, changed, same)


def _tokenizer(root: Path, params: Parameters, request: Request, kept: list[Candidate], runs: bool) -> str:
    """What becomes of it; one that an earlier request kept is let go of. A checkpoint's has learnt nothing here."""
    if request.keep_tokenizer:
        return "kept"
    if params.pretrain.init_from is not None:
        return "as it is"
    saw = rewriting.is_tokenizer_kept(root) or any(candidate.split == TRAIN for candidate in kept)
    return "trained again" if runs and saw else "as it is"


def apply(checkout: Checkout, params: Parameters, made: Plan) -> Stored | None:
    """Write the removal list, cut people's files, keep the tokenizer if asked, tag versions; returns the certificate.

    Each step can be done again, so that running the command again goes on where it was cut off. Call it while holding
    the run lock. Without statements (`AXON_LINEAGE=off`) there is no certificate.
    """
    started = time.time()
    root = checkout.root
    if made.request.keep_tokenizer:
        rewriting.keep_tokenizer(root)
    else:
        rewriting.let_tokenizer_go(root)
    removal_list.write(root, _merged(removals.read(root), made.removal))
    rewriting.cut(root, [*made.cuts, *made.rankings])
    versions.mark(checkout, made.versions)
    note = _note(checkout, made)
    notes.add(checkout, note)
    return certificate.write(checkout, "list", note, started=started)


def _merged(listed: Removals, removal: Removal) -> list[removal_list.Entry]:
    by_record = {entry.record: entry for entry in removal.entries}
    return [*(entry for entry in listed.entries if entry.record not in by_record), *by_record.values()]


def _note(checkout: Checkout, made: Plan) -> dict[str, Any]:
    """What the purge and the certificates need to know of this request; no text, and no expression, which may hold
    some."""
    lock = stages.read_lock(checkout.root)
    current = {
        (out["path"], out.get("md5", "")) for stage in made.seconds for out in lock.get(stage, {}).get("outs", ())
    }
    held = {(holding.path, holding.md5) for holding in made.holdings}
    sourced = [c.record for c in made.records if not isinstance(c.record, Reject)]
    packages = {(record.package, record.version) for record in sourced if record.package}
    return {
        "when": datetime.date.today().isoformat(),
        "reason": made.request.reason,
        "n_asked": len(made.removal.asked),
        "n_along": len(made.removal.along),
        "n_made": len(made.removal.made),
        "records": sorted(entry.record for entry in made.removal.entries),
        "sources": sorted({candidate.record.source for candidate in made.records}),
        "lines_cut": {one.path: len(one.lines) for one in [*made.cuts, *made.rankings]},
        "sources_kept": made.request.keep_sources,
        "packages": sorted(f"{name} {version}" for name, version in packages),
        "tokenizer": made.tokenizer,
        "artifacts": [{"path": path, "md5": md5} for path, md5 in sorted(held | current)],
        "versions": [
            {"version": v.version, "md5": v.md5, "model": v.model, "aliases": list(v.aliases), "certainty": v.certainty}
            for v in made.versions
        ],
    }
