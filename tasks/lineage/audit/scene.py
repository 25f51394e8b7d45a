"""What the parts of an audit share: the checkout (or an exported folder), its statements, and what is asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.lineage.audit.findings import Part, Report
from tasks.lineage.statement import Statement
from tasks.runtime.checkout import Checkout

STATEMENTS, KEYS, MODELS = "lineage/statements", "lineage/keys", "lineage/models"
HEAD = ".axon/lineage-head.json"
PRIVATE_KEY = ".axon/keys/signing.pem"


@dataclass(frozen=True)
class Entry:
    """A statement that could be parsed, with its file: `place` is the path below the root."""

    place: str
    content: bytes
    envelope: Mapping[str, Any]
    statement: Statement
    signer: str


@dataclass
class Scene:
    """The state of an audit.

    `lock`: the stages of `dvc.lock`; `graph`: the names of those of `dvc.yaml`, None if it cannot be read. `scope`:
    digests of the statements asked about, or None for all; `outputs` (path, MD5): the target itself where it is such.
    `reached`: outputs of which a true copy was found; `copies`: MLflow's folders of registered versions, by version.
    """

    checkout: Checkout
    report: Report
    entries: list[Entry] = field(default_factory=list)
    lock: dict[str, Any] = field(default_factory=dict)
    graph: frozenset[str] | None = None
    scope: frozenset[str] | None = None
    outputs: tuple[tuple[str, str], ...] = ()
    reached: set[tuple[str, str]] = field(default_factory=set)
    copies: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Where artifacts and parameters are."""
        return self.checkout.root

    @property
    def home(self) -> Path:
        """Where `lineage/` and `.axon/` are: the main checkout."""
        return self.checkout.state.parent

    def part(self, name: str) -> Part:
        return Part(name, self.report)

    @cached_property
    def by_digest(self) -> dict[str, Entry]:
        return {entry.statement.digest: entry for entry in self.entries}

    @cached_property
    def asked(self) -> list[Entry]:
        """The statements asked about, in order."""
        return [entry for entry in self.entries if self.scope is None or entry.statement.digest in self.scope]

    @cached_property
    def current(self) -> dict[str, Entry]:
        """By stage, the newest statement that `dvc.lock` agrees with best; without an entry there, the newest.

        A stage that is neither in `dvc.lock` nor in `dvc.yaml` is no part of the pipeline any more.
        """
        found: dict[str, tuple[int, Entry]] = {}
        for entry in self.entries:
            stage = entry.statement.stage
            if stage is not None and (self.graph is None or stage in self.graph or stage in self.lock):
                points = _agreement(entry.statement, self.lock.get(stage))
                if stage not in found or points >= found[stage][0]:
                    found[stage] = points, entry
        return {stage: entry for stage, (_, entry) in found.items()}

    @cached_property
    def current_asked(self) -> dict[str, Entry]:
        """Those of `current` that are asked about."""
        asked = {entry.statement.digest for entry in self.asked}
        return {stage: entry for stage, entry in self.current.items() if entry.statement.digest in asked}

    @cached_property
    def newest_run(self) -> Entry | None:
        return next((entry for entry in reversed(self.entries) if entry.statement.kind == "run"), None)


def _agreement(statement: Statement, locked: Mapping[str, Any] | None) -> int:
    """How far an entry of `dvc.lock` agrees: outputs before inputs before parameters."""
    if not isinstance(locked, Mapping):
        return 0
    outs, deps = recorded_md5s(locked, "outs"), recorded_md5s(locked, "deps")
    inputs = {path: digests["md5"] for path, digests in statement.inputs.items()}
    params = recorded_parameters(locked)
    return 4 * (outs == statement.outputs) + 2 * (deps == inputs) + (params == statement.parameters)


def recorded(locked: Mapping[str, Any], what: str) -> list[Mapping[str, Any]]:
    """The "deps" or "outs" of an entry of `dvc.lock`; none where it has another form."""
    entries = locked.get(what)
    return [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []


def recorded_md5s(locked: Mapping[str, Any], what: str) -> dict[str, str]:
    """The MD5s that an entry of `dvc.lock` has for its "deps" or "outs"."""
    return {str(entry.get("path")): str(entry.get("md5")) for entry in recorded(locked, what)}


def recorded_parameters(locked: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters in an entry of `dvc.lock`; none where it has another form."""
    files = locked.get("params")
    found = files.get("params.yaml") if isinstance(files, Mapping) else None
    return found if isinstance(found, Mapping) else {}
