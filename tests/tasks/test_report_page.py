"""The report: complete, the same bytes again, safe with any text, and dependent on nothing outside itself."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.files import read_json, write_json
from tasks.reports.inputs import read_curve
from tasks.reports.plots import smoothed
from tasks.reports.text import cell, exact, fenced, flatten, interval, number, visible
from tasks.reports.verdict import beside_baselines, win_rate_word
from tasks.steps import report
from tests.helpers import REPOSITORY, make_context
from tests.tasks import report_inputs

NASTY = "<script>alert(1)</script> & \"'` \x00\x1b[31m \u202egnirts ]]> --> </style> {{ 7*7 }} | ``` \ud800"
VOID = {"meta", "br", "wbr", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Text by element, all attributes, and whether tags close in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    report_inputs.write(root, odd_answer=NASTY.replace("\ud800", ""))
    report.run(make_context(root))
    return root


@pytest.fixture(scope="module")
def page(root: Path) -> Page:
    page = Page()
    page.feed((root / "report" / "report.html").read_text(encoding="utf-8"))
    page.close()
    return page


def test_tags_are_balanced_and_ids_unique(page: Page) -> None:
    assert page.open == []
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    internal = {value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")}
    assert internal <= set(ids)


def test_page_refers_to_nothing_elsewhere(root: Path, page: Page) -> None:
    html = (root / "report" / "report.html").read_text(encoding="utf-8")
    assert not page.tags & {"script", "iframe", "object", "embed", "link", "img", "base", "form"}
    assert not re.search(r"https?://|//[a-z]+\.|@import|javascript:", html)
    assert all(ref.startswith("#") for ref in re.findall(r"url\(([^)]*)\)", html))
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), f"{tag} has {name}"
        if name in ("src", "href", "srcset", "action", "data", "poster"):
            assert value.startswith("#")


def test_every_number_is_on_the_page_and_in_its_twin(root: Path, page: Page) -> None:
    text = "\n".join(page.text)
    markdown = (root / "report" / "report.md").read_text(encoding="utf-8")
    files = sorted((root / "metrics").glob("*.json"))
    assert len(files) == 9
    for file in files:
        for key, value in flatten(read_json(file)):
            assert key in text
            assert value in text, f"{file.name}: {key}"
            assert f"| {cell(key)} | {cell(value)} |" in markdown, f"{file.name}: {key}"
    evaluation = read_json(root / "metrics" / "evaluate.json")
    for figures in evaluation.values():
        for name in ("exact_match", "win_rate_vs_sft", "kl_to_sft", "reward"):
            assert number(figures[name]) in page.text
        assert number(figures["bits_per_byte"], 3) in page.text
        if figures["win_rate_vs_sft"] != 0.5:
            assert interval(figures["win_rate_low"], figures["win_rate_high"]) in page.text


def test_digests_are_those_of_the_files(root: Path, page: Page) -> None:
    markdown = (root / "report" / "report.md").read_text(encoding="utf-8")
    for directory in ("data", "tokenizer", "tokens", "preferences", "models", "evaluation"):
        files = [path for path in (root / directory).rglob("*") if path.is_file()]
        assert files
        for file in files:
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            assert sha256 in page.text
            assert sha256 in markdown


def test_text_of_models_stays_text(root: Path, page: Page) -> None:
    html = (root / "report" / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "{{ 7*7 }}" in html
    assert "49" not in re.findall(r"<dd>([^<]*alert[^<]*)</dd>", html)[0]
    assert any("<script>alert(1)</script> & \"'`" in text for text in page.text)
    for file in ("report.html", "report.md"):
        content = (root / "report" / file).read_text(encoding="utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", content)


def test_two_processes_write_the_same_bytes(root: Path, tmp_path: Path) -> None:
    before = [(root / "report" / name).read_bytes() for name in ("report.html", "report.md")]
    script = (
        "import sys; from pathlib import Path; from tests.helpers import make_context;"
        "from tasks.steps import report; report.run(make_context(Path(sys.argv[1])))"
    )
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
        subprocess.run([sys.executable, "-c", script, str(root)], check=True, cwd=REPOSITORY, env=environment)
        assert [(root / "report" / name).read_bytes() for name in ("report.html", "report.md")] == before


def test_runtime_parameters_do_not_change_the_page(root: Path) -> None:
    before = (root / "report" / "report.html").read_bytes()
    report.run(make_context(root, {"runtime.sampling_workers": 5}))
    assert (root / "report" / "report.html").read_bytes() == before
    assert b"sampling_workers" not in before
    assert b"kl_coef" in before


def test_rankings_from_a_file_are_not_called_a_programs(tmp_path: Path) -> None:
    report_inputs.write(tmp_path)
    report.run(make_context(tmp_path, {"preferences.judge": "rankings.jsonl"}))
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "preferences that were read from a file" in html
    assert "that a program gave" not in html


def test_page_is_small(root: Path) -> None:
    assert (root / "report" / "report.html").stat().st_size < 2_000_000


def test_missing_and_damaged_inputs_are_named(tmp_path: Path) -> None:
    report_inputs.write(tmp_path)
    evaluation = (tmp_path / "metrics" / "evaluate.json").read_bytes()
    (tmp_path / "metrics" / "evaluate.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics/evaluate\.json is damaged"):
        report.run(make_context(tmp_path))
    (tmp_path / "metrics" / "evaluate.json").write_bytes(evaluation)
    (tmp_path / "metrics" / "curves" / "dpo.csv").write_text("step,loss\n1,abc\n")
    with pytest.raises(UserError, match=r"metrics/curves/dpo\.csv is damaged") as raised:
        report.run(make_context(tmp_path))
    assert raised.value.exit_code == 1
    (tmp_path / "metrics" / "curves" / "dpo.csv").unlink()
    with pytest.raises(UserError, match=r"metrics/curves/dpo\.csv is missing"):
        report.run(make_context(tmp_path))
    assert not (tmp_path / "report").exists()


def test_figures_that_were_not_measured_are_dashes(tmp_path: Path) -> None:
    report_inputs.write(tmp_path)
    path = tmp_path / "metrics" / "evaluate.json"
    evaluation = read_json(path)
    for figures in evaluation.values():
        figures |= {"exact_match": None, "exact_match_low": None, "exact_match_high": None, "chrf": None, "n_maths": 0}
        figures["by_task"] = {"docs": figures["by_task"]["docs"]}
    write_json(path, evaluation)
    report.run(make_context(tmp_path))
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "None" not in html
    assert "Exact match by task" not in html


def test_words_claim_no_more_than_the_interval() -> None:
    def word(low: float, high: float) -> str:
        return win_rate_word("ppo", {"win_rate_vs_sft": (low + high) / 2, "win_rate_low": low, "win_rate_high": high})

    assert word(0.5, 0.6) == "no evidence"
    assert word(0.41, 0.5) == "no evidence"
    assert word(0.51, 0.6) == "better"
    assert word(0.3, 0.49) == "worse"
    assert win_rate_word("sft", {}) == "reference"
    baselines = {"zlib": 1.97, "xz": 1.66, "token_unigram": 2.98}
    assert beside_baselines(1.93, baselines) == "below zlib (1.97), not below xz (1.66)"
    assert beside_baselines(1.2, baselines) == "below xz (1.66)"
    assert beside_baselines(3.2, baselines) == "not below token unigram (2.98)"


def test_numbers_and_text() -> None:
    assert number(-0.004) == "0.00"
    assert number(-1.5) == "−1.50"
    assert number(None) == "–"
    assert exact(0.1) == "0.1"
    assert flatten({"b": [{"c": 1}], "a": {}}) == [("a", "–"), ("b[0].c", "1")]
    assert visible("a\x00\x1b\x7f\x85\u202e\ud800\n") == "a\u2400\u241b\u2421⟨U+0085⟩⟨U+202E⟩\ufffd\n"
    assert fenced("a ``` b").startswith("````text\n")
    assert cell("a|b\n*c*") == "a\\|b \\*c\\*"


def test_smoothing_has_no_bias_to_the_start() -> None:
    assert [y for _, y in smoothed([(1, 4.0), (2, 4.0)])] == pytest.approx([4.0, 4.0])
    assert smoothed([(1, 1.0), (2, 3.0)], weight=0.5)[1][1] == pytest.approx((0.5 * 1 * 0.5 + 0.5 * 3) / 0.75)


def test_curves_leave_out_empty_and_non_finite_cells(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("step,loss,validation_loss\n0,,2.5\n1,nan,\n2,1.5,\n")
    assert read_curve(path) == {"loss": [(2.0, 1.5)], "validation_loss": [(0.0, 2.5)]}


def test_graph_is_that_of_the_pipeline() -> None:
    from tasks.reports.graph import NODES
    from tasks.runtime.stages import producers, read_stages

    stages = read_stages(REPOSITORY)
    names = [node.name for node in NODES]
    assert set(stages) <= set(names)
    for node in NODES:
        if node.name in stages:
            assert set(node.after) & set(stages) <= set(producers(stages, node.name)), json.dumps(node.after)
