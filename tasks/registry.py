"""Register the better of PPO and DPO, by the judge, as a version of `axon-chat` in MLflow; once per model digest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.files import read_json, write_json
from tasks.redact import redacted
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout
from tasks.state_files import DAMAGE
from tasks.tracking import mlflow_store

NAME = "axon-chat"
CHALLENGER, CHAMPION = "challenger", "champion"
_CANDIDATES = ("ppo", "dpo")


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered version; `is_new` says whether this call made it."""

    version: str
    model: str
    md5: str
    aliases: tuple[str, ...]
    is_new: bool


def choose(evaluation: dict[str, Any]) -> str:
    """The candidate with the higher win rate against SFT; ties go to the higher exact match, then to PPO."""
    return max(_CANDIDATES, key=lambda m: (evaluation[m]["win_rate_vs_sft"], evaluation[m]["exact_match"] or 0.0))


# What a statement keeps of a version's own evaluation, for the gate and for quality over time.
FIGURES = ("exact_match", "win_rate_vs_sft", "bits_per_byte", "kl_to_sft", "mean_length", "reward")


def figures(checkout: Checkout, model: str) -> dict[str, float | None]:
    """The figures of `model` in `metrics/evaluate.json`."""
    evaluation = read_json(checkout.root / "metrics" / "evaluate.json")[model]
    return {name: evaluation[name] for name in FIGURES}


def _note(checkout: Checkout) -> Path:
    return checkout.state / "registered.json"


def is_registered(checkout: Checkout) -> bool:
    """Whether the model that `dvc.lock` records was registered from here; asks no server."""
    lock = stages.read_lock(checkout.root)
    digests = {out["path"]: out["md5"] for entry in lock.values() for out in entry.get("outs", ())}
    path = _note(checkout)
    if not path.is_file():
        return False
    try:
        note = read_json(path)
        return bool(
            digests.get("metrics/evaluate.json") == note["evaluation_md5"]
            and digests.get(f"models/{note['model']}") == note["md5"]
            and note["tracking_uri"] == redacted(checkout.tracking_uri)
        )
    except DAMAGE:  # then the registry is asked, and the note written anew
        return False


def register(checkout: Checkout, model: str | None = None) -> Version:
    """Make the version if its digest has none yet; set `challenger`, and `champion` if there is none.

    model: a stage with a model (default: the better of PPO and DPO).
    """
    from mlflow.exceptions import MlflowException

    evaluation_path = checkout.root / "metrics" / "evaluate.json"
    if not evaluation_path.is_file():
        raise UserError("metrics/evaluate.json is missing: run `axon run` first.", exit_code=1)
    model = model or choose(read_json(evaluation_path))
    directory = checkout.root / "models" / model
    md5 = stages.digest(directory)
    store = mlflow_store.client(checkout)
    try:
        store.create_registered_model(NAME, description="The aligned chat model of this checkout's pipeline.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = store.search_model_versions(f"name = '{NAME}'")
    known = [v for v in versions if v.tags.get("axon.digest") == md5]
    if known:
        version, is_new = str(known[0].version), False
    else:
        version, is_new = _create(store, checkout, model, md5), True
    aliases = _aliases(store, version)
    write_json(
        _note(checkout),
        {
            "model": model,
            "md5": md5,
            "version": version,
            "evaluation_md5": stages.digest(evaluation_path),
            "tracking_uri": redacted(checkout.tracking_uri),
        },
    )
    return Version(version=version, model=model, md5=md5, aliases=aliases, is_new=is_new)


def download(checkout: Checkout, wanted: str) -> Path:
    """The local directory of the version with this number or alias; fetched where the store is elsewhere."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    store = mlflow_store.client(checkout)
    try:
        if wanted.isdigit():
            version = store.get_model_version(NAME, wanted)
        else:
            version = store.get_model_version_by_alias(NAME, wanted)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        has_not = f"version {wanted}" if wanted.isdigit() else f"{wanted} yet"
        raise UserError(f"{NAME} has no {has_not}; `axon run` registers one.", exit_code=1) from None
    path = Path(download_artifacts(artifact_uri=version.source, tracking_uri=checkout.tracking_uri))
    md5 = version.tags.get("axon.digest")
    if md5 and stages.digest(path) != md5:
        raise UserError(
            f"{NAME} version {version.version} in {path} is not what was registered (MD5 {stages.digest(path)}, "
            f"recorded {md5}). Restore the artifact store, or run `axon clean --all` and `axon run`.",
            exit_code=1,
        )
    return path


def _create(store: Any, checkout: Checkout, model: str, md5: str) -> str:
    """A version that points at MLflow's own copy of the model directory."""
    experiment = mlflow_store.experiment_id(store, checkout)
    found = store.search_logged_models(
        [experiment], filter_string=f"name = '{model}' AND tags.`axon.digest` = '{md5}'", max_results=1
    )
    if found:
        logged = found[0]
    else:
        logged = store.create_logged_model(experiment, name=model, tags={"axon.digest": md5}, model_type="llm")
        store.log_model_artifacts(logged.model_id, str(checkout.root / "models" / model))
        logged = store.finalize_logged_model(logged.model_id, "READY")
    created = store.create_model_version(
        NAME,
        source=logged.artifact_location,
        run_id=logged.source_run_id or None,
        model_id=logged.model_id,
        tags={"axon.digest": md5, "axon.stage": model},
    )
    return str(created.version)


def _aliases(store: Any, version: str) -> tuple[str, ...]:
    aliases = dict(store.get_registered_model(NAME).aliases)
    if aliases.get(CHALLENGER) != version:
        store.set_registered_model_alias(NAME, CHALLENGER, version)
    if CHAMPION not in aliases:
        store.set_registered_model_alias(NAME, CHAMPION, version)
    return tuple(sorted(a for a, v in dict(store.get_registered_model(NAME).aliases).items() if str(v) == version))
