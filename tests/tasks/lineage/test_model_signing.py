"""The signature of a model is accepted by the public tool, and refused by it and by us after any change."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tasks.errors import UserError
from tasks.lineage import envelope, keys, model_signing, statement
from tasks.runtime.checkout import Checkout
from tests.tasks.lineage.workspace import plain_body

FILES = {"config.json": b"{}\n", "model.safetensors": bytes(range(256)), "nested/tokenizer.json": b'{"a": 1}'}


@pytest.fixture
def signed(tmp_path):
    """(model directory, public key, signature), signed with the key of a checkout."""
    model = tmp_path / "models" / "ppo"
    for name, content in FILES.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(content)
    checkout = Checkout(tmp_path)
    key = keys.signing_key(checkout)
    signature = tmp_path / "lineage" / "models" / "axon-chat-1" / "model.sig"
    model_signing.sign(model, keys.private_path(checkout), signature)
    return model, keys.public_folder(tmp_path) / f"{key.fingerprint}.pem", signature


def public_tool(model: Path, public_key: Path, signature: Path, *options: str) -> subprocess.CompletedProcess:
    """`model_signing verify key`, as an auditor without Axon runs it."""
    tool = [sys.executable, "-m", "model_signing", "verify", "key", str(model)]
    return subprocess.run(
        [*tool, "--signature", str(signature), "--public_key", str(public_key), *options],
        capture_output=True,
        text=True,
        env=os.environ,
        cwd=signature.parent,
    )


def flip(path: Path, place: int) -> None:
    """Flip one bit; `place` counts bits from the start of the file."""
    content = bytearray(path.read_bytes())
    content[place // 8] ^= 1 << (place % 8)
    path.write_bytes(content)


def test_the_public_tool_accepts_the_signature(signed):
    done = public_tool(*signed)
    assert done.returncode == 0, done.stderr
    assert "Verification succeeded" in done.stdout


def test_verify_accepts_it_too_and_the_model_is_only_read(signed):
    model, public_key, signature = signed
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in model.rglob("*") if path.is_file()}
    model_signing.sign(model, keys.private_path(Checkout(model.parents[1])), signature)
    model_signing.verify(model, public_key, signature)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in model.rglob("*") if path.is_file()}
    assert after == before
    assert {path.relative_to(model).as_posix() for path in after} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_any_file_is_refused_by_the_public_tool(signed, name):
    model, public_key, signature = signed
    flip(model / name, 8 * len(FILES[name]) - 1)
    done = public_tool(model, public_key, signature)
    assert done.returncode == 1
    assert "Hash mismatch for" in done.stderr
    assert name in done.stderr


def test_every_flipped_bit_of_the_model_is_refused(signed):
    model, public_key, signature = signed
    for name in FILES:
        for place in range(0, 8 * len(FILES[name]), 29):
            flip(model / name, place)
            with pytest.raises(model_signing.BadSignature, match=f"{name} was changed"):
                model_signing.verify(model, public_key, signature)
            flip(model / name, place)
    model_signing.verify(model, public_key, signature)


def test_flipped_bits_of_the_signature_are_refused(signed):
    model, public_key, signature = signed
    n_bits = 8 * signature.stat().st_size
    for place in random.Random(7).sample(range(n_bits), 400):
        flip(signature, place)
        with pytest.raises(model_signing.BadSignature):
            model_signing.verify(model, public_key, signature)
        flip(signature, place)
    model_signing.verify(model, public_key, signature)


def test_what_no_signature_reaches_must_be_in_the_one_form(signed):
    """The public tool looks at neither the key id nor spaces: two changes that a signature does not cover."""
    model, public_key, signature = signed
    for old, new in (('"keyid":""', '"keyid":"x"'), ('{"mediaType"', '{ "mediaType"')):
        content = signature.read_text()
        signature.write_text(content.replace(old, new))
        assert public_tool(model, public_key, signature).returncode == 0
        with pytest.raises(model_signing.BadSignature, match="one form"):
            model_signing.verify(model, public_key, signature)
        signature.write_text(content)


@pytest.mark.parametrize("name", ["extra.bin", ".gitignore"])
def test_an_additional_file_is_refused(signed, name):
    model, public_key, signature = signed
    (model / name).write_text("more")
    with pytest.raises(model_signing.BadSignature, match=f"{name} was added"):
        model_signing.verify(model, public_key, signature)


def test_a_missing_file_and_a_missing_signature_are_refused(signed):
    model, public_key, signature = signed
    (model / "config.json").rename(model.parent / "config.json")
    with pytest.raises(model_signing.BadSignature, match=r"config\.json is missing"):
        model_signing.verify(model, public_key, signature)
    signature.unlink()
    with pytest.raises(model_signing.BadSignature, match="is missing"):
        model_signing.verify(model, public_key, signature)


def test_another_key_is_refused(signed, tmp_path):
    model, _, signature = signed
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    public_key = tmp_path / "other.pem"
    public_key.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(model_signing.BadSignature, match="key"):
        model_signing.verify(model, public_key, signature)
    assert public_tool(model, public_key, signature).returncode == 1


def test_a_statement_signed_by_the_same_key_is_no_signature_of_a_model(signed, tmp_path):
    """Both are DSSE envelopes of in-toto statements under one key: only the predicate tells them apart."""
    model, public_key, signature = signed
    key = keys.signing_key(Checkout(tmp_path))
    signed_statement = envelope.sign(statement.canonical(statement.chained(plain_body(), 1, None)), key)
    bundle = json.loads(signature.read_text())
    bundle["dsseEnvelope"]["payload"] = signed_statement["payload"]
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = signed_statement["signatures"][0]["sig"]
    signature.write_text(json.dumps(bundle, separators=(",", ":")))
    with pytest.raises(model_signing.BadSignature, match="Predicate type mismatch"):
        model_signing.verify(model, public_key, signature)


def test_a_linked_file_is_signed_by_its_content(signed):
    model, public_key, signature = signed
    target = model.parent / "cache"
    (model / "config.json").rename(target)
    (model / "config.json").symlink_to(target)
    model_signing.verify(model, public_key, signature)
    assert public_tool(model, public_key, signature, "--allow_symlinks").returncode == 0
    target.write_bytes(b"{ }")
    with pytest.raises(model_signing.BadSignature, match=r"config\.json was changed"):
        model_signing.verify(model, public_key, signature)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda model: (model / ".gitignore").write_text("x"), "leaves out of every digest"),
        (lambda model: [file.unlink() for file in model.rglob("*") if file.is_file()], "no file to sign"),
        (lambda model: model.rename(model.parent / "gone"), "not a directory"),
        (lambda model: os.mkfifo(model / "pipe"), "cannot be signed"),
    ],
)
def test_what_cannot_be_signed_is_one_user_error(signed, prepare, message):
    model, _, signature = signed
    prepare(model)
    with pytest.raises(UserError, match=message):
        model_signing.sign(model, keys.private_path(Checkout(model.parents[1])), signature)


def test_the_signature_may_not_lie_in_the_model(signed):
    model, _, _ = signed
    with pytest.raises(UserError, match="cannot lie in the model"):
        model_signing.sign(model, keys.private_path(Checkout(model.parents[1])), model / "model.sig")
    assert not (model / "model.sig").exists()


def test_a_key_of_another_kind_is_a_user_error(signed, tmp_path):
    model, _, signature = signed
    wrong = tmp_path / "rsa.pem"
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    wrong.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(UserError, match="ECDSA P-256"):
        model_signing.sign(model, wrong, signature)
