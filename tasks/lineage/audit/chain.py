"""The chain of statements: every file is read, every signature verified, every link followed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from tasks.lineage import ancestry
from tasks.lineage import envelope as envelopes
from tasks.lineage import statement as statements
from tasks.lineage.audit.findings import Part
from tasks.lineage.audit.scene import STATEMENTS, Entry, Scene
from tasks.lineage.envelope import BadEnvelope
from tasks.lineage.keys import PublicKey
from tasks.lineage.shape import BadStatement
from tasks.lineage.statement import DATA, Statement

_NAME = re.compile(r"(\d{6,})-([a-z0-9_]+)\.json")
_RESTORE = "Restore it with: git checkout lineage/statements. If git has it like this too, ask who made the commit."


def read(scene: Scene, keys: Mapping[str, PublicKey]) -> None:
    """Read and verify every statement into `scene.entries`, and check the sequence and the links between them."""
    part = scene.part("chain")
    folder = scene.home / STATEMENTS
    slots: dict[int, list[Entry | None]] = defaultdict(list)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        match = _NAME.fullmatch(path.name)
        if match is None:
            part.find(
                f"{STATEMENTS}/{path.name}",
                expected="files named NUMBER-NAME.json alone",
                found="a file that is no statement",
                do="Remove it, or restore its name.",
            )
            continue
        slots[int(match[1])].append(_read_one(part, path, keys))
    if not slots:
        part.note("There is no statement: `axon run` writes them, unless AXON_LINEAGE=off.")
    scene.entries = [entry for number in sorted(slots) for entry in slots[number] if entry is not None]
    _check_sequence(part, slots)


def _read_one(part: Part, path: Path, keys: Mapping[str, PublicKey]) -> Entry | None:
    """Parse and verify one file. One with a bad signature is still used, so that what hangs on it is looked at."""
    place = f"{STATEMENTS}/{path.name}"
    part.count("statements")
    try:
        content = path.read_bytes()
        envelope = envelopes.from_bytes(content)
        parsed = statements.parse(envelopes.payload_of(envelope))
        _check_parameters(parsed)
    except (OSError, BadEnvelope, BadStatement) as error:
        part.find(place, expected="a signed statement", found=f"it cannot be read: {error}", do=_RESTORE)
        return None
    signer = envelopes.key_of(envelope)
    part.count("signatures")
    try:
        envelopes.verify(envelope, keys)
    except BadEnvelope as error:
        part.find(place, expected="a signature by a key in lineage/keys", found=error.reason, do=_RESTORE)
    named = f"{parsed.sequence:06d}-{parsed.stage or parsed.kind}.json"
    part.equal(place, named, path.name, do="It was renamed or swapped with another. " + _RESTORE, as_text="file {}")
    return Entry(place, content, envelope, parsed, signer)


def _check_parameters(statement: Statement) -> None:
    """Raise `BadStatement` unless the parameters have the form that the other parts of an audit rely on."""
    facts = statement.parameters
    if not isinstance(facts, Mapping):
        raise BadStatement("its parameters are no mapping")
    if statement.kind == "register":
        wrong = [key for key in ("name", "version", "model", "md5") if not isinstance(facts.get(key), str)]
        if wrong or not isinstance(facts.get("aliases"), list):
            raise BadStatement(f"its parameters lack {', '.join(wrong) or 'aliases'}")
    if statement.kind == "decide":
        wrong = [key for key in ("name", "action", "reason") if not isinstance(facts.get(key), str)]
        if wrong or not isinstance(facts.get("aliases"), Mapping):
            raise BadStatement(f"its parameters lack {', '.join(wrong) or 'aliases'}")
    if statement.kind == "forget":
        versions = facts.get("versions") or []
        if not isinstance(versions, list) or not all(isinstance(held, Mapping) for held in versions):
            raise BadStatement("its versions are no list of mappings")


def _check_sequence(part: Part, slots: Mapping[int, list[Entry | None]]) -> None:
    """No number is missing or there twice, and each statement names the digest of the one before."""
    before = 0
    for number in sorted(slots):
        if number > before + 1:
            missing = f"{before + 1:06d}" + (f" to {number - 1:06d}" if number > before + 2 else "")
            part.find(
                f"{STATEMENTS}/{before + 1:06d}-*.json",
                expected="one statement for every number",
                found=f"{missing} missing before {number:06d}",
                do=_RESTORE,
            )
        if len(slots[number]) > 1:
            part.find(
                f"{STATEMENTS}/{number:06d}-*.json",
                expected="one statement for every number",
                found=f"{len(slots[number])} files with the number {number:06d}",
                do="Two checkouts went on from one statement (or one was added). Keep the chain that the anchor names.",
            )
        for entry in slots[number]:
            for earlier in slots.get(number - 1, ()):
                if entry is not None and earlier is not None:
                    _check_link(part, earlier, entry)
        before = number


def _check_link(part: Part, earlier: Entry, entry: Entry) -> None:
    part.count("links")
    if entry.statement.previous != earlier.statement.digest:
        part.find(
            entry.place,
            expected=f"to follow {earlier.place}, whose digest is {earlier.statement.digest}",
            found=f"it follows {entry.statement.previous}",
            do=f"One of the two was replaced. Restore both with: git checkout {STATEMENTS}",
        )


def check_inputs(scene: Scene) -> None:
    """The statements behind a statement exist and are older, and wrote what it says it read."""
    part = scene.part("chain")
    for entry in scene.entries:
        statement = entry.statement
        behind = []
        for digest in statement.statements_behind:
            part.count("references")
            found = scene.by_digest.get(digest)
            if found is None or found.statement.sequence >= statement.sequence:
                part.find(
                    entry.place,
                    expected=f"an earlier statement with the digest {digest} behind it",
                    found="no such statement" if found is None else f"{found.place}, which is not earlier",
                    do=_RESTORE,
                )
            else:
                behind.append(found.statement)
        if statement.kind == "stage":
            _check_data(part, entry, behind)


def _check_data(part: Part, entry: Entry, behind: list[Statement]) -> None:
    """Every data input that a stage makes is an output of a statement behind, digest by digest."""
    for path, digests in entry.statement.inputs.items():
        if digests["kind"] != DATA or path.partition("/")[0] == ancestry.RAW:
            continue
        part.count("inputs")
        makers = [s for s in behind if _wrote(s, path, digests)]
        if not makers:
            named = [f"{s.sequence:06d}-{s.stage}" for s in behind if ancestry.files_of(s, path)]
            part.find(
                f"{entry.place} {path}",
                expected="a statement behind it that wrote this input, with the same digests",
                found=f"{', '.join(named)} wrote something else" if named else "none: nothing says how it was made",
                do="Run the stage that makes it again with statements switched on (delete its output, then `axon run`)."
                if not named
                else _RESTORE,
            )


def _wrote(statement: Statement, path: str, digests: Mapping[str, str]) -> bool:
    """Whether the statement's output (or part of one, or folder of several) is this input."""
    if path in statement.outputs and statement.outputs[path] != digests["md5"]:
        return False
    if ancestry.digest_of(statement, path) == digests["sha256"]:
        return True
    return any(out.startswith(path + "/") for out in statement.outputs)
