"""`axon clean`: remove what runs have made, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import typer

from tasks.errors import UserError
from tasks.runtime import guard, stages
from tasks.runtime.checkout import Checkout

# With them later runs go on from the chain of statements under lineage/, which no command removes.
KEPT = ("keys", "lineage-head.json", "locks")


def clean(checkout: Checkout, *, everything: bool, yes: bool) -> None:
    """Remove every output of `dvc.yaml`; with `everything` also the caches, checkpoints and stores.

    The key that signs statements and the head of their chain stay.
    """
    root = checkout.root
    paths = [root / out for stage in stages.read_stages(root).values() for out in stage.outs]
    if everything:
        paths += [root / "dvc.lock", root / ".dvc" / "cache", root / ".dvc" / "tmp"]
        paths += [path for path in sorted(checkout.state.glob("*")) if path.name not in KEPT]
    present = [path for path in paths if path.exists()]
    if not present:
        print("Nothing to remove.")
        return
    for path in present:
        print(f"  {path.relative_to(root)}")
    if everything:
        print("This loses the model registry, the history of runs and the caches of this checkout.")
        print("The statements in lineage/ stay, and so do the key that signs them and the head of their chain.")
    else:
        print("`axon run` restores them from DVC's cache.")
    if not yes and not typer.confirm("Remove these?"):
        raise UserError("nothing was removed.", exit_code=1)

    def waiting(holder: str) -> None:
        print(f"waiting for {holder} to end …")

    with guard.exclusive(checkout.locks / "run", who="axon clean", waiting=waiting):
        for path in present:
            _remove(path)
    print(f"Removed {len(present)}.")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
