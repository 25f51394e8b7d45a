"""Registered versions and logged models that hold removed records: find and tag them, delete their files."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from tasks import registry
from tasks.lineage.forgetting.holders import Holders
from tasks.lineage.statement import Statement
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout
from tasks.tracking import mlflow_store

TAG = "contains-removed-data"
YES, UNKNOWN = "true", "unknown"


@dataclass(frozen=True, kw_only=True)
class Held:
    """A registered version with removed records. certainty: "true", or "unknown" where nothing says that it is free
    of them. aliases: those that point at it. is_marked: whether an earlier request tagged it."""

    version: str
    model: str
    md5: str
    aliases: tuple[str, ...]
    certainty: str
    is_marked: bool


def store_of(checkout: Checkout) -> Any | None:
    """The MLflow client; None where this checkout has no store yet, which asking would make."""
    if checkout.tracking_uri.startswith("sqlite:///") and not Path(checkout.tracking_uri[10:]).is_file():
        return None
    return mlflow_store.client(checkout)


def certainty_of(
    path: str, md5: str, statements: Sequence[Statement], holders: Holders, *, current_holds: bool, checkout: Checkout
) -> str | None:
    """Whether the output `path` with this digest holds the records: "true", "unknown" or None for no.

    current_holds: whether the data in the workspace has them; says enough of what `dvc.lock` records, where the index
    knows nothing of it.
    """
    makers = [s for s in statements if s.outputs.get(path) == md5]
    if any(maker.digest in holders.shaped for maker in makers):
        return YES
    if makers and not any(maker.digest in holders.unknown for maker in makers):
        return None
    lock = stages.read_lock(checkout.root)
    if any(out["path"] == path and out.get("md5") == md5 for entry in lock.values() for out in entry["outs"]):
        return YES if current_holds else None
    return UNKNOWN


def registered(
    checkout: Checkout, statements: Sequence[Statement], holders: Holders, *, current_holds: bool
) -> list[Held]:
    """The versions of `axon-chat` that hold the records, or may."""
    from mlflow.exceptions import MlflowException

    store = store_of(checkout)
    if store is None:
        return []
    try:
        aliases: dict[str, Any] = dict(store.get_registered_model(registry.NAME).aliases)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise
    found = []
    for version in store.search_model_versions(f"name = '{registry.NAME}'"):
        model, md5 = version.tags.get("axon.stage", ""), version.tags.get("axon.digest", "")
        certainty = certainty_of(
            f"models/{model}", md5, statements, holders, current_holds=current_holds, checkout=checkout
        )
        if certainty is not None:
            of_version = tuple(sorted(alias for alias, v in aliases.items() if str(v) == str(version.version)))
            tag = version.tags.get(TAG)
            found.append(
                Held(
                    version=str(version.version),
                    model=model,
                    md5=md5,
                    aliases=of_version,
                    certainty=YES if tag == YES else certainty,
                    is_marked=tag is not None,
                )
            )
    return sorted(found, key=lambda held: int(held.version))


def mark(checkout: Checkout, held: Collection[Held]) -> None:
    """Tag the versions, and take every alias from them: nothing is served or promoted from one any more."""
    store = store_of(checkout) if held else None
    if store is None:
        return
    for version in held:
        store.set_model_version_tag(registry.NAME, version.version, TAG, version.certainty)
    wanted = {version.version for version in held}
    for alias, version in dict(store.get_registered_model(registry.NAME).aliases).items():
        if str(version) in wanted:
            store.delete_registered_model_alias(registry.NAME, alias)


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A model that a run logged: MLflow's copy of a model directory. folder: None where it is not on this machine."""

    model_id: str
    name: str
    md5: str
    folder: Path | None
    location: str


def logged(checkout: Checkout, digests: Collection[tuple[str, str]]) -> list[Logged]:
    """The logged models with one of these (name, MD5)."""
    store = store_of(checkout)
    if store is None:
        return []
    experiment = store.get_experiment_by_name(mlflow_store.EXPERIMENT)
    if experiment is None:
        return []
    found, token = [], None
    while True:
        page = store.search_logged_models([experiment.experiment_id], max_results=50, page_token=token)
        for model in page:
            md5 = model.tags.get("axon.digest", "")
            if (model.name, md5) in digests:
                location = str(model.artifact_location)
                found.append(
                    Logged(
                        model_id=model.model_id, name=model.name, md5=md5, folder=_local(location), location=location
                    )
                )
        token = page.token
        if not token:
            return found


def _local(location: str) -> Path | None:
    parsed = urlparse(location)
    if parsed.scheme not in ("", "file"):
        return None
    path = Path(unquote(parsed.path))
    return path if path.is_dir() else None


def delete(checkout: Checkout, models: Collection[Logged]) -> list[Logged]:
    """Delete logged models with their files; returns those whose files are in a store that could not be reached."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    store, left = store_of(checkout), []
    if store is None:
        return []
    for model in models:
        if model.folder is not None:
            shutil.rmtree(model.folder)
        elif urlparse(model.location).scheme not in ("", "file"):
            try:
                get_artifact_repository(model.location).delete_artifacts()
            except (MlflowException, NotImplementedError, OSError):
                left.append(model)
                continue
        store.delete_logged_model(model.model_id)
    return left
