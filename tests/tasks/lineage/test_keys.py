"""The private key is its owner's alone and goes nowhere; the public one is what its name says."""

import os
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tasks.errors import UserError
from tasks.lineage import keys
from tasks.lineage.keys import Key
from tasks.runtime.checkout import Checkout
from tests.tasks.lineage.workspace import make_checkout, record

PKCS8 = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
SPKI = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_the_private_key_is_mode_0600_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        key = keys.signing_key(Checkout(tmp_path))
    finally:
        os.umask(before)
    path = tmp_path / ".axon" / "keys" / "signing.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["signing.pem"]
    read = subprocess.run(
        ["openssl", "pkey", "-in", path, "-noout", "-text"], check=True, capture_output=True, text=True
    )
    assert "P-256" in read.stdout
    assert keys.signing_key(Checkout(tmp_path)).fingerprint == key.fingerprint


def test_the_public_key_is_openssl_s_own_of_the_private_one(tmp_path):
    key = keys.signing_key(Checkout(tmp_path))
    private = tmp_path / ".axon" / "keys" / "signing.pem"
    public = subprocess.run(["openssl", "pkey", "-in", private, "-pubout"], check=True, capture_output=True).stdout
    path = tmp_path / "lineage" / "keys" / f"{key.fingerprint}.pem"
    assert path.read_bytes() == public == key.public_pem
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(keys.public_keys(tmp_path)) == [key.fingerprint]


def test_two_processes_that_make_a_key_at_once_get_the_same(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tasks.lineage import keys; "
        "from tasks.runtime.checkout import Checkout; sys.stdin.read(1); "
        "print(keys.signing_key(Checkout(Path(sys.argv[1]))).fingerprint)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in started:
        process.stdin.write("x")
        process.stdin.flush()
    said = {process.communicate()[0].strip() for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert said == set(keys.public_keys(tmp_path))
    assert len(said) == 1


def test_no_key_material_is_in_what_git_carries(tmp_path):
    checkout = make_checkout(tmp_path)
    record(checkout, "make")
    key = keys.signing_key(checkout)
    pem = (checkout.state / "keys" / "signing.pem").read_text()
    secrets = [line.encode() for line in pem.splitlines()[1:-1]]
    number = key.private.private_numbers().private_value
    secrets += [f"{number:064x}".encode(), str(number).encode(), number.to_bytes(32, "big"), b"PRIVATE"]
    files = [path for path in (tmp_path / "lineage").rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        assert not any(secret in path.read_bytes() for secret in secrets)
    assert f"{number}" not in repr(key)


def test_a_key_that_others_can_read_is_refused(tmp_path):
    keys.signing_key(Checkout(tmp_path))
    path = tmp_path / ".axon" / "keys" / "signing.pem"
    path.chmod(0o640)
    with pytest.raises(UserError, match=r"mode 0640.*chmod 600") as caught:
        keys.signing_key(Checkout(tmp_path))
    assert caught.value.exit_code == 1


def private_pem(key) -> bytes:
    return key.private_bytes(*PKCS8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a private key in PEM"),
        (private_pem(ec.generate_private_key(ec.SECP384R1())), "not an ECDSA key on the curve P-256"),
        (private_pem(rsa.generate_private_key(65537, 2048)), "not an ECDSA key on the curve P-256"),
    ],
    ids=["empty", "P-384", "RSA"],
)
def test_what_is_no_p_256_key_is_refused(tmp_path, content, reason):
    path = tmp_path / ".axon" / "keys" / "signing.pem"
    path.parent.mkdir(parents=True)
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        keys.signing_key(Checkout(tmp_path))


def test_public_keys_that_are_not_what_their_name_says_are_refused(tmp_path):
    key = keys.signing_key(Checkout(tmp_path))
    path = tmp_path / "lineage" / "keys" / f"{key.fingerprint}.pem"
    other = ec.generate_private_key(ec.SECP256R1())
    for content, reason in (
        (Key(other).public_pem, "not the one of its name"),
        (key.public_pem + b"\n", "not the usual PEM"),
        (
            ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*SPKI),
            "not an ECDSA key on the curve P-256",
        ),
        (b"x", "not a public key in PEM"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=reason):
            keys.public_keys(tmp_path)
