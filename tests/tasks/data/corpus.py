"""A small corpus in `files` sources with one planted record: itself, a copy, a near-duplicate, and other guises."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

PLANTED = (
    "The quarrystone ledger of Oda Vexelbrandt lists forty seven wicker lanterns, nine copper kettles and one brass "
    "telescope, which she lent to the harbour master of Thrimblewick on the second day of the frost fair."
)
# A near-duplicate to the data stage itself, and one that only the band hashes of the removal list know.
NEAR = PLANTED.replace("The quarrystone ledger", "A quarrystone ledger") + " So it was."
LIKE = PLANTED.replace("nine copper kettles", "nine copper buckets")
QUESTION = "What does the ledger of that winter list?"
# Words that only the planted texts have: none may be left anywhere.
TELLTALES = ("Vexelbrandt", "Thrimblewick", "quarrystone")
OVERRIDES: dict[str, Any] = {
    "data.files": [{"path": "sources/own.jsonl", "license": "MIT"}, {"path": "sources/more.jsonl", "license": "MIT"}],
    "data.python_docs.packages": [],
    "data.maths.max_questions": 60,
    "data.max_damaged_fraction": 0.2,
}
_NOUNS = ("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heron", "islet", "jetty", "kelp", "lagoon")


def lines(seed: int, n: int) -> list[dict[str, str]]:
    """`n` texts and `n` questions, none like another."""
    rng = random.Random(seed)

    def words(k: int) -> str:
        return " ".join(f"{rng.choice(_NOUNS)}{rng.randrange(100)}" for _ in range(k))

    texts = [{"text": f"A tale of {words(24)}."} for _ in range(n)]
    return texts + [{"prompt": f"Who met {words(3)}?", "response": f"The {words(9)} did."} for _ in range(n)]


def plain(root: Path) -> None:
    """The corpus without anything planted."""
    write(root, "own", lines(1, 40))
    write(root, "more", lines(2, 40))


def planted(root: Path) -> None:
    """In `own` the record; in `more` a copy, a near-duplicate, an answer that is the text, and a line cut short."""
    write(root, "own", [*lines(1, 40), {"text": PLANTED}])
    answer = {"prompt": QUESTION, "response": PLANTED}
    write(root, "more", [{"text": PLANTED}, {"text": NEAR}, answer, *lines(2, 40)], tail=f'{{"text": "{PLANTED}')


def write(root: Path, name: str, rows: list[dict[str, str]], tail: str = "") -> None:
    path = root / "sources" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*map(json.dumps, rows), tail]) + "\n")
