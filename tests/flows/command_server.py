"""One process that runs many `axon` commands in a checkout, as `flows.cli.main` runs each: the imports are paid once.

Run as `python -m tests.flows.command_server FD` in the root of a workspace: it reads a case as a line of JSON from its
standard input (argv, files to put in place as base64 or null for none, variables), and writes what came of it to the
file descriptor. Whatever a case has changed is put back before the next.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Locks are taken by every command, and DVC keeps what it has hashed; neither is anything that a user made.
PASSED_OVER = (".git", ".dvc/tmp", ".axon/locks", ".axon/matplotlib")


def tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time and inode of every file below `root` that a command has no business to touch where it fails."""
    found: dict[str, tuple[int, int, int]] = {}
    waiting, n_before = [str(root)], len(str(root)) + 1
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                name = entry.path[n_before:]
                if name in PASSED_OVER or entry.name == "__pycache__":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                stat = entry.stat(follow_symlinks=False)
                found[name] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return found


def is_whole_object(root: Path, name: str) -> bool:
    """Whether a file is one that DVC keeps under the digest of its content, all of it.

    Of a `dvc.lock` of its older form, without `hash: md5`, DVC keeps the list of a folder as soon as it has hashed it.
    """
    path = root / name
    if not name.startswith(".dvc/cache/") or not path.is_file():
        return False
    return hashlib.md5(path.read_bytes()).hexdigest() == path.parent.name + path.name.removesuffix(".dir")


def run(argv: list[str]) -> tuple[int, str]:
    """(exit code, traceback of what was raised in place of one) of `axon ARGV`."""
    from flows import cli

    try:
        cli.main(argv)
    except SystemExit as left:
        if isinstance(left.code, int) or left.code is None:
            return left.code or 0, ""
        return 1, ""
    except BaseException:  # noqa: BLE001 that is what is looked for
        return -1, traceback.format_exc()
    return 0, ""


@contextlib.contextmanager
def captured(told: dict[str, str]) -> Iterator[None]:
    """Both streams of this process, by their descriptors: what C libraries and children say too."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        kept = os.dup(1), os.dup(2)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(kept, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            for name, file in (("stdout", out), ("stderr", err)):
                file.seek(0)
                told[name] = file.read().decode(errors="replace")


def put(path: Path, content: bytes | None) -> None:
    """Make `path` hold `content`, or be no file."""
    if content is None:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the first folder that something is left in ends it
            for folder in path.parents:
                folder.rmdir()
    elif not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


class Server:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._variables = dict(os.environ)
        self._pristine = {name: (root / name).read_bytes() for name in tree(root)}

    def answer(self, case: dict[str, Any]) -> dict[str, Any]:
        os.environ.clear()
        os.environ.update(self._variables | case["variables"])
        os.chdir(self._root)
        for name, content in case["files"].items():
            put(self._root / name, None if content is None else base64.b64decode(content))
        before = tree(self._root)
        told: dict[str, str] = {}
        with captured(told):
            code, raised = run(case["argv"])
        os.chdir(self._root)
        after = tree(self._root)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        told_of = [name for name in changed if name in before or not is_whole_object(self._root, name)]
        for name in (*changed, *case["files"]):
            put(self._root / name, self._pristine.get(name))
        return {"code": code, "raised": raised, "changed": told_of, **told}


def main() -> None:
    server = Server(Path.cwd())
    with os.fdopen(int(sys.argv[1]), "w") as answers:
        for line in sys.stdin:
            answers.write(json.dumps(server.answer(json.loads(line))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
