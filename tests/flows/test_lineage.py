"""`axon lineage`: the first word decides, and what is printed is what was asked for."""

from __future__ import annotations

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows import lineage, lineage_commands
from tasks.errors import UserError
from tests.tasks.lineage.chain_by_hand import Chain, md5, sha256, small


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    made = small().write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lineage_commands, "_checkout", lambda: made)
    return made


def invoke(*arguments, code=0):
    done = CliRunner().invoke(lineage_commands.app, list(arguments), catch_exceptions=True)
    if isinstance(done.exception, UserError):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["models/sft"],
        ["show", "models/sft"],
        ["--format", "tree", "models/sft"],
        ["models/sft", "--format", "tree"],
        ["path:models/sft", "--up", "--down"],
    ],
)
def test_a_target_needs_no_command(checkout, arguments):
    said = invoke(*arguments)
    assert said.startswith(f"models/sft {md5('weights')[:8]}\n")
    assert "Made from" in said
    assert "Went into" in said


def test_one_side(checkout):
    assert "Went into" not in invoke("sft", "--up")
    assert "Made from" not in invoke("sft", "--down")
    assert "Went into" not in invoke("model", "axon-chat@1")


@pytest.mark.parametrize("word", ["record", "model", "diff", "show"])
def test_a_stage_named_like_a_command(tmp_path, monkeypatch, word):
    chain = Chain()
    chain.stage(word, "a1", reads={}, makes={"out": "1"})
    made = chain.write(tmp_path)
    monkeypatch.setattr(lineage_commands, "_checkout", lambda: made)
    for arguments in (["show", word], [f"stage:{word}"]):
        assert invoke(*arguments).startswith(f"{word} a1a1a1a1\n")


def test_a_pipe_gets_plain_unbroken_lines(checkout):
    said = invoke("evaluate")
    assert "\x1b" not in said
    assert "Python 3.11.7, torch 2.13.0, numpy 2.4.6, 2 libraries in all; A processor, Linux 6.1\n" in said
    assert not any(line.endswith(" ") for line in said.splitlines())


def test_formats_and_files(checkout, tmp_path):
    found = json.loads(invoke("sft", "--format", "json"))
    assert found["target"]["kind"] == "execution"
    assert invoke("sft", "--format", "mermaid").startswith("flowchart TD\n")
    assert invoke("sft", "--format", "html").startswith("<!doctype html>")
    for form in ("tree", "json", "mermaid", "html"):
        path = tmp_path / "out" / f"sft.{form}"
        assert invoke("sft", "--format", form, "--output", str(path)) == f"wrote {path}\n"
        written = path.read_text()
        assert written == invoke("sft", "--format", form)
    with pytest.raises(UserError, match="is a folder"):
        invoke("sft", "--output", str(tmp_path))


def test_a_page_at_a_terminal_goes_to_a_file(checkout, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lineage.show(checkout, "axon-chat@1", form="html", up=False, down=False, output=None)
    path = checkout.state / "lineage" / "axon-chat@1.html"
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert path.read_text().startswith("<!doctype html>")


def test_a_difference_and_its_exit_code(tmp_path, monkeypatch):
    chain = Chain()
    chain.stage("sft", "a1", reads={}, makes={"models/sft": "1"}, parameters={"sft": {"rate": 0.1}})
    chain.stage("sft", "b2", reads={}, makes={"models/sft": "2"}, parameters={"sft": {"rate": 0.2}}, commit="d" * 40)
    made = chain.write(tmp_path)
    monkeypatch.setattr(lineage_commands, "_checkout", lambda: made)
    assert invoke("diff", "sft~1", "sft").splitlines() == [
        "sft a1a1a1a1 → sft b2b2b2b2",
        "",
        "Parameters",
        "  sft.rate  0.1 → 0.2  [sft]",
        "",
        "Stages behind that, whose outputs changed",
        "  sft  models/sft",
    ]
    invoke("diff", "sft~1", "sft", "--exit-code", code=1)
    assert invoke("diff", "sft", "sft", "--exit-code").splitlines()[1:] == ["no difference"]
    found = json.loads(invoke("diff", "sft~1", "sft", "--format", "json"))
    assert found["parameters"] == [{"name": "sft.rate", "before": 0.1, "after": 0.2, "stages": ["sft"]}]
    assert (found["stages"], found["is_empty"]) == (["sft"], False)


def test_code_that_differs_is_named_with_the_command_that_shows_it(tmp_path, monkeypatch):
    chain = Chain()
    chain.stage("sft", "a1", reads={}, makes={"models/sft": "1"}, commit="a" * 40)
    chain.stage("sft", "b2", reads={}, makes={"models/sft": "1"}, code="other", commit="b" * 40)
    made = chain.write(tmp_path)
    monkeypatch.setattr(lineage_commands, "_checkout", lambda: made)
    said = invoke("diff", "sft~1", "sft")
    before, after = sha256("def step(): ...")[:8], sha256("other")[:8]
    assert f"  tasks/steps/sft.py  {before} → {after}  [sft]" in said
    assert "git diff aaaaaaaa bbbbbbbb -- tasks/steps/sft.py" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["modles/sft"], "did you mean models/sft"),
        (["record", "xyz"], "is not a record id"),
        (["record", "f" * 32], "no record"),
        (["model", "run", "--records"], "is no model"),
        (["model", "axon-chat@1", "--records"], "the record index"),
        (["model", "axon-chat@1", "--format", "csv"], "add --records"),
        (["diff", "sft", "sources"], "has no statement"),
    ],
)
def test_mistakes_end_in_one_message(checkout, arguments, said):
    (checkout.root / "data" / "text.parquet").unlink()
    with pytest.raises(UserError) as raised:
        invoke(*arguments)
    assert said in str(raised.value)


def test_a_format_that_there_is_not(checkout):
    assert "Invalid value for '--format'" in invoke("sft", "--format", "pdf", code=2)


def test_a_terminal_gets_colours(checkout, monkeypatch, capsys):
    monkeypatch.setattr(lineage, "Console", lambda **options: Console(**options, force_terminal=True, width=200))
    lineage.show(checkout, "sft", form="tree", up=False, down=False, output=None)
    assert "\x1b[1m" in capsys.readouterr().out
