"""Digests equal those of `sha256sum`, whatever file times say."""

import hashlib
import os
import subprocess

import pytest

from tasks.errors import UserError
from tasks.lineage import hashing
from tasks.runtime import stages


@pytest.fixture
def folder(tmp_path):
    files = {
        "b.txt": b"two",
        "a b/ü.bin": bytes(range(256)) * 5000,
        "a/z": b"",
        "a.txt": b"one",
        "a/__pycache__/m.pyc": b"x",
    }
    for name, content in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "tree" / "loose.pyc").write_bytes(b"ignored")
    return tmp_path / "tree"


def shell(command: str, folder) -> str:
    return subprocess.run(["sh", "-c", command], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_a_tree_is_what_sha256sum_says_of_its_files_in_order(folder):
    listed = shell("find . -type f ! -name '*.pyc' -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum", folder)
    tree = hashing.tree(folder)
    assert "".join(f"{digest.sha256}  {name}\n" for name, digest in tree.files.items()) == listed
    assert tree.sha256 == hashlib.sha256(listed.encode()).hexdigest()
    assert tree.size == sum(len(path.read_bytes()) for path in folder.rglob("*") if path.suffix in (".txt", ".bin"))
    assert list(tree.files) == ["a b/ü.bin", "a.txt", "a/z", "b.txt"]


def test_a_file_is_its_own_tree(folder):
    tree = hashing.tree(folder / "a.txt")
    assert tree.sha256 == hashlib.sha256(b"one").hexdigest() == hashing.sha256_file(folder / "a.txt")
    assert tree.named("data/a.txt") == {"data/a.txt": hashing.FileDigest(tree.sha256, 3)}


def test_one_pass_gives_both_dvc_s_digest_and_the_tree(folder):
    for path in (folder, folder / "b.txt", folder / "a b" / "ü.bin"):
        assert hashing.measure(path) == (hashing.tree(path), stages.digest(path))


def test_an_altered_byte_shows_though_size_and_times_are_the_same(folder):
    path = folder / "a b" / "ü.bin"
    before, seen = hashing.tree(folder), path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert hashing.tree(folder).sha256 != before.sha256


def test_a_name_that_could_imitate_a_listing_is_refused(folder):
    (folder / f"x\n{'0' * 64}  y").write_bytes(b"")
    for function in (hashing.tree, hashing.measure):
        with pytest.raises(UserError, match="line break"):
            function(folder)


def test_what_is_missing_is_said_to_be(tmp_path):
    with pytest.raises(FileNotFoundError):
        hashing.tree(tmp_path / "gone")
