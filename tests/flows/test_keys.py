"""`axon keys` says what an auditor must be told, and gives away the public half alone."""

import pytest

from flows import keys as commands
from tasks.errors import UserError
from tasks.lineage import keys
from tasks.runtime.checkout import Checkout
from tests.tasks.lineage.workspace import make_checkout, record


def test_it_shows_the_key_and_the_head(tmp_path, capsys):
    checkout = make_checkout(tmp_path)
    commands.show(checkout)
    said = capsys.readouterr().out
    key = keys.signing_key(checkout)
    assert f"key      {key.fingerprint}  made just now" in said
    assert str(checkout.state / "keys" / "signing.pem") in said
    assert f"lineage/keys/{key.fingerprint}.pem" in said
    assert "head     none yet" in said
    digest = record(checkout, "make").statement.digest
    commands.show(checkout)
    said = capsys.readouterr().out
    assert "made just now" not in said
    assert f"--key {key.fingerprint} --head {digest}" in said
    assert "PRIVATE" not in said


def test_a_key_that_signed_before_is_shown_too(tmp_path, capsys):
    checkout = Checkout(tmp_path)
    older = keys.signing_key(checkout).fingerprint
    keys.private_path(checkout).unlink()
    commands.show(checkout)
    assert f"{older}.pem  signed older statements" in capsys.readouterr().out


def test_it_exports_the_public_key(tmp_path):
    checkout = Checkout(tmp_path)
    commands.export(checkout, tmp_path / "out" / "key.pem")
    key = keys.signing_key(checkout)
    assert (tmp_path / "out" / "key.pem").read_bytes() == key.public_pem
    commands.export(checkout, tmp_path / "out" / "key.pem")
    commands.export(checkout, tmp_path / "out")
    assert (tmp_path / "out" / f"{key.fingerprint}.pem").read_bytes() == key.public_pem
    assert b"PRIVATE" not in key.public_pem


def test_it_does_not_overwrite_another_file(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already and is not this key"):
        commands.export(Checkout(tmp_path), tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
