"""The OpenSSF signature of a model directory, made and checked by the library `model-signing` (ECDSA P-256).

The signature is a Sigstore bundle around an in-toto statement that lists every file with its SHA-256. The public tool
accepts it: `model_signing verify key DIRECTORY --signature model.sig --public_key KEY.pem`. It says that the holder of
the key vouches for these files, and not which registered version they are: that stands in the statements.
"""

from __future__ import annotations

import json
import tempfile
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from tasks.errors import UserError
from tasks.files import write_bytes
from tasks.lineage.hashing import sha256_file

# Names that the public tool leaves out of every digest unless it is told otherwise: a change in them would go unseen.
SKIPPED_BY_THE_TOOL = (".git", ".gitattributes", ".github", ".gitignore")


class BadSignature(ValueError):
    """A model that is not what its signature vouches for, or a signature that is not by the key; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def sign(model_directory: Path, private_key: Path, signature_path: Path) -> None:
    """Write the signature of every file below `model_directory`, atomically; the directory itself is only read.

    `private_key` is a PEM file of a P-256 key without a password. Raises `UserError` for a directory that cannot be
    signed so that the public tool accepts it without options.
    """
    _check_directory(model_directory, signature_path)
    from model_signing import signing

    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "model.sig"
        try:
            config = signing.Config().use_elliptic_key_signer(private_key=private_key)
            config.set_hashing_config(_every_file()).sign(model_directory, written)
        except (OSError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
            raise UserError(
                f"{model_directory} cannot be signed with {private_key}: {error}. The key must be an ECDSA P-256 key "
                "in PEM, and the directory must hold plain files.",
                exit_code=1,
            ) from None
        content = written.read_bytes()
    write_bytes(signature_path, content)
    signature_path.chmod(0o644)


def verify(model_directory: Path, public_key: Path, signature_path: Path) -> None:
    """Return if the holder of `public_key` (PEM) signed exactly the files of the directory; raises `BadSignature`.

    Stricter than the public tool: an additional file counts whatever its name, and the signature file has one form
    only, so that no bit of it can change unseen.
    """
    for path, what in ((model_directory, "the model"), (public_key, "the public key"), (signature_path, "it")):
        if not path.exists():
            raise BadSignature(f"{what} is missing ({path})")
    from model_signing import verifying

    payload = _check_form(signature_path.read_bytes())
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(_every_file()).verify(model_directory, signature_path)
    except InvalidSignature:
        raise BadSignature(f"it is not a signature by the key in {public_key.name}") from None
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, UnsupportedAlgorithm) as error:
        differences = _differences(model_directory, payload) if "mismatch:" in str(error) else ""
        raise BadSignature(differences or str(error) or type(error).__name__) from None


def _differences(model_directory: Path, payload: dict[str, Any]) -> str:
    """What of the directory is not as signed, by file name; the library says it with the bytes of digests."""
    signed = {entry["name"]: entry["digest"] for entry in payload["predicate"]["resources"]}
    files = {
        path.relative_to(model_directory).as_posix(): path for path in model_directory.rglob("*") if path.is_file()
    }
    changed = [name for name in files if name in signed and sha256_file(files[name]) != signed[name]]
    said = [f"{name} was changed" for name in changed]
    said += [f"{name} is missing" for name in signed if name not in files]
    said += [f"{name} was added" for name in files if name not in signed]
    return "; ".join(sorted(said))


def _every_file() -> Any:
    """Hash all files and leave out none; links are read through, since DVC can be told to link to its cache."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False).set_allow_symlinks(True)


def _check_directory(model_directory: Path, signature_path: Path) -> None:
    if not model_directory.is_dir():
        raise UserError(f"{model_directory} is not a directory with a model; run `axon run`.", exit_code=1)
    if signature_path.resolve().is_relative_to(model_directory.resolve()):
        raise UserError(
            f"the signature cannot lie in the model that it vouches for ({signature_path}); "
            "choose a path outside the directory.",
            exit_code=1,
        )
    skipped = [name for name in SKIPPED_BY_THE_TOOL if (model_directory / name).exists()]
    if skipped:
        raise UserError(
            f"{model_directory} holds {', '.join(skipped)}, which `model_signing verify` leaves out of every digest; "
            "remove it from the model and run again.",
            exit_code=1,
        )
    if not any(path.is_file() for path in model_directory.rglob("*")):
        raise UserError(f"{model_directory} holds no file to sign; run `axon run`.", exit_code=1)


def _check_form(content: bytes) -> dict[str, Any]:
    """The payload of a bundle, not verified. Refuses one that differs from the form in which the library writes it:
    the signature covers the payload alone."""
    try:
        bundle = json.loads(content.decode("utf-8"))
        envelope = bundle["dsseEnvelope"]
        parts = {"payload": envelope["payload"], "sig": envelope["signatures"][0]["sig"]}
        parts = {name: b64encode(b64decode(text, validate=True)).decode() for name, text in parts.items()}
        payload: dict[str, Any] = json.loads(b64decode(parts["payload"]))
        expected = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "publicKey": {"hint": str(bundle["verificationMaterial"]["publicKey"]["hint"])},
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": parts["payload"],
                "payloadType": "application/vnd.in-toto+json",
                "signatures": [{"sig": parts["sig"], "keyid": ""}],
            },
        }
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise BadSignature(f"it is not a Sigstore bundle with one signature ({error})") from None
    if json.dumps(expected, separators=(",", ":")).encode("utf-8") != content:
        raise BadSignature("its bytes are not in the one form in which model-signing writes a bundle")
    return payload
