"""An audit as a whole: of a checkout, or of a folder that was exported from one."""

from __future__ import annotations

from pathlib import Path

from tasks.lineage.audit import (
    agreement,
    anchoring,
    artifacts,
    bundle,
    cache,
    chain,
    code,
    policies,
    registered,
    scope,
    snapshot,
    tracking,
)
from tasks.lineage.audit.findings import Anchor, Report
from tasks.lineage.audit.scene import Scene
from tasks.lineage.policy import Policy
from tasks.runtime.checkout import Checkout


def of_checkout(
    checkout: Checkout,
    *,
    target: str | None = None,
    anchor: Anchor | None = None,
    policy: Policy | None = None,
    sources_may_move: bool = False,
) -> Scene:
    """Audit a checkout: all of it, or what stands behind `target`. The scene's `report` has the result.

    sources_may_move: data that came after the stage `data` has read the sources is no finding.

    Nothing is changed, but for facts files where a policy is given.
    `anchor`: given from outside (`anchoring.given`); without it the checkout's own is taken. Raises `UserError` for an
    unknown target alone: whatever is wrong with files and stores is a finding.
    """
    scene = _chain(checkout, anchor)
    agreement.read_pipeline(scene)
    if target is not None:
        scene.report.target = scope.narrow(scene, target)
    agreement.check(scene)
    stores = cache.stores(scene)
    artifacts.check_outputs(scene, {name: path for store in stores for name, path in store.objects.items()})
    artifacts.check_inputs(scene, sources_may_move=sources_may_move)
    cache.check(scene, stores)
    code.check(scene)
    known = snapshot.load(scene)
    if known is not None:
        tracking.check(scene, known)
    registered.check(scene, known)
    _count_unreached(scene)
    if policy is not None:
        policies.check(scene, policy)
    return scene


def of_folder(folder: Path, *, anchor: Anchor | None = None) -> Scene:
    """Audit a folder that `axon audit --export` wrote, with nothing else. Raises `UserError` if it is none."""
    bundle.recognise(folder)
    scene = _chain(Checkout(folder.resolve()), anchor)
    agreement.read_pipeline(scene)
    agreement.check(scene)
    bundle.check(scene)
    registered.check(scene, None)
    return scene


def _chain(checkout: Checkout, anchor: Anchor | None) -> Scene:
    """What every audit begins with: keys, statements, links, anchor."""
    scene = Scene(checkout, Report())
    keys = anchoring.public_keys(scene)
    chain.read(scene, keys)
    chain.check_inputs(scene)
    kept = anchoring.local(scene)
    scene.report.anchor = anchor or kept
    anchoring.check(scene, scene.report.anchor, kept, keys)
    return scene


def _count_unreached(scene: Scene) -> None:
    """Outputs of earlier executions of which no copy was found; that of the newest would be a finding."""
    current = {entry.statement.digest for entry in scene.current.values()}
    earlier = {
        (out, md5)
        for entry in scene.asked
        if entry.statement.digest not in current
        for out, md5 in entry.statement.outputs.items()
    }
    part = scene.part("artifacts")
    part.count("outputs of earlier executions", len(earlier & scene.reached))
    part.missed("outputs of earlier executions", len(earlier - scene.reached))
