"""The page is one file that fetches nothing, holds everything that can be searched for, and takes no sign from data."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from tasks.lineage import arrangement, layout, page, questions
from tasks.lineage.graph import Graph
from tasks.lineage.targets import Resolver
from tests.tasks.lineage.chain_by_hand import ENVIRONMENT, Chain, md5, sha256, small

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Read(HTMLParser):
    """What a browser would see: ids, links, text by card, scripts, boxes and lines of the drawing."""

    EMPTY = frozenset({"meta", "input", "wbr", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.cards: dict[str, str] = {}
        self.scripts: list[str] = []
        self.policy = ""
        self.n_lines = 0
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        known = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in known.items()]
        self.ids += [known["id"]] if "id" in known else []
        if known.get("http-equiv") == "Content-Security-Policy":
            self.policy = known["content"]
        if tag == "path" and "marker-end" in known:
            self.n_lines += 1
        if tag not in self.EMPTY and not self.get_starttag_text().endswith("/>"):
            self._open.append((tag, known))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        opened, _ = self._open.pop()
        assert opened == tag

    def handle_data(self, data):
        if self._open and self._open[-1][0] == "script":
            self.scripts.append(data)
        for tag, known in self._open:
            if tag == "article":
                self.cards[known["id"]] = self.cards.get(known["id"], "") + data


def rendered(chain: Chain, root, target: str, counts=None) -> tuple[str, questions.Slice]:
    graph = Graph(chain.statements)
    checkout = chain.write(root)
    answer = questions.ask(graph, Resolver(graph, checkout, checkout.root).resolve(target))
    return page.render(answer, counts or {}), answer


@pytest.mark.parametrize("target", ["models/sft", "sft", "run", "axon-chat@1", "sources", "tasks/steps/sft.py"])
def test_it_is_one_file_that_fetches_nothing(tmp_path, target):
    text, _ = rendered(small(), tmp_path, target)
    seen = Read(text)
    links = [value for _, name, value in seen.attributes if name in ("href", "src", "action", "data")]
    assert links
    assert {link[0] for link in links} == {"#"}
    assert {link[1:] for link in links} <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)|https?://(?!www\.w3\.org)", text)
    (script,) = seen.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert seen.policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_everything_of_a_statement_can_be_searched_for(tmp_path):
    chain = small()
    text, _ = rendered(chain, tmp_path, "models/sft", {"5f" * 16: "trained on 12,345"})
    cards = Read(text).cards
    (sft,) = [card for card in cards.values() if "5f" * 16 in card and "models/sft" in card]
    for said in (
        sha256("weights"),
        md5("weights"),
        chain.statements[1].digest,
        "sft.learning_rate",
        "0.1",
        "tasks/steps/sft.py",
        sha256("def step(): ..."),
        "c" * 40,
        "python -m flows.sft",
        "2026-09-21 14:15 UTC",
        "ada on engine",
        "trained on 12,345",
        "data/text.parquet",
    ):
        assert said in sft, said
    (environment,) = [card for name, card in cards.items() if name.startswith("environment-")]
    for said in ("torch", "2.13.0", "A processor", "3.11.7", "avx2 fma", "data, sft, evaluate"):
        assert said in environment, said


def test_each_environment_stands_once(tmp_path):
    chain = Chain()
    one = chain.stage("one", "a1", reads={}, makes={"a": "1"})
    two = chain.stage("two", "b2", reads={"a": "1"}, makes={"b": "2"}, behind=[one])
    other = ENVIRONMENT | {"python": "3.12.0"}
    chain.stage("three", "c3", reads={"b": "2"}, makes={"c": "3"}, behind=[two], environment=other)
    cards = Read(rendered(chain, tmp_path, "three")[0]).cards
    assert [name for name in cards if name.startswith("environment-")] == ["environment-1", "environment-2"]
    assert "of one, two" in cards["environment-1"]
    assert "3.12.0" in cards["environment-2"]


def test_an_execution_names_also_what_is_on_no_other_card(tmp_path):
    text, _ = rendered(small(), tmp_path, "models/sft")
    (evaluate,) = [card for card in Read(text).cards.values() if "e7" * 16 in card]
    assert re.search(r"Reads\s+models/sft \w+\s+Reads also\s*data/text.parquet\s", evaluate)


def test_foreign_text_is_text(tmp_path):
    chain = Chain()
    evil = '</script><script>alert(1)</script>"><img src=x onerror=alert(2)>'
    chain.stage(
        "sft",
        "a1",
        reads={},
        makes={f"models/{evil.replace('/', '')}": "w"},
        parameters={"sft": {"rate": evil, "turned\u202earound": 1}},
        environment=ENVIRONMENT | {"processor": evil},
    )
    text, _ = rendered(chain, tmp_path, "sft")
    seen = Read(text)
    assert len(seen.scripts) == 1
    assert not any(tag == "img" or name.startswith("on") for tag, name, _ in seen.attributes)
    assert "\u202e" not in text
    assert any("alert(1)" in card for card in seen.cards.values())


def test_the_drawing_has_every_box_once_and_every_line(tmp_path):
    text, answer = rendered(small(), tmp_path, "data/text.parquet")
    seen = Read(text)
    drawn = [value for tag, name, value in seen.attributes if (tag, name) == ("g", "data-card")]
    assert sorted(drawn) == sorted(card for card in seen.cards if card.startswith("step-"))
    assert len(drawn) == len(answer.nodes)
    assert seen.n_lines == len(arrangement.reduced(answer))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize(
    ("words", "names", "n_open"),
    [("", ["models/sft", "sft", "data", "sources", "evaluate", "axon-chat@1"], 0), ("N_STEPS 3", ["sft"], 1)],
)
def test_the_search_leaves_what_has_all_words_and_opens_it(tmp_path, words, names, n_open):
    text, _ = rendered(small(), tmp_path, "models/sft")
    typed = f"<script>search.value = {words!r}; search.dispatchEvent(new Event('input'));</script></body>"
    file = tmp_path / "page.html"
    file.write_text(re.sub("<meta http-equiv[^>]*>", "", text).replace("</body>", typed))  # which forbids the typing
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", file.as_uri()]
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=home).stdout
    cards = [part.partition("</article>")[0] for part in shown.split("<article ")[1:]]
    visible = [card for card in cards if not re.match(r'[^>]*hidden=""', card) and "step-" in card.partition(">")[0]]
    assert [
        re.search(r"<h2>([^<]*(?:<wbr>[^<]*)*)", card)[1].replace("<wbr>", "").split()[0] for card in visible
    ] == names
    n_steps = len([card for card in cards if "step-" in card.partition(">")[0]])
    count = f"{len(names)} of {n_steps} steps" if words else f"{n_steps} steps"
    assert f">{count}</output>" in shown
    assert shown.count('<details open="">') == n_open
    assert len(re.findall(r'class="node [^"]*faded"', shown)) == n_steps - len(names)


def test_boxes_do_not_lie_on_one_another(tmp_path):
    chain = Chain()
    first = chain.stage("data", "a1", reads={"sources": "raw"}, makes={"data": "d"})
    middle = [
        chain.stage(f"part{n}", f"b{n}", reads={"data": "d"}, makes={f"models/{n}": f"m{n}"}, behind=[first])
        for n in range(5)
    ]
    late = chain.stage("late", "c1", reads={"models/0": "m0"}, makes={"late": "l"}, behind=middle[:1])
    everything = {f"models/{n}": f"m{n}" for n in range(5)} | {"late": "l"}
    chain.stage("report", "d1", reads=everything, makes={"report": "r"}, behind=[*middle, late])
    _, answer = rendered(chain, tmp_path, "report")
    rows, lines = layout._rows(answer)
    layout._arrange(rows, lines)
    assert [len(row) for row in rows] == [1, 1, 5, 5, 1]  # four bends pass `late`
    for row in rows:
        ends = [(place.x - place.width / 2, place.x + place.width / 2) for place in row]
        assert all(right < left for (_, right), (left, _) in itertools.pairwise(ends))
        assert min(left for left, _ in ends) >= 0
    places = {place.key: place for row in rows for place in row}
    for line in lines:
        steps = [places[key].row for key in line]
        assert steps == list(range(steps[0], steps[-1] + 1))
