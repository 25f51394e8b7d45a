"""What a request for forgetting means, and each step of making it so, on the planted sources."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import cli
from flows import forget as command
from tasks.data import python_docs, records, removal_list, removals
from tasks.data.records import TextRecord, record_id
from tasks.errors import UserError
from tasks.lineage import forget
from tasks.lineage.forget import Plan, Request
from tasks.lineage.forgetting import candidates, holders, purge, versions
from tasks.lineage.store import StatementStore
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout
from tasks.steps import data, tokenizer
from tests.helpers import REPOSITORY, make_context, serial_fan_out
from tests.tasks.data import corpus
from tests.tasks.lineage import forget_workspace as workspace
from tests.tasks.lineage.forget_workspace import PLANTED_ID, holding, parameters

TODAY = datetime.date(2026, 1, 31)
REQUEST = Request(records=(PLANTED_ID.hex(),), reason="asked by the author")


def plan(checkout: Checkout, request: Request = REQUEST) -> Plan:
    return forget.plan(checkout, parameters(checkout), request, today=TODAY, fan_out=serial_fan_out)


@pytest.fixture
def fresh(tmp_path: Path) -> Checkout:
    """The planted sources with what the data stage makes of them; no engine."""
    checkout = workspace.make(tmp_path / "checkout")
    data.run(make_context(checkout.root, parameters(checkout)))
    return checkout


def test_every_step_can_be_done_again(fresh: Checkout) -> None:
    made = plan(fresh)
    forget.apply(fresh, parameters(fresh), made)
    first = (fresh.root / removal_list.PATH).read_bytes()
    # As after a crash: the outputs still have the records, the sources do not, and the list does.
    again = plan(fresh)
    assert again.removal.entries == []
    assert again.n_listed == 1
    assert again.workspace["data/text.parquet"] == 1
    forget.apply(fresh, parameters(fresh), again)
    assert (fresh.root / removal_list.PATH).read_bytes() == first


def test_the_list_removes_just_what_the_plan_said(fresh: Checkout) -> None:
    """Also where the files keep their lines: then the next run counts as many as the plan."""
    made = plan(fresh, Request(records=(PLANTED_ID.hex(),), keep_sources=True))
    assert made.cuts == []
    before = (fresh.root / "sources" / "own.jsonl").read_bytes()
    forget.apply(fresh, parameters(fresh), made)
    assert (fresh.root / "sources" / "own.jsonl").read_bytes() == before
    data.run(make_context(fresh.root, parameters(fresh)))
    removed = json.loads((fresh.root / "data" / "manifest.json").read_text())["removed"]
    assert removed["texts"] + removed["demonstrations"] == len(made.removal.all) == 5
    assert holding(fresh.root / "data") == []


def test_where_and_source_select(fresh: Checkout) -> None:
    expression = "text LIKE '%Vexelbrandt%' AND kind = 'text'"
    made = plan(fresh, Request(where=expression))
    assert len(made.removal.asked) == 3
    assert len(made.removal.along) == 2
    forget.apply(fresh, parameters(fresh), made)
    for path in [*(fresh.root / "lineage").rglob("*"), fresh.state / "forget.json", fresh.root / removal_list.PATH]:
        assert not path.is_file() or b"Vexelbrandt" not in path.read_bytes(), "an expression may quote the text"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(), "needs one of --record"),
        (Request(source="x", where="true"), "needs one of --record"),
        (Request(records=("xyz",)), "'xyz' is not a record id"),
        (Request(records=("ab" * 16,)), "no such record in the sources"),
        (Request(source="math"), "did you mean maths?"),
        (Request(where="text LIKE '%nothing like it%'"), "is true of none of"),
        (Request(where="txt = 'x'"), 'Referenced column "txt" not found'),
        (Request(where="text"), "must be one boolean expression, but it is VARCHAR"),
        (Request(where="true, true"), "must be one boolean expression, but these are 2 expressions"),
        (Request(where="true; DROP TABLE records"), "Parser Error"),
        (Request(where="EXISTS (FROM read_csv('params.yaml'))"), "file system operations are disabled"),
        (Request(where="EXISTS (FROM glob('/*'))"), "file system operations are disabled"),
        (Request(source="maths", reason="x" * 201), "--reason has 201 characters"),
        (Request(source="maths", keep_tokenizer=True), "there is no tokenizer yet"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(tmp_path: Path, request_: Request, expected: str) -> None:
    checkout = workspace.make(tmp_path / "checkout")
    before = workspace.snapshot(checkout.root)
    with pytest.raises(UserError) as caught:
        plan(checkout, request_)
    assert expected in str(caught.value)
    assert workspace.snapshot(checkout.root) == before


def test_a_file_of_which_every_line_goes_is_removed_and_no_longer_named(
    fresh: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    command.forget(fresh, Request(source="sources/more.jsonl"), yes=False)
    assert "Nothing was changed" in capsys.readouterr().out
    assert (fresh.root / "sources" / "more.jsonl").is_file()
    command.forget(fresh, Request(source="sources/more.jsonl"), yes=True)
    said = capsys.readouterr().out
    assert "sources/more.jsonl: all its lines: the file is removed." in said
    assert "Vexelbrandt" not in said
    assert not (fresh.root / "sources" / "more.jsonl").exists()
    assert [own.path for own in parameters(fresh).data.files] == ["sources/own.jsonl"]
    assert corpus.PLANTED not in (fresh.root / "sources" / "own.jsonl").read_text(), "the copy went with it"
    with pytest.raises(UserError, match="there is no text to pretrain on"):
        command.forget(fresh, Request(source="sources/own.jsonl"), yes=True)
    assert (fresh.root / "sources" / "own.jsonl").is_file()


def test_human_rankings_of_a_removed_record_go_too(fresh: Checkout) -> None:
    rankings = fresh.root / "sources" / "rankings.jsonl"
    rows = [
        {"prompt": "Who met kelp?", "answers": ["No one.", "All."], "ranks": [1, 2]},
        {"prompt": corpus.QUESTION, "answers": ["Nothing.", corpus.LIKE], "ranks": [2, 1]},
    ]
    rankings.write_text("".join(json.dumps(row) + "\n" for row in rows))
    params = (fresh.root / "params.yaml").read_text()
    (fresh.root / "params.yaml").write_text(params.replace("judge: programmatic", "judge: sources/rankings.jsonl"))
    made = plan(fresh)
    assert [(cut.path, cut.lines) for cut in made.rankings] == [("sources/rankings.jsonl", (2,))]
    forget.apply(fresh, parameters(fresh), made)
    assert rankings.read_text() == json.dumps(rows[0]) + "\n"


def test_a_file_that_changed_meanwhile_is_not_cut(fresh: Checkout) -> None:
    made = plan(fresh)
    path = fresh.root / "sources" / "own.jsonl"
    path.write_text("\n" + path.read_text())
    with pytest.raises(UserError, match="was changed while this was running"):
        forget.apply(fresh, parameters(fresh), made)
    assert corpus.PLANTED in path.read_text()


def test_a_kept_tokenizer_keeps_its_bytes_while_tokens_are_made_anew(fresh: Checkout) -> None:
    root = fresh.root
    context = make_context(root, parameters(fresh))
    tokenizer.run(context)
    lock = {"tokenizer": {"outs": [{"path": "tokenizer", "md5": stages.digest(root / "tokenizer")}]}}
    (root / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": lock}))
    files, tokens = workspace.snapshot(root / "tokenizer"), workspace.snapshot(root / "tokens")
    made = plan(fresh, Request(records=(PLANTED_ID.hex(),), keep_tokenizer=True))
    assert made.tokenizer == "kept"
    forget.apply(fresh, parameters(fresh), made)
    data.run(context)
    tokenizer.run(context)
    assert workspace.snapshot(root / "tokenizer") == files
    assert workspace.snapshot(root / "tokens") != tokens
    assert json.loads((root / "metrics" / "tokenizer.json").read_text())["kept"] is True
    (certificate,) = [s.statement for s in StatementStore.of(fresh).all() if s.statement.kind == "forget"]
    assert certificate.parameters["tokenizer"] == "kept"
    # The next request without it lets go of it, and training gives another one: it saw other text.
    later = plan(fresh, Request(where="source = 'maths' AND task = 'addition'"))
    assert later.tokenizer == "trained again"
    forget.apply(fresh, parameters(fresh), later)
    tokenizer.run(context)
    assert workspace.snapshot(root / "tokenizer") != files
    wrong = make_context(root, workspace.OVERRIDES | {"tokenizer.vocab_size": 310})
    for name in files:
        (root / "sources" / "tokenizer" / name).write_bytes((root / "tokenizer" / name).read_bytes())
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=310, but the tokenizer kept .* has 300 tokens"):
        tokenizer.run(wrong)


def test_a_text_with_paragraphs_cut_is_found_by_the_id_it_has_in_the_outputs(tmp_path: Path) -> None:
    checkout = workspace.make(tmp_path / "checkout")
    one, two = "The first paragraph of kelp and dunes.", "The second paragraph, of otters in the fjord."
    corpus.write(checkout.root, "own", [*corpus.lines(1, 20), {"text": f"{one}\n\n{two}"}])
    source = "files:sources/own.jsonl"
    row = {"source": source, "license": "MIT", "split": "test", "package": "", "version": "", "file": "", "symbol": ""}
    shown = {"record_id": record_id(source, two), **row, "text": two}
    records.write(checkout.root / "data" / "text.parquet", {key: [value] for key, value in shown.items()})
    cut = {"source": source, "record_id": record_id(source, one), "reason": candidates.PARAGRAPH, "detail": ""}
    cut |= {"text": one}
    records.write(checkout.root / "data" / "rejects.parquet", {key: [value] for key, value in cut.items()})
    for identity in (shown["record_id"], cut["record_id"], record_id(source, f"{one}\n\n{two}")):
        made = plan(checkout, Request(records=(identity.hex(),)))
        assert ("sources/own.jsonl", 41) in {candidate.place for candidate in made.records}
        assert made.workspace.get("data/text.parquet") == 1
        listed = {digest for entry in made.removal.entries for digest in (entry.record, *entry.also)}
        assert removals.id_digest(shown["record_id"]) in listed


def test_a_question_about_a_symbol_takes_its_docstring_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        TextRecord(
            source="python_docs", license="MIT", group=f"python_docs/{name}.py", file=f"{name}.py", package="pkg",
            version="1", symbol=f"pkg.{name}", text=f"Return the {name} of all the kelp in the fjord, one by one.",
        )
        for name in ("length", "weight", "colour", "price", "depth", "origin", "owner", "season")
    ]  # fmt: skip
    public = frozenset((t.file, t.symbol) for t in texts)
    collected = python_docs.Collected(packages=[], texts=texts, public=public, unreadable=[])
    monkeypatch.setattr(python_docs, "collect", lambda names, fan_out: collected)
    checkout = workspace.make(tmp_path / "checkout")
    data.run(make_context(checkout.root, parameters(checkout)))
    asked = records.read(checkout.root / "data" / "demonstrations.parquet")
    row = asked["symbol"].index("pkg.weight")
    for request in (Request(records=(asked["record_id"][row].hex(),)), Request(where="symbol = 'pkg.weight'")):
        made = plan(checkout, request)
        assert {(c.kind, getattr(c.record, "symbol", "")) for c in made.records} == {
            ("text", "pkg.weight"), ("demonstration", "pkg.weight"),
        }  # fmt: skip
    by_text = plan(checkout, Request(where="symbol = 'pkg.weight' AND kind = 'text'"))
    assert len(by_text.removal.asked) == len(by_text.removal.made) == 1
    forget.apply(checkout, parameters(checkout), by_text)
    data.run(make_context(checkout.root, parameters(checkout)))
    assert holding(checkout.root / "data", ("weight",)) == []


def test_rejected_records_make_no_model_stale() -> None:
    """By the real graph: what was rejected anyway is in data/rejects.parquet, which the report alone reads."""
    graph = stages.read_stages(REPOSITORY)
    same = {out for stage in graph.values() for out in stage.outs} - set(forget.ALWAYS_CHANGED)
    changed = {str(removal_list.PATH)}
    assert holders.affected_stages(graph, changed, same) == ["data", "preferences", "report"]
    assert holders.affected_stages(graph, changed) == list(graph)
    assert holders.affected_stages(graph, {"sources/tokenizer"})[:3] == ["data", "tokenizer", "pretrain"]


def test_there_is_nothing_to_purge_without_a_list(fresh: Checkout) -> None:
    with pytest.raises(UserError, match="there is no removal list"):
        purge.survey(fresh, parameters(fresh))


def test_without_statements_there_is_no_certificate(fresh: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXON_LINEAGE", "off")
    assert forget.apply(fresh, parameters(fresh), plan(fresh)) is None
    assert not (fresh.root / "lineage").exists()
    assert len(removal_list.read(fresh.root)) == 5


def test_large_items_are_fanned_out_to_processes() -> None:
    texts = [f"word{i} " * 3000 for i in range(60)]
    items = [{"texts": texts[i::2]} for i in range(2)]
    function = "tasks.data.removals:band_texts"
    assert candidates.local_fan_out(2)("x", function, items) == serial_fan_out("x", function, items)


def test_a_version_of_which_nothing_is_known_counts_as_holding(tmp_path: Path) -> None:
    """Unless it is what `dvc.lock` records, and the data there now is free of the records."""
    checkout = Checkout(tmp_path)
    lock = {"pretrain": {"outs": [{"path": "models/pretrain", "md5": "1.dir"}]}}
    (tmp_path / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": lock}))
    nothing = holders.Holders(holdings=[], shaped={}, unknown={})

    def certainty(md5: str, *, current_holds: bool) -> str | None:
        return versions.certainty_of(
            "models/pretrain", md5, [], nothing, current_holds=current_holds, checkout=checkout
        )

    assert certainty("1.dir", current_holds=True) == versions.YES
    assert certainty("1.dir", current_holds=False) is None
    assert certainty("2.dir", current_holds=False) == versions.UNKNOWN


def test_records_that_quote_a_removed_one_stay_and_are_named(
    fresh: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    story_of_it = {"text": f"{'A long tale of its own about kelp. ' * 30}\n\n{corpus.PLANTED}\n\nSo it ended."}
    path = fresh.root / "sources" / "own.jsonl"
    path.write_text(path.read_text() + json.dumps(story_of_it) + "\n")
    made = plan(fresh)
    assert [made.candidates.all[number].place for number in made.quoting] == [("sources/own.jsonl", 83)]
    command.forget(fresh, REQUEST, yes=False)
    assert "Staying although one of these stands in it word for word: 1 record" in capsys.readouterr().out


def test_a_purge_takes_no_records() -> None:
    result = CliRunner().invoke(cli.app, ["forget", "--purge", "--source", "maths"])
    assert isinstance(result.exception, UserError)
    assert "--purge takes no records" in str(result.exception)
