"""Which version an alias of a registered model means now: only the registry knows, since aliases move."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tasks.errors import UserError
from tasks.redact import redacted
from tasks.runtime.checkout import Checkout
from tasks.tracking import mlflow_store

_SQLITE = "sqlite:///"


def aliases_of(checkout: Checkout, name: str) -> dict[str, str]:
    """Alias → version of the registered model `name`; empty if the registry does not know it.

    Importing MLflow takes seconds, so its table is read where the registry is a file here; MLflow is asked where that
    does not work. Raises `UserError` where the registry does not answer.
    """
    uri = checkout.tracking_uri
    if uri.startswith(_SQLITE):
        path = Path(uri.removeprefix(_SQLITE))
        if not path.is_file():
            return {}  # asking MLflow would make it
        try:
            return _from_file(path, name)
        except sqlite3.Error:
            pass  # not the table we know
    from mlflow.exceptions import MlflowException

    try:
        model = mlflow_store.client(checkout).get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise UserError(
            f"the registry at {redacted(uri)} cannot be asked for the aliases of {name}: {error.message}. "
            f"Name a version instead: {name}@1",
            exit_code=1,
        ) from None
    return {alias: str(version) for alias, version in sorted(dict(model.aliases).items())}


def _from_file(path: Path, name: str) -> dict[str, str]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
        query = "SELECT alias, version FROM registered_model_aliases WHERE name = ? ORDER BY alias"
        return {str(alias): str(version) for alias, version in connection.execute(query, [name])}
