"""Envelopes verify by tools that are not ours, and in no other form than the one they were written in."""

import base64
import copy
import json
import subprocess

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from tasks.lineage import envelope as envelopes
from tasks.lineage import keys
from tasks.lineage.envelope import BadEnvelope
from tasks.lineage.keys import Key

PAYLOAD = '{"a":"ü"}'.encode()
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture(scope="module")
def key():
    return Key(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def signed(key):
    return envelopes.sign(PAYLOAD, key)


def trusted(*signers: Key):
    return {signer.fingerprint: signer.public for signer in signers}


def pae(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, from its specification."""
    kind = b"application/vnd.in-toto+json"
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])


def signature_of(envelope) -> bytes:
    return base64.b64decode(envelope["signatures"][0]["sig"])


def with_signature(envelope, signature: bytes):
    changed = copy.deepcopy(envelope)
    changed["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return changed


def test_cryptography_verifies_the_signature_over_the_pae(key, signed):
    assert base64.b64decode(signed["payload"]) == PAYLOAD
    key.public.verify(signature_of(signed), pae(PAYLOAD), ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        key.public.verify(signature_of(signed), pae(PAYLOAD + b" "), ec.ECDSA(hashes.SHA256()))


def test_openssl_verifies_the_signature_with_the_public_key_alone(key, signed, tmp_path):
    (tmp_path / "key.pem").write_bytes(key.public_pem)
    (tmp_path / "sig").write_bytes(signature_of(signed))
    command = ["openssl", "dgst", "-sha256", "-verify", "key.pem", "-signature", "sig", "pae"]
    for message, expected in ((pae(PAYLOAD), "Verified OK"), (pae(PAYLOAD)[:-1] + b"]", "Verification")):
        (tmp_path / "pae").write_bytes(message)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert expected in done.stdout
        assert (done.returncode == 0) == (expected == "Verified OK")


def test_what_openssl_signed_is_accepted(key, tmp_path):
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    (tmp_path / "pae").write_bytes(pae(PAYLOAD))
    command = ["openssl", "dgst", "-sha256", "-sign", "key.pem", "pae"]
    signature = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout
    r, s = decode_dss_signature(signature)
    envelope = {
        "payload": base64.b64encode(PAYLOAD).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"keyid": key.fingerprint, "sig": ""}],
    }
    envelope = with_signature(envelope, encode_dss_signature(r, min(s, P256_ORDER - s)))
    assert envelopes.verify(envelope, trusted(key)) == PAYLOAD


def test_the_fingerprint_is_that_of_openssl_s_der(key, tmp_path):
    (tmp_path / "key.pem").write_bytes(key.public_pem)
    command = "openssl pkey -pubin -in key.pem -outform DER | sha256sum"
    found = subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert found.split()[0] == key.fingerprint == keys.fingerprint(key.public)


def test_no_bit_of_the_file_can_change(key, signed):
    content = envelopes.to_bytes(signed)
    assert envelopes.verify(envelopes.from_bytes(content), trusted(key)) == PAYLOAD
    for position in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            with pytest.raises(BadEnvelope):
                envelopes.verify(envelopes.from_bytes(bytes(changed)), trusted(key))


def test_another_key_is_not_trusted_and_cannot_pose_as_this_one(key, signed):
    other = Key(ec.generate_private_key(ec.SECP256R1()))
    forged = envelopes.sign(PAYLOAD, other)
    with pytest.raises(BadEnvelope, match=f"{other.fingerprint}, which is not among the trusted"):
        envelopes.verify(forged, trusted(key))
    forged["signatures"][0]["keyid"] = key.fingerprint
    with pytest.raises(BadEnvelope, match="not that of the key"):
        envelopes.verify(forged, trusted(key, other))


def test_of_the_two_valid_forms_of_a_signature_one_is_accepted(key, signed):
    r, s = decode_dss_signature(signature_of(signed))
    twin = encode_dss_signature(r, P256_ORDER - s)
    key.public.verify(twin, pae(PAYLOAD), ec.ECDSA(hashes.SHA256()))
    with pytest.raises(BadEnvelope, match="smaller s"):
        envelopes.verify(with_signature(signed, twin), trusted(key))


def loosened_base64(text: str) -> str:
    """The same bytes with the unused bits of the last character set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    assert text.endswith("=")
    at = len(text.rstrip("=")) - 1
    return text[:at] + alphabet[alphabet.index(text[at]) + 1] + text[at + 1 :]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: e.pop("payloadType"), "payload, payloadType and signatures"),
        (lambda e: e.update(note="x"), "and no other"),
        (lambda e: e.update(payload=7), "must be strings"),
        (lambda e: e.update(payload="ab c="), "payload is not base64"),
        (lambda e: e.update(payload=loosened_base64(e["payload"] if "=" in e["payload"] else "YQ==")), "one form"),
        (lambda e: e.update(payloadType="text/plain"), "payloadType is 'text/plain'"),
        (lambda e: e.update(signatures=[]), "exactly one"),
        (lambda e: e["signatures"].append(e["signatures"][0]), "exactly one"),
        (lambda e: e["signatures"][0].update(cert="x"), "keyid and sig, and no other"),
        (lambda e: e["signatures"][0].update(sig="AAAA"), "not an ECDSA signature in DER"),
        (lambda e: e["signatures"][0].update(keyid=None), "must be strings"),
    ],
)
def test_a_malformed_envelope_is_refused_with_the_reason(key, signed, change, reason):
    change(signed)
    with pytest.raises(BadEnvelope, match=reason):
        envelopes.verify(signed, trusted(key))


def test_verifying_leaves_the_envelope_as_it_is(key, signed):
    before = copy.deepcopy(signed)
    envelopes.verify(signed, trusted(key))
    assert signed == before


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"payload": "\xff"}', b"null"])
def test_a_file_that_is_no_envelope_is_refused(content):
    with pytest.raises(BadEnvelope):
        envelopes.from_bytes(content)


def test_a_doubled_key_in_the_file_is_refused(signed):
    text = json.dumps(signed)[:-1] + ', "payload": "YWI="}'
    with pytest.raises(BadEnvelope, match="doubled"):
        envelopes.from_bytes(text.encode())
