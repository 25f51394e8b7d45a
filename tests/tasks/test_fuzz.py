"""Mutated inputs: each is read as it is, or refused in one message with an exit code; no other error, and no guess.

Over 1,000 of them: params.yaml, dvc.yaml, files of one's own, checkpoints, assignments and environment values.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows import settings as run_settings
from tasks import parameters
from tasks.data import own_files
from tasks.errors import UserError
from tasks.lineage import policy, recording
from tasks.parameters import Parameters
from tasks.runtime import stages
from tasks.training.checkpoint import Checkpoints

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=12),
    st.lists(st.integers(-2, 2), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
fuzzed = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with some bytes, lines or a tail lost, doubled, swapped or replaced."""
    for _ in range(draw(st.integers(1, 4))):
        lines = content.splitlines(keepends=True)
        way = draw(st.sampled_from(["bit", "bytes", "cut", "drop", "double", "swap", "indent"]))
        if not content:
            return content
        at = draw(st.integers(0, len(content) - 1))
        line = draw(st.integers(0, max(0, len(lines) - 1)))
        if way == "bit":
            content = content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
        elif way == "bytes":
            content = content[:at] + draw(st.binary(max_size=6)) + content[at + draw(st.integers(0, 6)) :]
        elif way == "cut":
            content = content[:at]
        elif way == "drop":
            content = b"".join(lines[:line] + lines[line + 1 :])
        elif way == "double":
            content = b"".join(lines[: line + 1] + lines[line:])
        elif way == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[line], lines[other] = lines[other], lines[line]
            content = b"".join(lines)
        else:
            lines[line] = b"  " + lines[line]
            content = b"".join(lines)
    return content


def refused(error: UserError, *codes: int) -> None:
    """A message, with an exit code that the command line gives."""
    assert str(error).strip()
    assert error.exit_code in (codes or (1, 2))


PARAMS = (REPOSITORY / "params.yaml").read_bytes()


@fuzzed
@given(content=mutated(PARAMS))
def test_params_yaml_as_bytes(tmp_path: Path, content: bytes):
    (tmp_path / "params.yaml").write_bytes(content)
    try:
        found = parameters.load(tmp_path)
    except UserError as error:
        refused(error, 2)
    else:
        assert isinstance(found, Parameters)


def keys(tree: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found.append(prefix + key)
        found += keys(value, f"{prefix}{key}.") if isinstance(value, dict) else []
    return found


TREE = parameters.read_tree(REPOSITORY / "params.yaml")


@fuzzed
@given(key=st.sampled_from(keys(TREE)), value=SCALARS)
def test_params_yaml_value_by_value(key: str, value: object):
    tree = json.loads(json.dumps(TREE))
    *path, last = key.split(".")
    section = tree
    for part in path:
        section = section[part]
    section[last] = value
    try:
        found = parameters.check(tree)
    except UserError as error:
        refused(error, 2)
    else:
        assert isinstance(found, Parameters)


@fuzzed
@given(
    assignment=st.one_of(
        st.text(max_size=30),
        st.tuples(st.sampled_from(keys(TREE)), st.text(max_size=12)).map("=".join),
    )
)
def test_assignments_leave_the_file_as_it_is(tmp_path: Path, assignment: str):
    (tmp_path / "params.yaml").write_bytes(PARAMS)
    try:
        run_settings.apply(tmp_path, [assignment])
    except UserError as error:
        refused(error, 2)
    assert (tmp_path / "params.yaml").read_bytes() == PARAMS


@fuzzed
@given(content=mutated((REPOSITORY / "dvc.yaml").read_bytes()))
def test_dvc_yaml(tmp_path: Path, content: bytes):
    (tmp_path / "dvc.yaml").write_bytes(content)
    try:
        graph = stages.read_stages(tmp_path)
    except UserError as error:
        refused(error)
    else:
        for name in graph:
            stages.ancestors(graph, name)
            assert all(isinstance(path, str) for path in (*graph[name].deps, *graph[name].outs))


@fuzzed
@given(content=mutated((REPOSITORY / "policy.yaml").read_bytes()))
def test_policy_yaml(tmp_path: Path, content: bytes):
    (tmp_path / "policy.yaml").write_bytes(content)
    try:
        found = policy.load(tmp_path / "policy.yaml")
    except UserError as error:
        refused(error)
    else:
        assert isinstance(found, policy.Policy)


OWN = "".join(
    json.dumps(row) + "\n"
    for row in (
        {"text": "A text that is long enough to be kept as it stands here."},
        {"instruction": "Add", "input": "2 and 2", "output": "4"},
        {"prompt": "What is 2 + 2?", "response": "4"},
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello to you"}]},
    )
    for _ in range(3)
).encode()


@fuzzed
@given(content=mutated(OWN))
def test_files_of_one_s_own(tmp_path: Path, content: bytes):
    """Every line that is not blank is a record or a reject with its reason: none is lost."""
    (tmp_path / "own.jsonl").write_bytes(content)
    n_lines = sum(bool(line.strip()) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    try:
        found = own_files.read_file("own.jsonl", "MIT", tmp_path)
    except UserError as error:
        refused(error, 2)
    else:
        assert found.n_read == n_lines
        assert len(found.texts) + len(found.demonstrations) + len(found.damaged) == n_lines
        assert all(reject.detail for reject in found.damaged)


@pytest.fixture(scope="module")
def saved() -> Path:
    """Two checkpoints, with the values 1 and 2."""
    folder = Path(tempfile.mkdtemp())
    checkpoints = Checkpoints(folder, every_s=0)
    for number in (1, 2):
        checkpoints.save(number, {"w": torch.full((40,), float(number))}, {"step": number, "text": "ä"})
    yield folder
    shutil.rmtree(folder)


@fuzzed
@given(data=st.data())
def test_a_damaged_checkpoint_is_never_used(tmp_path: Path, saved: Path, data: st.DataObject):
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    path = data.draw(st.sampled_from(sorted(folder.rglob("*.*"), key=str)).filter(Path.is_file))
    before = path.read_bytes()
    path.write_bytes(data.draw(mutated(before)))
    loaded = Checkpoints(folder, every_s=0).load(CPU)
    assert loaded is not None, "at most one of the two is damaged"
    tensors, state = loaded
    assert state["step"] in (1, 2)
    assert torch.equal(tensors["w"], torch.full((40,), float(state["step"]))), "whole, or not at all"
    assert state["text"] == "ä"


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(alphabet=st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12))
def test_switches_in_the_environment(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv(recording.SWITCH, value)
    if value.lower() in ("on", "off"):
        assert recording.is_on() is (value.lower() == "on")
    else:
        with pytest.raises(UserError, match="must be on or off"):
            recording.is_on()
