"""Nothing half-written stands under the name of something whole."""

import hashlib
import json

import pytest

from tasks import files


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"

    def stopped_half_way() -> None:
        with files.new_directory(target) as scratch:
            (scratch / "half").write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped_half_way()
    assert list(tmp_path.iterdir()) == []
    with files.new_directory(target) as scratch:
        (scratch / "a").write_text("1")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (target / "a").read_text() == "1"


def test_an_older_file_survives_a_failed_write(tmp_path):
    path = tmp_path / "metrics.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_json_has_one_canonical_form(tmp_path):
    files.write_json(tmp_path / "a", {"b": 1, "a": [1.5, "é"]})
    files.write_json(tmp_path / "b", {"a": [1.5, "é"], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_md5_equals_hashlib_s(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 100_000)
    assert files.file_md5(path) == hashlib.md5(b"abc" * 100_000).hexdigest()
