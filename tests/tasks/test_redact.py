"""No secret in a text for people, and nothing else is altered: held against secrets of many forms in many places."""

import base64
import logging
import sys
import threading
import time
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import parameters, redact
from tasks.errors import UserError
from tasks.redact import holds_secret, redacted
from tests.helpers import REPOSITORY, make_tree

CANARY = "canary-5d1f0c"
fuzzed = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PRINTABLE = st.characters(min_codepoint=33, max_codepoint=126)


@pytest.mark.parametrize(
    "text",
    [
        f"API request to http://user:{CANARY}@127.0.0.1:5000/api/2.0 failed",
        f"https://{CANARY}@github.com/owner/repository.git",
        f"cannot open postgresql+asyncpg://axon:{CANARY}@db:5432/prefect",
        f"s3://AKIAXXXX:{CANARY}@bucket/prefix",
        f"GET https://host/file?X-Amz-Algorithm=AWS4&X-Amz-Credential={CANARY}&X-Amz-Signature={CANARY}&X-Amz-Date=1",
        f"https://account.blob.core.windows.net/c?sv=2024&sig={CANARY}",
        f"postgresql://host/db?user=axon&password={CANARY}&sslmode=require",
        f"host=db user=axon password={CANARY} dbname=mlflow",
        f"DefaultEndpointsProtocol=https;AccountName=axon;AccountKey={CANARY};EndpointSuffix=core.windows.net",
        f"{{'secret_access_key': '{CANARY}', 'region': 'eu'}}",
        f"headers {{'Authorization': 'Bearer {CANARY}'}}",
        f"> Authorization: Basic {CANARY}",
        f"config file error: Invalid line ('    password {CANARY}') (matched as neither section nor keyword) at line",
    ],
)
def test_a_secret_is_known_by_its_place(text: str):
    assert CANARY not in redacted(text)
    assert redact.HIDDEN in redacted(text)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("RAY_AUTH_TOKEN", CANARY, f"the token {CANARY} was refused"),
        ("AWS_SECRET_ACCESS_KEY", f"{CANARY}/+=", f"signed with {CANARY}/+="),
        ("MLFLOW_TRACKING_PASSWORD", CANARY, f"login({CANARY!r})"),
        ("MLFLOW_TRACKING_TOKEN", CANARY, f"xx{CANARY}xx"),
        ("PREFECT_API_KEY", CANARY, CANARY),
        ("PREFECT_API_AUTH_STRING", f"admin:{CANARY}", f"user admin, {CANARY}"),
        ("PREFECT_API_AUTH_STRING", f"admin:{CANARY}", base64.b64encode(f"admin:{CANARY}".encode()).decode()),
        ("MLFLOW_TRACKING_URI", f"http://u:{CANARY}%2F%40@h:5000", f"logging in as u with {CANARY}/@"),
        ("MLFLOW_TRACKING_URI", f"http://u:{CANARY}@h", base64.b64encode(f"u:{CANARY}".encode()).decode()),
        ("PREFECT_API_DATABASE_CONNECTION_URL", f"postgresql+asyncpg://u:{CANARY}/#x@h/db", f"({CANARY}/#x)"),
        ("AXON_STORAGE", f"s3://KEYID:{CANARY}/x@bucket", f"s3 says: {CANARY}/x"),
        ("SOME_ADDRESS", f"https://host/file?token={CANARY}", f"url: {CANARY}"),
        ("AXON_NOTIFY_URL", f"https://hooks.invalid/services/{CANARY}", f"with url: /services/{CANARY} (refused)"),
        ("PGPASSWORD", "pa55", "with 'pa55' it fails"),
    ],
)
def test_a_secret_of_the_environment_is_known_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
):
    assert redacted(told) == told
    monkeypatch.setenv(name, value)
    clean = redacted(told)
    assert CANARY not in clean
    assert "pa55" not in clean
    assert base64.b64encode(f"admin:{CANARY}".encode()).decode() not in clean
    assert base64.b64encode(f"u:{CANARY}".encode()).decode() not in clean


@fuzzed
@given(
    password=st.text(PRINTABLE, min_size=8, max_size=24),
    shown=st.sampled_from(["{url}", "to {url}: {raw}", "{raw}", "'{quoted}'", "{url}/api/2.0?x=1", "({raw})"]),
)
def test_any_password_of_an_address_in_the_environment(monkeypatch: pytest.MonkeyPatch, password: str, shown: str):
    quoted = quote(password, safe="")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{quoted}@127.0.0.1:5000")
    url = f"http://user:{quoted}@127.0.0.1:5000"
    clean = redacted(shown.format(url=url, raw=password, quoted=quoted))
    assert password not in clean
    assert quoted not in clean


IDENTIFYING = [
    "models/ppo",
    "sources/my.jsonl",
    "axon-chat@champion",
    "https://example.org/models/axon-chat@1",
    "0f6c1c1a7bd9f3c0.dir",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "sqlite:////work/.axon/mlflow.db",
    "s3://bucket/prefix/models@2",
    "data.files=[{path: sources/my.jsonl, license: MIT}]",
    "preferences.max_new_tokens=16 must be at most 512; tokenizer.vocab_size=300",
    "stage sft failed (exit code 75)",
    "https://axon.invalid/stage/v1",
    "password authentication failed for user axon",
]


@pytest.mark.parametrize("text", IDENTIFYING)
def test_what_identifies_something_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, text: str):
    for name, value in {
        "RAY_AUTH_MODE": "token",
        "TOKENIZERS_PARALLELISM": "true",
        "HF_TOKEN_PATH": "sources/my.jsonl",
        "PWD": "models/ppo",
        "MLFLOW_TRACKING_URI": "http://axon:secret-of-axon@localhost",
        "A_KEY": "pp",
        "AWS_ACCESS_KEY_ID": "champion",
    }.items():
        monkeypatch.setenv(name, value)
    assert redacted(text) == text


def test_a_short_password_is_hidden_by_itself_and_not_in_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "axon")
    told = "'axon' was refused: axon-chat@1 in /home/axon/.axon is not axon.invalid. The password is axon."
    expected = "'***' was refused: axon-chat@1 in /home/axon/.axon is not axon.invalid. The password is ***."
    assert redacted(told) == expected


def test_parameters_with_a_password_are_refused_without_saying_it():
    path = f"https://user:{CANARY}@host/my.jsonl"
    tree = make_tree({"data.files": [{"path": path, "license": "MIT"}], "seed": f"password={CANARY}"})
    with pytest.raises(UserError) as refused:
        parameters.check(tree)
    assert "data.files.0.path holds a password or token" in str(refused.value)
    assert CANARY not in str(refused.value)
    assert not any(holds_secret(str(value)) for value in parameters.read_tree(REPOSITORY / "params.yaml").values())


def test_logs_and_uncaught_errors_go_through_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for owner, name in ((sys, "excepthook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    before = logging.getLogRecordFactory()
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("tests.redact")
    logger.addHandler(handler)
    try:
        redact.install()
        redact.install()
        logger.warning("MLflow at %s said %d", f"http://user:{CANARY}@host", 401)
        try:
            raise ConnectionError(f"http://user:{CANARY}@host refused")
        except ConnectionError:
            logger.exception("it failed")
        thread = threading.Thread(target=Path(f"missing?password={CANARY}").read_text, name="sender")
        thread.start()
        thread.join()
    finally:
        logger.removeHandler(handler)
        logging.setLogRecordFactory(before)
    told = capsys.readouterr().err
    assert "MLflow at http://***@host said 401" in told
    assert "ConnectionError: http://***@host refused" in told
    assert "FileNotFoundError" in told
    assert CANARY not in told


def test_an_error_that_leaves_a_flow_says_no_secret():
    def fail() -> None:
        try:
            raise OSError(5, f"http://user:{CANARY}@host")
        except OSError as error:
            raise RuntimeError(f"pwd={CANARY}", 3, f"password={CANARY}") from error

    with pytest.raises(RuntimeError) as raised, redact.in_errors():
        fail()
    assert CANARY not in "".join(traceback.format_exception(raised.value))
    assert raised.value.args[1] == 3


def test_the_log_of_a_server_holds_none_of_our_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from flows import server_log

    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", f"postgresql://u:{CANARY}@h/db")
    code = "import os, sys; print('store', os.environ['MLFLOW_BACKEND_STORE_URI']); sys.exit('ended')"
    log = tmp_path / "logs" / "server.log"
    process = server_log.serve([sys.executable, "-c", code], log, folder=tmp_path, first=lambda: None)
    assert process.wait(timeout=30) == 1
    assert server_log.end_of(log) == "store postgresql://***@h/db\nended"


@pytest.mark.parametrize("text", ["a-" * 200_000, "x" * 400_000, "http://" + "a:" * 100_000, "&token" * 50_000])
def test_a_long_text_takes_no_time(text: str):
    began = time.process_time()
    assert redacted(text) == text
    assert time.process_time() - began < 5
