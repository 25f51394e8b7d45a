"""Planted secrets, and the search for them in whatever a command has said or written."""

from __future__ import annotations

import base64
import hmac
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

_MARK = "canary"
_NOT_MADE = {"tests", ".git"}  # the planted secrets themselves stand there


def canary(name: str) -> str:
    """A secret that nothing else has and that says where it comes from."""
    return f"{_MARK}-{name}-7Zq/9w"


# The variables that hold secrets and no address of an engine; those that do are the tests' own.
VARIABLES = {
    "AWS_ACCESS_KEY_ID": "AKIAAXON",
    "AWS_SECRET_ACCESS_KEY": canary("aws"),
    "AXON_NOTIFY_URL": f"http://127.0.0.1:9/services/{canary('notify')}",
    "HF_TOKEN": canary("hf"),
    "MLFLOW_TRACKING_USERNAME": "axon",
    "MLFLOW_TRACKING_PASSWORD": canary("mlflow-password"),
    "OPENLINEAGE_API_KEY": canary("openlineage"),
    "PREFECT_API_AUTH_STRING": f"admin:{canary('prefect-auth')}",
    "PREFECT_API_KEY": canary("prefect-key"),
    "RAY_AUTH_TOKEN": canary("ray"),
}


def address(scheme: str, name: str, rest: str) -> str:
    """`scheme://axon:SECRET@rest`, with a secret of this name."""
    return f"{scheme}://axon:{quote(canary(name), safe='')}@{rest}"


def in_text(text: str) -> list[str]:
    """The lines that hold a planted secret, as it is or in another form."""
    return [line for line in text.splitlines() if _holds(line.encode())]


def in_files(*folders: Path, but: tuple[str, ...] = ()) -> list[str]:
    """The files below `folders` (databases as bytes) that hold one; `but`: those that a person wrote it into."""
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            is_made = name not in but and not _NOT_MADE.intersection(name.split("/"))
            content = path.read_bytes() if is_made and path.is_file() and not path.is_symlink() else b""
            if _holds(content):
                found.append(f"{name}: {_around(content)}")
    return found


def _forms() -> list[bytes]:
    """The mark as it is, and in base64 at each of the three places it may begin at: signed statements are base64."""
    mark = f"{_MARK}-".encode()
    forms = [mark]
    for shift in range(3):  # of the digits only those that the bytes before and behind have no part in
        coded = base64.b64encode(b"x" * shift + mark)
        forms.append(coded[-(-shift * 8 // 6) : (shift + len(mark)) * 8 // 6])
    return forms


_FORMS = _forms()


def _holds(content: bytes) -> bool:
    return any(form in content for form in _FORMS)


def _around(content: bytes) -> str:
    at = next(content.index(form) for form in _FORMS if form in content)
    return content[max(0, at - 80) : at + 60].decode(errors="replace")


@contextmanager
def behind_a_password(port: int, user: str, password: str) -> Iterator[tuple[int, list[int]]]:
    """A gate in front of the server at `port` of loopback; yields its own port, and the codes it has answered."""
    expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    answered: list[int] = []

    class Gate(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hmac.compare_digest(self.headers.get("Authorization", ""), expected):
                self._pass_on(body)
            else:
                self._answer(401, {"WWW-Authenticate": 'Basic realm="axon"'}, b"who are you?")

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_one

        def _pass_on(self, body: bytes) -> None:
            behind = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                kept = {k: v for k, v in self.headers.items() if k.lower() not in ("authorization", "host")}
                behind.request(self.command, self.path, body, kept)
                response = behind.getresponse()
                content = response.read()
                dropped = ("transfer-encoding", "content-length", "connection")
                self._answer(
                    response.status, {k: v for k, v in response.getheaders() if k.lower() not in dropped}, content
                )
            except OSError:
                self._answer(502, {}, b"")
            finally:
                behind.close()

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            answered.append(status)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], answered
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
