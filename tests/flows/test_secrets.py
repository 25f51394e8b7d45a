"""Planted secrets in every variable that may hold one: real commands that end well and badly, and then the search for
them in all that was said and written, databases as bytes and signed statements decoded."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

from tests.flows import canaries
from tests.flows.canaries import VARIABLES, address, canary
from tests.flows.conftest import FinishedRun
from tests.flows.test_faults import free_port, mlflow_server, serving
from tests.flows.workspace import Workspace, command_line

pytestmark = pytest.mark.engines
DEAD = "127.0.0.1:9"
BY_HAND = (".dvc/config.local",)
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "PREFECT_CLIENT_MAX_RETRIES": "0"}
REMOTE = f"""['remote "storage"']
    url = {address("https", "dvc-remote", DEAD)}/axon
    password = {canary("dvc-password")}
"""


def behind(root: Path, finished: FinishedRun) -> Workspace:
    """A workspace in which the report is to be made anew and MLflow to be told everything, with a DVC remote whose
    password a person wrote down."""
    shutil.copytree(finished.workspace.root, root, symlinks=True)
    for path in ("axon.log", ".axon/mlflow.db", ".axon/registered.json", "report/report.md", "report/report.html"):
        (root / path).unlink(missing_ok=True)
    for note in (root / ".axon" / "journal").glob("*.sent"):
        note.unlink()
    shutil.rmtree(root / ".axon" / "prefect")
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    del lock["stages"]["report"]
    (root / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    (root / ".dvc" / "config.local").write_text(REMOTE)
    return Workspace(root)


def silent(result: subprocess.CompletedProcess[str]) -> str:
    """What a command has said, which holds no secret."""
    told = result.stdout + result.stderr
    assert canaries.in_text(told) == []
    return told


@pytest.fixture(scope="module")
def secretive(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A whole `axon run` with MLflow and Prefect behind passwords, and secrets in every other variable."""
    folder = tmp_path_factory.mktemp("secrets")
    workspace = behind(folder / "checkout", finished)
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="ax") as ray,  # short: Ray makes sockets in it
        serving(mlflow_server(folder, port), f"http://127.0.0.1:{port}/health", folder),
        canaries.behind_a_password(port, "axon", canary("mlflow-address")) as (gate, answered),
    ):
        uri = address("http", "mlflow-address", f"127.0.0.1:{gate}")
        variables = {k: v for k, v in VARIABLES.items() if not k.startswith("MLFLOW_TRACKING_")}
        variables |= {"MLFLOW_TRACKING_URI": uri, "RAY_TMPDIR": ray}
        # Somebody's cluster that was started on this machine is not ours.
        (Path(ray) / "ray").mkdir()
        (Path(ray) / "ray" / "ray_current_cluster").write_text(DEAD)
        code, commands = watched(workspace, "run", "--no-run-cache", **variables)
        yield SimpleNamespace(
            workspace=workspace,
            places=(folder, Path(ray)),
            variables=variables,
            uri=uri,
            answered=answered,
            code=code,
            commands=commands,
        )


def watched(workspace: Workspace, *arguments: str, **variables: str) -> tuple[int, set[str]]:
    """The exit code of a command, and the command lines of all its processes: anybody on the machine can read those."""
    process = workspace.start(*arguments, **variables)
    commands: set[str] = set()
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            for one in (psutil.Process(process.pid), *workspace.processes()):
                commands.add(command_line(one))
        time.sleep(0.2)
    return process.wait(), commands


def test_a_run_with_engines_behind_passwords_tells_nobody(secretive: SimpleNamespace):
    told = (secretive.workspace.root / "axon.log").read_text()
    assert secretive.code == 0, told
    assert canaries.in_text(told) == []
    assert len(secretive.commands) > 3
    assert canaries.in_text("\n".join(secretive.commands)) == []
    assert 200 in secretive.answered
    assert 401 not in secretive.answered, "the password in the address was used"
    client = MlflowClient(tracking_uri=secretive.uri)
    assert client.get_model_version_by_alias("axon-chat", "champion").version == "1"
    statements = list((secretive.workspace.root / "lineage" / "statements").iterdir())
    assert len(statements) >= 3
    assert (secretive.workspace.root / ".axon" / "prefect" / "prefect.db").stat().st_size > 0
    assert list(secretive.places[1].rglob("gcs_server*")), "Ray's logs are there"
    assert canaries.in_files(*secretive.places, but=tuple(f"checkout/{name}" for name in BY_HAND)) == []


@pytest.mark.slow
def test_the_commands_behind_a_run_tell_nobody(secretive: SimpleNamespace):
    workspace, variables = secretive.workspace, secretive.variables
    bundle = secretive.places[0] / "bundle"
    for arguments, code in (
        (["lineage", "axon-chat@champion", "--format=html", f"--output={workspace.root / 'page.html'}"], 0),
        (["audit", "--export", str(bundle)], 0),
        (["generate", "1 + 1 = ?"], 0),
        (["promote"], 0),
        (["report", "--live"], 0),
        (["doctor"], 0),
        (["history"], 0),
        (["retrain", "--force"], 0),
    ):
        result = workspace.axon(*arguments, **variables)
        assert result.returncode == code, (arguments, silent(result))
        silent(result)
    assert (bundle / "README.md").is_file()
    assert canaries.in_files(*secretive.places, but=tuple(f"checkout/{name}" for name in BY_HAND)) == []


FAILING = [
    (["generate", "x"], 1, {"MLFLOW_TRACKING_URI": address("http", "mlflow-dead", DEAD)}),
    (["lineage", "axon-chat@champion"], 1, {"MLFLOW_TRACKING_URI": address("http", "mlflow-dead", DEAD)}),
    (["run", "--set", f"data.files=[{{path: '{address('https', 'source', DEAD)}/a.jsonl', license: MIT}}]"], 2, {}),
]
SLOW_FAILING = [
    (["generate", "x"], 1, {"MLFLOW_TRACKING_URI": address("postgresql", "mlflow-dead", f"{DEAD}/mlflow")}),
    (["run"], 1, {"PREFECT_API_URL": address("http", "prefect-dead", f"{DEAD}/api")}),
    (["run"], 1, {"PREFECT_API_DATABASE_CONNECTION_URL": address("postgresql+asyncpg", "prefect-db", f"{DEAD}/p")}),
    (["run"], 1, {"PREFECT_SERVER_DATABASE_CONNECTION_URL": address("postgresql+asyncpg", "prefect-db", f"{DEAD}/p")}),
    (["run"], 1, {"MLFLOW_TRACKING_URI": address("http", "mlflow-dead", DEAD)}),
    (["run"], 1, {"RAY_ADDRESS": address("ray", "ray-dead", DEAD)}),
    (["worker"], 1, {"PREFECT_API_URL": address("http", "prefect-dead", f"{DEAD}/api")}),
    (["ui"], 1, {"MLFLOW_TRACKING_URI": address("postgresql", "mlflow-dead", f"{DEAD}/mlflow")}),
]


@pytest.fixture(scope="module")
def failing(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return behind(tmp_path_factory.mktemp("failing") / "checkout", finished)


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["", "debug"])
@pytest.mark.parametrize(
    ("arguments", "code", "variables"), FAILING + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_FAILING]
)
def test_a_command_that_fails_tells_nobody(
    failing: Workspace, arguments: list[str], code: int, variables: dict[str, str], debug: list[str]
):
    result = failing.axon(*arguments, *debug, **(VARIABLES | QUICK | variables))
    told = silent(result)
    assert ("Traceback" in told) == bool(debug), told
    assert result.returncode == code, told
    assert canaries.in_files(failing.root, but=BY_HAND) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["promote"], {"MLFLOW_TRACKING_URI": address("http", "mlflow-dead", DEAD)}),  # statements name the champion
        (["run"], {"OPENLINEAGE_URL": address("http", "openlineage", DEAD)}),  # events wait on disk
    ],
)
def test_a_command_that_can_do_without_who_is_away_tells_nobody(
    failing: Workspace, arguments: list[str], variables: dict[str, str]
):
    result = failing.axon(*arguments, **(VARIABLES | QUICK | variables))
    assert result.returncode == 0, silent(result)
    silent(result)
    assert canaries.in_files(failing.root, but=BY_HAND) == []


def test_a_line_of_a_configuration_that_dvc_cannot_read_is_not_quoted(failing: Workspace):
    config = failing.root / ".dvc" / "config.local"
    try:
        config.write_text(REMOTE.replace("password =", "password"))
        told = silent(failing.axon("run", "--dry-run"))
        assert "DVC cannot open this checkout" in told
        assert "at line 3" in told
    finally:
        config.write_text(REMOTE)


@pytest.mark.slow
def test_an_import_from_elsewhere_that_cannot_be_reached(failing: Workspace):
    source = failing.root / "sources" / "new.jsonl.dvc"
    place = address("https", "import", DEAD)
    source.write_text(f"deps:\n- path: {place}/new.jsonl\nouts:\n- md5: {'0' * 32}\n  path: new.jsonl\n  hash: md5\n")
    try:
        result = failing.axon("retrain", **(VARIABLES | QUICK))
        assert result.returncode == 1
        assert "sources/new.jsonl.dvc cannot be updated" in silent(result)
        assert canaries.in_files(failing.root, but=(*BY_HAND, "sources/new.jsonl.dvc")) == []
    finally:
        source.unlink()


def test_the_search_finds_what_it_is_to_find(tmp_path: Path):
    """The truth it rests on: a secret as it is, percent-encoded, in base64, and inside of other bytes."""
    import base64

    assert canaries.in_text(f"one\nhttp://x:{canary('a')}@h\n") == [f"http://x:{canary('a')}@h"]
    assert canaries.in_text(address("http", "a", "h"))
    for shift in range(6):
        name = tmp_path / f"{shift}.bin"
        name.write_bytes(os.urandom(9) + base64.b64encode(os.urandom(shift) + canary("b").encode()) + os.urandom(9))
    assert len(canaries.in_files(tmp_path)) == 6
    assert canaries.in_files(tmp_path, but=tuple(f"{n}.bin" for n in range(6))) == []
