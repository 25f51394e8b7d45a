"""Register the model of a run with what an auditor asks for: policy first, then version, BOM, signature, statement."""

from __future__ import annotations

import time

from rich.console import Console

from tasks import registry
from tasks.errors import UserError
from tasks.runtime.checkout import Checkout


def register(
    checkout: Checkout, console: Console, *, pipeline: str | None, model: str | None = None
) -> registry.Version | None:
    """Register `model` (default: the better of PPO and DPO); None with statements switched off.

    Raises `UserError` (exit code 1) where the model's ancestors break `policy.yaml`: then nothing is registered.
    """
    from tasks.lineage import bom, keys, model_signing, policy, recording

    if not recording.is_on():
        console.print("[yellow]not registered: AXON_LINEAGE=off, so no statement says how the model was made[/yellow]")
        return None
    broken = policy.check_before_registration(checkout, model)
    if broken:
        listed = "\n".join(f"  - {violation}" for violation in broken)
        raise UserError(f"the model is not registered, because it breaks policy.yaml:\n{listed}", exit_code=1)
    version = registry.register(checkout, model)
    if not recording.has_registration(checkout, registry.NAME, version.version, version.md5, version.aliases):
        directory = f"models/{version.model}"
        folder = bom.write(checkout, version.version, directory, name=registry.NAME).parent
        keys.signing_key(checkout)
        model_signing.sign(checkout.root / directory, keys.private_path(checkout), folder / "model.sig")
        recording.record_registration(
            checkout,
            name=registry.NAME,
            version=version.version,
            aliases=version.aliases,
            model=version.model,
            md5=version.md5,
            pipeline=pipeline,
            started=time.time(),
            figures=registry.figures(checkout, version.model),
        )
    return version


def print_anchor(checkout: Checkout, console: Console) -> None:
    """What an outside auditor needs to know: that the chain of statements ends here, and who signed it."""
    from tasks.lineage import recording
    from tasks.lineage.store import StatementStore

    if not recording.is_on():
        return
    head = StatementStore.of(checkout).head()
    if head is not None:
        console.print(f"anchor: key {head.key} head {head.digest}", soft_wrap=True)
