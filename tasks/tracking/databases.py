"""Empty databases of Prefect and MLflow, made once at installation and copied by a checkout's first run.

Each engine builds its tables by running all migrations it ever had, 10 to 20 seconds on two cores. The copies stand in
the environment beside the packages whose versions they carry in their names; without them the engines do it themselves.

Run: `python -m tasks.tracking.databases` (part of `make install`).
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

from tasks.files import write_bytes

_PREFECT = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
_MLFLOW = [sys.executable, "-c", "import os, mlflow; mlflow.MlflowClient(os.environ['STORE']).search_experiments()"]


def _empty(engine: str) -> Path:
    return Path(sys.prefix) / "share" / "axon" / f"{engine}-{version(engine)}.db"


def provide(engine: str, database: Path) -> None:
    """Put an empty database of `engine` (prefect or mlflow) at `database`, if none is there and one was made."""
    empty = _empty(engine)
    if not empty.is_file() or database.exists():
        return
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # as Prefect makes its own folder
    copy = database.with_name(f".{database.name}.{os.getpid()}.empty")
    try:
        write_bytes(copy, empty.read_bytes())
        # A link fails where another process was quicker, which may have written into its own already. It fails too
        # where files cannot have two names; the engine then makes its database itself.
        with suppress(OSError):
            os.link(copy, database)
    finally:
        copy.unlink(missing_ok=True)


def _make(engine: str, command: list[str], settings: Mapping[str, str], made: Path) -> None:
    """Have `engine` make `made`, and keep a copy that is one file whatever its journal mode."""
    environment = {**os.environ, "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", **settings}
    subprocess.run(
        command, env=environment, cwd=made.parent, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    with closing(sqlite3.connect(made)) as database:
        if engine == "mlflow":  # its default experiment names a folder; it is made again where it is used
            database.execute("DELETE FROM experiments")
            database.commit()
        whole = made.with_suffix(".whole")
        database.execute("VACUUM INTO ?", (str(whole),))
    write_bytes(_empty(engine), whole.read_bytes())


def main() -> None:
    """Make both. An engine that cannot is left to make its database when it is first used."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"PREFECT_HOME": name, "STORE": f"sqlite:///{folder / 'mlflow.db'}"}
        for engine, command in (("prefect", _PREFECT), ("mlflow", _MLFLOW)):
            try:
                _make(engine, command, settings, folder / f"{engine}.db")
            except (subprocess.CalledProcessError, sqlite3.Error, OSError) as error:
                said = getattr(error, "stderr", b"").decode(errors="replace").strip().splitlines()[-1:]
                print(f"no empty database of {engine}: {error} {' '.join(said)}", file=sys.stderr)


if __name__ == "__main__":
    main()
