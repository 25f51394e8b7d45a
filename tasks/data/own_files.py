"""JSON lines of one's own: texts, instructions, prompts with responses, or chats; the form is told line by line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data.cleaning import normalise
from tasks.data.records import Demonstration, Record, Reject, TextRecord
from tasks.errors import UserError

# Labels that data sets of instructions leave in their fields; only where a line starts, since "the Output: line"
# within a sentence is the author's own.
_LABEL = re.compile(r"^(?:#+ *)?(?:Instruction|Input|Output|Response|Context):[ \t]*", re.MULTILINE)
ROLES = ("system", "user", "assistant")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FORMS = (
    '{"text": …}, {"instruction": …, "input": … (optional), "output": …}, {"prompt": …, "response": …} '
    'or {"messages": [{"role": …, "content": …}, …]}'
)


class DamagedLine(ValueError):
    """A line that cannot be read as any of the known forms."""


@dataclass(frozen=True, kw_only=True)
class OwnRecords:
    """What one file holds; `n_read` counts its lines that are not blank."""

    source: str
    n_read: int
    texts: list[TextRecord]
    demonstrations: list[Demonstration]
    damaged: list[Reject]


def clean_labels(text: str) -> str:
    return _LABEL.sub("", text)


def _field(row: Mapping[str, Any], *names: str, required: bool = True) -> str:
    """The first of the named fields that is there, as normalised text."""
    for name in names:
        if name in row and row[name] is not None:
            value = row[name]
            if not isinstance(value, str):
                raise DamagedLine(f"{name!r} must be text, but is {type(value).__name__}")
            cleaned = normalise(clean_labels(value))
            if required and not cleaned:
                raise DamagedLine(f"{name!r} is empty")
            return cleaned
    if required:
        raise DamagedLine(f"{names[0]!r} is missing")
    return ""


def _chat(messages: Any) -> tuple[str, str]:
    """(prompt, answer): all turns but the last answer; as JSON when they are more than one user turn."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise DamagedLine("'messages' must be a list of objects with 'role' and 'content'")
    turns = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DamagedLine(f"role {role!r} is none of {', '.join(ROLES)}")
        if not isinstance(content, str) or not (content := normalise(content)):
            raise DamagedLine("'content' must be text that is not empty")
        turns.append({"role": role, "content": content})
    if len(turns) < 2 or turns[-1]["role"] != "assistant" or turns[-2]["role"] != "user":
        raise DamagedLine("'messages' must end with a user's turn and the assistant's answer")
    *before, last = turns
    prompt = before[0]["content"] if len(before) == 1 else json.dumps(before, ensure_ascii=False)
    return prompt, last["content"]


def parse_line(line: bytes, source: str, license: str) -> Record:
    """The record of one line; raises `DamagedLine` with the reason."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DamagedLine(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DamagedLine(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DamagedLine(f"a line must be an object, but is {type(row).__name__}")
    if "messages" in row:
        prompt, answer = _chat(row["messages"])
    elif "instruction" in row:
        prompt, answer = _field(row, "instruction"), _field(row, "output", "response")
        context = _field(row, "input", "context", required=False)
        prompt = f"{prompt}\n\n{context}" if context else prompt
    elif "prompt" in row:
        prompt, answer = _field(row, "prompt"), _field(row, "response", "completion")
    elif "text" in row:
        if not isinstance(row["text"], str) or not (text := normalise(row["text"])):
            raise DamagedLine("'text' must be text that is not empty")
        return TextRecord(source=source, license=license, group=f"{source}/{text}", text=text)
    else:
        raise DamagedLine(f"no known form in the keys {sorted(row)}; a line is {FORMS}")
    return Demonstration(
        source=source,
        license=license,
        group=f"{source}/{prompt}",
        task="own",
        prompt=prompt,
        answer=answer,
        target=answer,
    )


def read_lines(path: str, license: str, root: Path) -> Iterator[tuple[int, Record | Reject]]:
    """Line number, from 1, and record of every line that is not blank; a `Reject` with the reason for a damaged one.

    Raises `UserError` when there is no such file.
    """
    source = f"files:{path}"
    try:
        content = (root / path).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"data.files: {path} is not a file below {root}; correct its path in params.yaml") from None
    for number, line in enumerate(content.removeprefix(BYTE_ORDER_MARK).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, parse_line(line, source, license)
        except DamagedLine as error:
            text = normalise(line.decode("utf-8", "replace"))
            yield number, Reject(source=source, reason="damaged", detail=f"line {number}: {error}", text=text)


def read_file(path: str, license: str, root: Path) -> OwnRecords:
    """All lines of a file. Raises `UserError` when it is missing or empty."""
    texts: list[TextRecord] = []
    demonstrations: list[Demonstration] = []
    damaged: list[Reject] = []
    for _, record in read_lines(path, license, root):
        if isinstance(record, TextRecord):
            texts.append(record)
        elif isinstance(record, Demonstration):
            demonstrations.append(record)
        else:
            damaged.append(record)
    n_read = len(texts) + len(demonstrations) + len(damaged)
    if not n_read:
        raise UserError(f"data.files: {path} is empty; write one JSON object per line, as {FORMS}")
    return OwnRecords(
        source=f"files:{path}", n_read=n_read, texts=texts, demonstrations=demonstrations, damaged=damaged
    )


def check_damage(own: OwnRecords, max_damaged_fraction: float) -> None:
    """Raise `UserError` (exit code 1) if more lines than allowed are damaged."""
    if len(own.damaged) > max_damaged_fraction * own.n_read:
        raise UserError(
            f"{own.source.removeprefix('files:')}: {len(own.damaged)} of {own.n_read} lines are damaged, more than "
            f"data.max_damaged_fraction={max_damaged_fraction}; the first: {own.damaged[0].detail}. "
            "All of them, with reasons, are in data/rejects.parquet. "
            "Mend the file, or raise the limit in params.yaml.",
            exit_code=1,
        )
