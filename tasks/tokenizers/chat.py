"""The chat format: special tokens, the template, and how a conversation becomes token ids.

    <|user|>{question}<|end|><|assistant|>{answer}<|end|>

What users write never becomes a special token: a text that spells one is encoded byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
END_OF_TEXT, PAD, SYSTEM, USER, ASSISTANT, END = range(len(SPECIAL_TOKENS))
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}

# Jinja for `transformers`' apply_chat_template; `render` below is the same in Python, and a test compares them.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('a role is system, user or assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

Message = Mapping[str, str]


def check_messages(messages: Sequence[Message]) -> None:
    """Raise ValueError unless every message has a known role and text as content."""
    for number, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise ValueError(f"messages[{number}].role={message.get('role')!r} must be one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"messages[{number}].content must be text")


def render(messages: Sequence[Message], *, for_answer: bool) -> str:
    """The text of a conversation; `for_answer` adds the tag after which the assistant speaks."""
    check_messages(messages)
    turns = (f"<|{m['role']}|>{m['content']}<|end|>" for m in messages)
    return "".join(turns) + ("<|assistant|>" if for_answer else "")


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of plain text in which no special token is recognised."""
    tokenizer.encode_special_tokens = True
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def encode_messages(tokenizer: Tokenizer, messages: Sequence[Message], *, for_answer: bool) -> list[int]:
    """The ids of `render(messages)`, with special tokens from the format alone."""
    check_messages(messages)
    ids: list[int] = []
    for message in messages:
        ids += [ROLES[message["role"]], *encode_text(tokenizer, message["content"]), END]
    return [*ids, ASSISTANT] if for_answer else ids


def to_messages(prompt: str) -> list[dict[str, Any]]:
    """The turns of a prompt column: a JSON list of messages for chats of several turns, else one user's turn."""
    if prompt.startswith('[{"role": '):
        try:
            messages = json.loads(prompt)
            check_messages(messages)
        except (ValueError, AttributeError):
            pass  # a user's text that only looks like a chat
        else:
            return list(messages)
    return [{"role": "user", "content": prompt}]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt, up to and with the tag after which the answer begins."""
    return encode_messages(tokenizer, to_messages(prompt), for_answer=True)


def encode_example(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], int]:
    """(ids of prompt and answer and the end of the answer, how many of them are the prompt)."""
    ids = encode_prompt(tokenizer, prompt)
    return [*ids, *encode_text(tokenizer, answer), END], len(ids)
