"""Where this checkout keeps what: artifacts under the root, state that belongs to the checkout under `.axon/`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError


@dataclass(frozen=True)
class Checkout:
    """The root of a checkout: the folder of `dvc.yaml` and `params.yaml`.

    `state` resolves to the main checkout when DVC runs an experiment in a temporary copy below `.dvc/tmp`.
    """

    root: Path

    @property
    def state(self) -> Path:
        parts = self.root.parts
        for i in range(len(parts) - 1):
            if parts[i : i + 2] == (".dvc", "tmp"):
                return Path(*parts[:i]) / ".axon"
        return self.root / ".axon"

    @property
    def checkpoints(self) -> Path:
        return self.state / "checkpoints"

    @property
    def journals(self) -> Path:
        return self.state / "journal"

    @property
    def locks(self) -> Path:
        return self.state / "locks"

    @property
    def sweeps(self) -> Path:
        return self.state / "sweeps"

    @property
    def tracking_uri(self) -> str:
        """MLflow's address: `MLFLOW_TRACKING_URI`, or a database below `.axon/`."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.state / 'mlflow.db'}"

    @property
    def artifact_root(self) -> str:
        return (self.state / "mlflow-artifacts").as_uri()


def find(start: Path | None = None) -> Checkout:
    """The checkout around `start` (default: the working directory), or a `UserError`."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "flows").is_dir():
            code = Path(__file__).resolve().parents[2]
            if code != folder:
                raise UserError(
                    f"this axon is installed from {code}, but you are in {folder}. "
                    f"Run `make install` in {folder} and use its .venv/bin/axon."
                )
            return Checkout(folder)
    raise UserError(f"no Axon checkout at {here} or above it (looked for dvc.yaml and flows/). Change to one with cd.")


def remember_address(checkout: Checkout, service: str, address: dict[str, object]) -> None:
    """Note where a service of this checkout listens, for `axon ui` and for the next run."""
    path = checkout.state / "services" / f"{service}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(address))
