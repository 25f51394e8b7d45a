"""Docstrings of pinned, installed packages as pretraining text, and questions about their public symbols."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from tasks.data.cleaning import letter_fraction
from tasks.data.docstrings import Docstring
from tasks.data.packages import Package, locate, path_of
from tasks.data.records import Demonstration, Reject, TextRecord
from tasks.data.splits import unit_hash
from tasks.steps.context import FanOut

SOURCE = "python_docs"
TASK = "docs"
N_CHUNKS = 14
MIN_ANSWER_CHARS, MAX_ANSWER_CHARS = 20, 200  # 200 characters are about 60 tokens
MIN_ANSWER_WORDS = 4

QUESTIONS = (
    "What does `{symbol}` do?",
    "What is `{symbol}`?",
    "Explain `{symbol}`.",
    "Describe `{symbol}` in a sentence.",
    "What is `{symbol}` for?",
    "Tell me about `{symbol}`.",
)

_ROLE = re.compile(r":[a-z:+-]+:`~?\.?([^`<]*?)(?:\s*<[^`>]*>)?`")
_LITERAL = re.compile(r"``([^`]+)``")
_UNFIT = re.compile(r">>>|::|\.\. |[{}|\\]|https?:|\[\d+\]_|__|^(See|Alias|Deprecated|Same as|This is an alias)\b")


@dataclass(frozen=True, kw_only=True)
class Collected:
    """`public` names the (file, symbol) pairs that questions may be about."""

    packages: list[Package]
    texts: list[TextRecord]
    public: frozenset[tuple[str, str]]
    unreadable: list[Reject]


def _chunks(packages: Sequence[Package]) -> list[dict[str, list[list[str]]]]:
    """Files in `N_CHUNKS` parts of about equal bytes, so that no process waits long for another."""
    files = [(path_of(p.name, file).stat().st_size, p.name, file) for p in packages for file in p.files]
    parts: list[list[list[str]]] = [[] for _ in range(N_CHUNKS)]
    sizes = [0] * N_CHUNKS
    for size, name, file in sorted(files, key=lambda f: (-f[0], f[1], f[2])):
        smallest = sizes.index(min(sizes))
        parts[smallest].append([name, file])
        sizes[smallest] += size
    return [{"files": part} for part in parts if part]


def collect(names: Sequence[str], fan_out: FanOut) -> Collected:
    """All docstrings of the packages in the order of package, file, and place in the file."""
    packages = [locate(name) for name in names]
    results = fan_out("docstrings", "tasks.data.docstrings:extract_files", _chunks(packages))
    by_name = {package.name: package for package in packages}
    order = {package.name: number for number, package in enumerate(packages)}
    found = [Docstring(**d) for result in results for d in result["docstrings"]]
    found.sort(key=lambda d: (order[d.package], d.file))  # stable: within a file the order of the source
    texts = [
        TextRecord(
            source=SOURCE,
            license=by_name[d.package].license,
            group=f"{SOURCE}/{d.file}",
            text=d.text,
            package=d.package,
            version=by_name[d.package].version,
            file=d.file,
            symbol=d.symbol,
        )
        for d in found
    ]
    unreadable = [
        Reject(source=SOURCE, reason="unreadable_file", detail=why, text=f"{package}: {file}")
        for result in results
        for package, file, why in result["unreadable"]
    ]
    public = frozenset((d.file, d.symbol) for d in found if d.public)
    return Collected(packages=packages, texts=texts, public=public, unreadable=sorted(unreadable, key=lambda r: r.text))


def with_heading(record: TextRecord) -> TextRecord:
    """The docstring under its symbol, as a reader of documentation meets it, so that names and texts go together."""
    return replace(record, text=f"{record.symbol}\n{record.text}")


def first_paragraph(text: str) -> str:
    """White space folded, reStructuredText roles and double backticks reduced to single backticks."""
    paragraph = " ".join(text.split("\n\n", 1)[0].split())
    return _LITERAL.sub(r"`\1`", _ROLE.sub(r"`\1`", paragraph))


def why_unfit(answer: str) -> str | None:
    """Why a first paragraph is not an answer: it must read like sentences of bounded length."""
    if not MIN_ANSWER_CHARS <= len(answer) <= MAX_ANSWER_CHARS:
        return "length"
    if len(answer.split()) < MIN_ANSWER_WORDS:
        return "few_words"
    if not (answer[0].isupper() or answer[0] == "`") or not answer.endswith("."):
        return "not_a_sentence"
    if _UNFIT.search(answer) or letter_fraction(answer) < 0.75:
        return "markup"
    return None


def questions(records: Sequence[TextRecord], public: Collection[tuple[str, str]]) -> tuple[list[Demonstration], int]:
    """One question for each public symbol whose first paragraph is fit, in an order drawn by hash; and how many
    public symbols were left out as unfit."""
    found: dict[str, Demonstration] = {}
    n_unfit = 0
    for record in records:
        if (record.file, record.symbol) not in public or record.symbol in found:
            continue
        answer = first_paragraph(record.text)
        if why_unfit(answer) is not None:
            n_unfit += 1
            continue
        phrasing = QUESTIONS[int(unit_hash("phrasing", record.symbol) * len(QUESTIONS))]
        found[record.symbol] = Demonstration(
            source=SOURCE,
            license=record.license,
            group=record.group,
            task=TASK,
            prompt=phrasing.format(symbol=record.symbol),
            answer=answer,
            target=answer,
            package=record.package,
            version=record.version,
            file=record.file,
            symbol=record.symbol,
        )
    return sorted(found.values(), key=lambda d: (unit_hash("question", d.symbol), d.symbol)), n_unfit
