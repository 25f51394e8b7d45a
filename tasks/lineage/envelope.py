"""DSSE envelopes around statements (secure-systems-lab/dsse, protocol 1.0), signed and verified by securesystemslib.

An envelope has one form only: one signature, base64 and JSON as written here, and of the two ECDSA signatures
(r, s) and (r, n - s) the one with the smaller s. So no byte of a file can change without verification failing.
"""

from __future__ import annotations

import base64
import binascii
import copy
import json
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from tasks.lineage.keys import Key, PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256, FIPS 186-4 D.1.2.3


class BadEnvelope(ValueError):
    """An envelope that is malformed, or whose signature is not by a trusted key; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def sign(payload: bytes, key: Key) -> dict[str, Any]:
    """The envelope of `payload` under `key`; its keyid is the key's fingerprint."""
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    public = SSlibKey.from_crypto(key.public, keyid=key.fingerprint)
    signature = envelope.sign(CryptoSigner(key.private, public))
    r, s = decode_dss_signature(bytes.fromhex(signature.signature))
    signature.signature = encode_dss_signature(r, min(s, _ORDER - s)).hex()
    return dict(envelope.to_dict())


def verify(envelope: Mapping[str, Any], keys: Mapping[str, PublicKey]) -> bytes:
    """The payload, if one of the public `keys` (by fingerprint) signed it; raises `BadEnvelope`."""
    fingerprint, signature = _the_signature(envelope)
    if fingerprint not in keys:
        raise BadEnvelope(f"it is signed by the key {fingerprint}, which is not among the trusted ones")
    payload = payload_of(envelope)
    _check_form(signature)
    parsed = Envelope.from_dict(copy.deepcopy(dict(envelope)))
    try:
        parsed.verify([SSlibKey.from_crypto(keys[fingerprint], keyid=fingerprint)], threshold=1)
    except VerificationError:
        raise BadEnvelope(f"the signature is not that of the key {fingerprint} over this payload") from None
    return payload


def payload_of(envelope: Mapping[str, Any]) -> bytes:
    """The payload of a well-formed envelope, not verified; raises `BadEnvelope`."""
    _the_signature(envelope)
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise BadEnvelope(f"payloadType is {envelope['payloadType']!r}, not {PAYLOAD_TYPE}")
    return _decode(envelope["payload"], "payload")


def key_of(envelope: Mapping[str, Any]) -> str:
    """The fingerprint that a well-formed envelope names as its signer's, not verified; raises `BadEnvelope`."""
    return _the_signature(envelope)[0]


def to_bytes(envelope: Mapping[str, Any]) -> bytes:
    """The one form of an envelope in a file: JSON with sorted keys, two spaces, a last newline."""
    return (json.dumps(envelope, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def from_bytes(content: bytes) -> dict[str, Any]:
    """An envelope from a file, not verified; raises `BadEnvelope` unless it is well-formed and in the one form."""
    try:
        envelope = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise BadEnvelope(f"it is not JSON in UTF-8 ({error})") from None
    payload_of(envelope)
    if to_bytes(envelope) != content:
        raise BadEnvelope("its JSON is not written the way statements are (spaces, order or doubled keys)")
    return dict(envelope)


def _the_signature(envelope: Mapping[str, Any]) -> tuple[str, bytes]:
    """Fingerprint and DER bytes of the one signature of an envelope with the right fields."""
    if not isinstance(envelope, Mapping) or set(envelope) != {"payload", "payloadType", "signatures"}:
        raise BadEnvelope("it must have the fields payload, payloadType and signatures, and no other")
    if not isinstance(envelope["payload"], str) or not isinstance(envelope["payloadType"], str):
        raise BadEnvelope("payload and payloadType must be strings")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise BadEnvelope("signatures must be a list of exactly one signature")
    entry = signatures[0]
    if not isinstance(entry, Mapping) or set(entry) != {"keyid", "sig"}:
        raise BadEnvelope("the signature must have the fields keyid and sig, and no other")
    if not isinstance(entry["keyid"], str) or not isinstance(entry["sig"], str):
        raise BadEnvelope("keyid and sig must be strings")
    return entry["keyid"], _decode(entry["sig"], "sig")


def _decode(text: str, name: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadEnvelope(f"{name} is not base64 ({error})") from None
    if base64.b64encode(content).decode() != text:
        raise BadEnvelope(f"{name} is not base64 in its one form")
    return content


def _check_form(signature: bytes) -> None:
    try:
        r, s = decode_dss_signature(signature)
    except ValueError:
        raise BadEnvelope("sig is not an ECDSA signature in DER") from None
    if s > _ORDER // 2 or encode_dss_signature(r, s) != signature:
        raise BadEnvelope("sig is not in its one form (DER, the smaller s)")
