"""The keys of a chain, and the anchor that it is held against: who may sign, and where it ends."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Sequence

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tasks.errors import UserError
from tasks.lineage import keys as keyfiles
from tasks.lineage.audit.findings import Anchor, Part
from tasks.lineage.audit.scene import HEAD, KEYS, PRIVATE_KEY, STATEMENTS, Entry, Scene
from tasks.lineage.keys import PublicKey

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"sequence", "digest", "key"}


def given(keys: Sequence[str], head: str | None) -> Anchor | None:
    """The anchor of the command line; None if it has none. Raises `UserError` for half of one, or a bad value."""
    if not keys and head is None:
        return None
    if not keys or head is None:
        raise UserError(
            "--key and --head anchor a chain together: give both, as `axon keys` and a run's end show them."
        )
    for option, value in [*(("--key", key) for key in keys), ("--head", head)]:
        if not _DIGEST.fullmatch(value):
            raise UserError(f"{option} {value}: give all 64 hexadecimal digits, as `axon keys` shows them.")
    return Anchor(keys=tuple(keys), head=head, place="--key and --head")


def local(scene: Scene) -> Anchor | None:
    """The anchor that the checkout itself keeps; None where it has none, or a damaged one (a finding)."""
    path = scene.checkout.state / "lineage-head.json"
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
        known = json.loads(content)
        if set(known) != _FIELDS or _written(known) != content:
            raise ValueError("it is not written the way Axon writes it")
        if not (_DIGEST.fullmatch(known["digest"]) and _DIGEST.fullmatch(known["key"])):
            raise ValueError("its digests are not SHA-256 in hexadecimal digits")
    except (OSError, ValueError, TypeError) as error:
        scene.part("keys").find(
            HEAD,
            expected="number, digest and key of the newest statement",
            found=f"it cannot be read: {error}",
            do="Restore it from a copy, or audit with the --key and --head that the last run printed.",
        )
        return None
    _check_number(scene, known["sequence"], known["digest"])
    return Anchor(keys=(known["key"],), head=known["digest"], place=HEAD)


def _written(known: dict[str, object]) -> bytes:
    return (json.dumps(known, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _check_number(scene: Scene, number: object, digest: str) -> None:
    entry = scene.by_digest.get(digest)
    if entry is not None and entry.statement.sequence != number:
        scene.part("keys").find(
            HEAD,
            expected=f"number {entry.statement.sequence}, that of the statement it names",
            found=f"number {number}",
            do="Restore it from a copy, or audit with the --key and --head that the last run printed.",
        )


def public_keys(scene: Scene) -> dict[str, PublicKey]:
    """The public keys of `lineage/keys` by fingerprint; a file that is not what its name says is a finding."""
    part, found = scene.part("keys"), {}
    folder = scene.home / KEYS
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        part.count("public keys")
        place, name = f"{KEYS}/{path.name}", path.name.removesuffix(".pem")
        try:
            public = keyfiles.read_public(path.read_bytes())
            if keyfiles.fingerprint(public) != name or path.suffix != ".pem":
                raise ValueError(f"its fingerprint is {keyfiles.fingerprint(public)}")
        except (OSError, ValueError) as error:
            part.find(
                place,
                expected=f"the public key with the fingerprint {name}",
                found=str(error),
                do="Restore it with: git checkout lineage/keys",
            )
            continue
        found[name] = public
    return found


def check(scene: Scene, anchor: Anchor | None, kept: Anchor | None, keys: dict[str, PublicKey]) -> None:
    """Hold the chain against the anchor: its keys alone have signed, and its head is there. `kept` is the local one."""
    part = scene.part("keys")
    _check_private(scene, part, anchor, keys)
    if anchor is None:
        part.note(
            "Nothing anchors this chain: whoever holds a key could have written all of it anew. Audit with the --key "
            "and --head that the last run printed, or where .axon/lineage-head.json is."
        )
        return
    if not (kept and _names_a_stranger(scene, part, kept, keys) and kept is anchor):
        _check_signers(scene, part, anchor, keys)
    _check_head(scene, part, anchor)
    if kept is not None and kept is not anchor:
        _check_head(scene, part, kept)


def _names_a_stranger(scene: Scene, part: Part, kept: Anchor, keys: dict[str, PublicKey]) -> bool:
    """Whether the checkout's own anchor names a key that is nowhere: then it is the file that is wrong."""
    [fingerprint] = kept.keys
    entry = scene.by_digest.get(kept.head)
    signers = {entry.signer for entry in scene.entries}
    if fingerprint in keys or fingerprint in signers or not signers:
        return False
    part.find(
        HEAD,
        expected=f"the key that signed the newest statement, {entry.signer if entry else ', '.join(sorted(signers))}",
        found=f"the key {fingerprint}, which signed nothing here",
        do="Restore it from a copy, or audit with the --key and --head that the last run printed.",
    )
    return True


def _check_signers(scene: Scene, part: Part, anchor: Anchor, keys: dict[str, PublicKey]) -> None:
    """The keys of the anchor are there, and have signed every statement."""
    for fingerprint in anchor.keys:
        if fingerprint not in keys:
            part.find(
                f"{KEYS}/{fingerprint}.pem",
                expected=f"the public key that the anchor names ({anchor.place})",
                found="no such key",
                do="Restore it with: git checkout lineage/keys",
            )
    for entry in scene.entries:
        part.count("signers")
        if entry.signer not in anchor.keys:
            part.find(
                entry.place,
                expected=f"a signature by the key of the anchor, {', '.join(anchor.keys)}",
                found=f"it is signed by {entry.signer}",
                do="Someone else wrote it. If the key was replaced on purpose, audit with --key for each of them.",
            )


def _check_head(scene: Scene, part: Part, anchor: Anchor) -> None:
    """The head is in the chain; where the checkout keeps it, it is the newest statement."""
    part.count("heads")
    newest = max(scene.entries, key=lambda entry: entry.statement.sequence, default=None)
    entry = scene.by_digest.get(anchor.head)
    if entry is None:
        place = HEAD if anchor.place == HEAD else STATEMENTS
        part.find(
            place,
            expected=f"a statement with the digest {anchor.head}, which is the head ({anchor.place})",
            found=f"none; the newest is {newest.place} with {newest.statement.digest}" if newest else "no statement",
            do="The end of the chain was dropped or replaced. Restore it with: git checkout lineage/statements",
        )
        return
    after = [other for other in scene.entries if other.statement.sequence > entry.statement.sequence]
    if not after:
        return
    if anchor.place == HEAD:
        part.find(
            HEAD,
            expected=f"the newest statement, {after[-1].place} with the digest {after[-1].statement.digest}",
            found=f"{entry.place}, after which {_statements(after)} came",
            do="The head was set back, or statements came from elsewhere (git pull): then remove the file and audit "
            "with the --key and --head that were printed there.",
        )
    else:
        part.note(
            f"{_statements(after)} came after the head that was given ({entry.place}): signed, but nothing says that "
            "none is missing at the end."
        )


def _statements(entries: list[Entry]) -> str:
    return f"{len(entries)} statement" + ("s" if len(entries) > 1 else "")


def _check_private(scene: Scene, part: Part, anchor: Anchor | None, keys: dict[str, PublicKey]) -> None:
    """If this checkout has a private key, it is whole, its owner's alone, and the one whose public half signs here."""
    path = keyfiles.private_path(scene.checkout)
    if not path.exists():
        return
    part.count("private keys")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        found = _private_fingerprint(path.read_bytes())
    except (OSError, ValueError) as error:
        part.find(
            PRIVATE_KEY,
            expected="a whole ECDSA P-256 private key",
            found=str(error),
            do="Restore it from a copy: with another key no statement continues this chain.",
        )
        return
    if mode & 0o077:
        part.find(
            PRIVATE_KEY,
            expected="mode 0600: its owner alone can read it",
            found=f"mode {mode:04o}",
            do=f"chmod 600 {PRIVATE_KEY}. If someone else could read it, make a new key and tell the auditors.",
        )
    signers = anchor.keys if anchor else tuple(sorted({entry.signer for entry in scene.entries}))
    if found not in keys or (signers and found not in signers):
        part.find(
            PRIVATE_KEY,
            expected=f"the private half of {', '.join(signers) or 'a key in lineage/keys'}",
            found=f"the private half of {found}",
            do="Restore it from a copy: with another key no statement continues this chain.",
        )


def _private_fingerprint(content: bytes) -> str:
    """The fingerprint of the public half of a private key in PEM; a ValueError if it is not whole."""
    try:
        private = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"it cannot be read: {error}") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise ValueError("it is not an ECDSA key on the curve P-256")
    derived = ec.derive_private_key(private.private_numbers().private_value, ec.SECP256R1())
    written = derived.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if written != content:
        raise ValueError("its two halves do not belong together, or its bytes are not the usual PEM")
    return keyfiles.fingerprint(derived.public_key())
