"""Secrets in texts for people: messages, logs, journals. What identifies an artifact never goes through here.

Three things are hidden: the user information of addresses (`http://user:password@host`); values that are named like
secrets (`?token=…`, `password=…`, `Authorization: …`); and the secrets of this process's environment wherever they
occur: values of variables that are named like secrets, and the passwords in variables that hold addresses.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"

_USERINFO = re.compile(r"(?<![\w+.-])([A-Za-z][\w+.-]*://)(?P<userinfo>[^\s/?#\"'<>]*)@")
_NAMES = (
    r"[\w.-]{0,40}(?:password|passwd|pwd|passphrase|secret|secret[_-]?key|access[_-]?key|account[_-]?key|api[_-]?key|"
    r"auth[_-]?string|auth[_-]?token|session[_-]?token|access[_-]?token|signature)"
)
_VALUE = r"[^\s&;,\"'<>#)]+"
_NAMED = re.compile(rf"(\b{_NAMES}[\"']?\s*[=:]\s*[\"']?){_VALUE}", re.IGNORECASE)
_QUERY = re.compile(r"([?&;][\w.-]{0,40}(?:token|credential|auth|sig|key|code)=)" + _VALUE, re.IGNORECASE)
# Without one of these the three are not tried: on long texts they are slow.
_HINT = re.compile(r"(pass|pwd|secret|key|auth|token|sig|code|credential)[\w.-]*[\"']?\s*[=:]", re.IGNORECASE)
_HEADER = re.compile(r"(authorization[\"']?\s*[=:]\s*[\"']?(?:\w+ )?)[\w+/=.~-]+", re.IGNORECASE)
_CONFIG_LINE = re.compile(r"(Invalid line \().*?(\) \(matched as neither)")  # DVC quotes what it cannot parse

_SECRET_VARIABLE = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|SECRET|APIKEY|(^|_)(TOKEN|PASS|KEY|AUTH_STRING|CONNECTION_STRING)$|._PWD$"
)
_NOT_SECRET = re.compile(r"_(PATH|FILE|DIR|ID|NAME|MODE|TYPE)$")
_WHOLE_IS_SECRET = re.compile(r"WEBHOOK|NOTIFY_URL")  # who knows the address may post to it
_NO_SECRETS = frozenset(("true", "false", "none", "null", "yes", "no", "on", "off"))
# SQLAlchemy, for one, takes a password with slashes; in an address of the web they end what is before the host.
_NOT_OF_THE_WEB = re.compile(r"(?!https?:)[A-Za-z][\w+.-]*://(?P<userinfo>[^\s:/@]*:[^\s@]*)@")
_SHORTEST = 4  # shorter ones stand in too many words
_LONG = 8  # from here on hidden inside of words and names too


def redacted(text: str) -> str:
    """`text` with `***` in place of every secret."""
    if _HINT.search(text):
        for pattern in (_HEADER, _NAMED, _QUERY):
            text = pattern.sub(rf"\1{HIDDEN}", text)
    text = _CONFIG_LINE.sub(rf"\1{HIDDEN}\2", text)
    for secret in _known():
        if len(secret) >= _LONG:
            text = text.replace(secret, HIDDEN)
        elif secret in text:
            text = re.sub(rf"(?<![\w.@/-]){re.escape(secret)}(?![\w@/-]|\.\w)", HIDDEN, text)
    return _USERINFO.sub(rf"\1{HIDDEN}@", text)


def holds_secret(address: str) -> bool:
    """Whether there is a password, or something named like one, in an address."""
    return any(pattern.search(address) for pattern in (_USERINFO, _NAMED, _QUERY))


def traced(error: BaseException) -> str:
    """The traceback of `error` without secrets."""
    return redacted("".join(traceback.format_exception(error)))


@contextmanager
def in_errors() -> Iterator[None]:
    """An error that leaves the block says no secret: Prefect keeps what the errors of its flows say."""
    try:
        yield
    except Exception as error:
        seen: BaseException | None = error
        while seen is not None:
            seen.args = tuple(redacted(one) if isinstance(one, str) else one for one in seen.args)
            for name in ("strerror", "filename"):  # what OSError says, whatever its arguments are
                if isinstance(getattr(seen, name, None), str):
                    setattr(seen, name, redacted(getattr(seen, name)))
            seen = seen.__cause__ or seen.__context__
        raise


def install() -> None:
    """Have every log record and uncaught error of this process go through `redacted`. Once is enough."""
    make_record, tell, tell_of_thread = logging.getLogRecordFactory(), sys.excepthook, threading.excepthook
    if getattr(make_record, "redacts", False):
        return

    def make(*arguments: Any, **options: Any) -> logging.LogRecord:
        return _clean(make_record(*arguments, **options))

    def on_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not _tell(error):
            tell(kind, error, trace)

    def on_thread_error(found: threading.ExceptHookArgs) -> None:
        if found.exc_value is None or not _tell(found.exc_value):
            tell_of_thread(found)

    make.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make)
    sys.excepthook, threading.excepthook = on_error, on_thread_error


def _clean(record: logging.LogRecord) -> logging.LogRecord:
    try:
        told = record.getMessage()
    except (TypeError, ValueError):  # whoever shows it says what is wrong with it
        return record
    if redacted(told) != told:
        record.msg, record.args = redacted(told), ()
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and _says_secret(error):
        record.exc_text = traced(error).rstrip("\n")  # which a formatter takes for the trace
    return record


def _says_secret(error: BaseException) -> bool:
    return traced(error) != "".join(traceback.format_exception(error))


def _tell(error: BaseException) -> bool:
    """Print the traceback of an error that says a secret; whether it did."""
    says = _says_secret(error)
    if says:
        print(traced(error), end="", file=sys.stderr)
    return says


def _known() -> list[str]:
    """The secrets of the environment as they may be written, the longest first: one may be a part of another."""
    found: set[str] = set()
    for name, value in os.environ.items():
        found.update(_of_variable(name.upper(), value.strip()))
    written = {form for secret in found for form in (secret, quote(secret, safe=""), unquote(secret))}
    usable = (s for s in written if len(s) >= _SHORTEST and s.lower() not in _NO_SECRETS and not s.isspace())
    return sorted(usable, key=lambda secret: (-len(secret), secret))


def _of_variable(name: str, value: str) -> Iterator[str]:
    if _SECRET_VARIABLE.search(name) and not _NOT_SECRET.search(name):
        yield value
        user, colon, password = value.partition(":")
        if colon and name.endswith("AUTH_STRING"):
            yield password
            yield _basic(user, password)
    if "://" in value:
        yield from _of_address(value)
    if _WHOLE_IS_SECRET.search(name):
        yield value
        yield value.partition("://")[2].partition("/")[2]


def _of_address(value: str) -> Iterator[str]:
    """The password of an address, or the user where there is none; and the values of its queries."""
    match = _NOT_OF_THE_WEB.match(value) or _USERINFO.match(value)
    userinfo = match["userinfo"] if match else ""
    user, _, password = userinfo.partition(":")
    yield password or user
    if password:
        yield _basic(unquote(user), unquote(password))
    try:
        query = urlsplit(value).query
    except ValueError:
        return
    for pair in query.split("&"):
        if _QUERY.match(f"?{pair}") or _NAMED.match(pair):
            yield pair.partition("=")[2]


def _basic(user: str, password: str) -> str:
    """What the header of HTTP's basic authentication holds."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()
