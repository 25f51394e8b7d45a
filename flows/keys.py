"""`axon keys`: the key that signs this checkout's statements, and where the chain of them ends."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from tasks.errors import UserError
from tasks.files import write_bytes
from tasks.lineage import keys
from tasks.lineage.store import StatementStore
from tasks.runtime.checkout import Checkout


def show(checkout: Checkout) -> None:
    """Print the fingerprint, where both halves of the key are, and the head of the chain; make the key if need be."""
    is_new = keys.load(checkout) is None
    key = keys.signing_key(checkout)
    root = checkout.state.parent
    public = keys.public_folder(root) / f"{key.fingerprint}.pem"
    others = sorted(set(keys.public_keys(root)) - {key.fingerprint})
    head = StatementStore.of(checkout).head()
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"key      {key.fingerprint}" + ("  made just now" if is_new else ""))
    console.print(f"private  {keys.private_path(checkout)}  yours alone: keep a copy, not in git", markup=False)
    console.print(f"public   {public}  belongs into git; enough to verify", markup=False)
    for other in others:
        console.print(f"also     {keys.public_folder(root) / other}.pem  signed older statements", markup=False)
    if head is None:
        console.print("head     none yet; `axon run` writes the first statement")
    else:
        console.print(f"head     {head.digest}  statement {head.sequence:06d}")
        console.print(f"An auditor is given: --key {head.key} --head {head.digest}")


def export(checkout: Checkout, path: Path) -> None:
    """Write the public key as PEM to `path` (into it, if it is a folder); another key there is not overwritten."""
    key = keys.signing_key(checkout)
    if path.is_dir():
        path = path / f"{key.fingerprint}.pem"
    if path.exists() and path.read_bytes() != key.public_pem:
        raise UserError(f"{path} is there already and is not this key; name another path, or remove it.")
    write_bytes(path, key.public_pem)
    print(f"wrote the public key {key.fingerprint} to {path}")
