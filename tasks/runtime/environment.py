"""Environment variables every process of Axon starts with: no telemetry, no hub, loopback only, quiet engines."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tasks import redact
from tasks.errors import UserError
from tasks.runtime.checkout import Checkout

_FIXED = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",  # a server of Prefect's own making outlives who is killed
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password in it
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "1",
    "RAY_AUTH_MODE": "token",
}
_DEFAULTS = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    # The pages of Prefect show its logs; the terminal shows ours.
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    # A lost event of a server that was killed; the run itself goes on.
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray runs workers at niceness 15, so that every idle server would take a core from training for a moment.
    "RAY_worker_niceness": "0",
    "GIT_PYTHON_REFRESH": "quiet",
    "TOKENIZERS_PARALLELISM": "true",
    # glibc: keep the memory of tensors, in huge pages, for the next step instead of giving it back to the system
    # (decisions.md). Bytes are the same, since torch aligns every tensor alike.
    "MALLOC_MMAP_THRESHOLD_": str(256 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # A store that is away must not hold up a run: journals keep what it was not told. MLflow's own limits are minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTHONHASHSEED": "0",
}


def of_workers() -> dict[str, str]:
    """What workers on other nodes are given of these; where they are started says the rest."""
    ours = [name for name in (*_FIXED, *_DEFAULTS) if not name.startswith("RAY_")]
    return {name: os.environ[name] for name in ours if name in os.environ}


def prepare(checkout: Checkout) -> None:
    """Set the environment of this process and of all that it starts. Call before importing an engine.

    Raises `UserError` for an address of an engine that is none: each engine says so later and in its own way.
    """
    redact.install()
    logging.raiseExceptions = False  # a log line that Prefect cannot take is not worth one in the terminal
    _check_addresses()
    os.environ.update(_FIXED)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_HOME", str(checkout.state / "prefect"))
    os.environ.setdefault("HF_HOME", str(checkout.state / "huggingface"))
    os.environ.setdefault("MPLCONFIGDIR", str(checkout.state / "matplotlib"))
    bin_directory = str(Path(sys.executable).parent)
    if os.environ.get("PATH", "").split(os.pathsep)[0] != bin_directory:
        os.environ["PATH"] = bin_directory + os.pathsep + os.environ.get("PATH", "")
    # Ray's workers import tasks from this checkout, wherever their working directory is.
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if str(checkout.root) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(checkout.root), *paths])


def _check_addresses() -> None:
    for name, (is_one, form) in _ADDRESSES.items():
        value = os.environ.get(name)
        if value and not is_one(value):
            shown = redact.redacted(value)
            raise UserError(f"{name}={shown!r} in the environment is no address; it must be like {form}.")


def _has_host(value: str, *schemes: str) -> bool:
    """Whether `value` is `SCHEME://HOST`, with or without a port that can be one."""
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    return value.isprintable() and parts.scheme in schemes and bool(re.fullmatch(r"[\w.:-]+", host)) and port != 0


def _is_of_prefect(value: str) -> bool:
    return _has_host(value, "http", "https")


def _is_of_ray(value: str) -> bool:
    return value == "auto" or _has_host(value if "://" in value else f"ray://{value}", "ray")


def _is_of_mlflow(value: str) -> bool:
    """Of the many kinds that MLflow knows, only those of the web are looked at."""
    is_of_the_web = value.strip().lower().startswith(("http:", "https:"))
    return _has_host(value, "http", "https") if is_of_the_web else value.isprintable()


_ADDRESSES = {
    "PREFECT_API_URL": (_is_of_prefect, "http://HOST:PORT/api"),
    "RAY_ADDRESS": (_is_of_ray, "auto, HOST:PORT or ray://HOST:PORT"),
    "MLFLOW_TRACKING_URI": (_is_of_mlflow, "http://HOST:PORT, sqlite:///FILE or another of MLflow's"),
}
