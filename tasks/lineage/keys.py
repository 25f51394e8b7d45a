"""The ECDSA P-256 key that signs this checkout's statements: made at first use, the public half kept beside them."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from tasks.errors import UserError
from tasks.files import write_bytes
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout

PublicKey = ec.EllipticCurvePublicKey


def fingerprint(public: PublicKey) -> str:
    """SHA-256 (64 hex digits) of the key's DER SubjectPublicKeyInfo."""
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


@dataclass(frozen=True)
class Key:
    """A private key, with what may be told of it."""

    private: ec.EllipticCurvePrivateKey

    @property
    def public(self) -> PublicKey:
        return self.private.public_key()

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.public)

    @cached_property
    def public_pem(self) -> bytes:
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def __repr__(self) -> str:
        return f"Key({self.fingerprint[:16]}…)"


def private_path(checkout: Checkout) -> Path:
    return checkout.state / "keys" / "signing.pem"


def public_folder(root: Path) -> Path:
    return root / "lineage" / "keys"


def load(checkout: Checkout) -> Key | None:
    """The checkout's key, or None if none was made yet; a `UserError` if others can read it or it is damaged."""
    path = private_path(checkout)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if mode & 0o077:
        raise UserError(
            f"{path} has mode {mode:04o}, but only its owner may read a private key: chmod 600 {path}", exit_code=1
        )
    try:
        private = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(
            f"{path} is not a private key in PEM without a password ({error}). Restore it from a copy; or remove it, "
            f"and the next run makes a new key, under which older statements no longer continue.",
            exit_code=1,
        ) from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise UserError(f"{path} is not an ECDSA key on the curve P-256; replace it by one.", exit_code=1)
    return Key(private)


def signing_key(checkout: Checkout) -> Key:
    """The checkout's key, made at first use; its public half is written below `lineage/keys` if it is not there."""
    key = load(checkout)
    if key is None:
        with guard.exclusive(checkout.locks / "keys", who="making the signing key", waiting=lambda _: None):
            if not private_path(checkout).exists():
                _make(private_path(checkout))
        key = load(checkout)
        if key is None:
            raise UserError(f"{private_path(checkout)} was removed just after it was made; run again.", exit_code=1)
    public = public_folder(checkout.state.parent) / f"{key.fingerprint}.pem"
    if not public.is_file():
        write_bytes(public, key.public_pem)
        public.chmod(0o644)
    return key


def _make(path: Path) -> None:
    """Write a new key as a whole; mode 0600 from its first byte on."""
    content = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_public(content: bytes) -> PublicKey:
    """A public key from PEM; a ValueError that says why if it is not one on P-256 in its one usual form."""
    try:
        public = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"it is not a public key in PEM ({error})") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise ValueError("it is not an ECDSA key on the curve P-256")
    if public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) != content:
        raise ValueError("its bytes are not the usual PEM of the key in it")
    return public


def public_keys(root: Path) -> dict[str, PublicKey]:
    """The public keys below `lineage/keys` by fingerprint; a `UserError` for a file that is not what its name says."""
    found = {}
    for path in sorted(public_folder(root).glob("*.pem")):
        try:
            public = read_public(path.read_bytes())
        except ValueError as error:
            raise UserError(f"{path}: {error}. Restore it with git.", exit_code=1) from None
        if fingerprint(public) != path.stem:
            raise UserError(
                f"{path} holds the key {fingerprint(public)}, not the one of its name. Restore it with git.",
                exit_code=1,
            )
        found[path.stem] = public
    return found
