"""The tokenizer of a checkpoint that pretraining starts from, with the tokens of the chat format in front.

Its tokens, merges and ways of cutting text stay. Ids 0 to 5 become the chat format's tokens and all others move up
behind them, so that nothing else in the pipeline needs to know where ids come from; the rows of the embedding move in
the same way (`axon_models/vocabulary.py`). A chat token that the checkpoint has under another id takes its row
along; <|endoftext|>, where there is none, starts as a copy of the checkpoint's own end of text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tasks.errors import UserError
from tasks.tokenizers.chat import END_OF_TEXT, SPECIAL_TOKENS
from tasks.tokenizers.shards import MAX_VOCAB_SIZE

NEW = -1  # no row of the checkpoint
FOLDER = "sources/models/"
# What of a repository of models is fetched: no pickles, and no weights for other frameworks.
_FETCHED = ("config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json")
_N_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """`rows[i]` is the row of the checkpoint's embedding that token i of `tokenizer` has, or `NEW`."""

    tokenizer: Tokenizer
    rows: tuple[int, ...]


def directory_of(root: Path, init_from: str) -> Path:
    """Where the model directory is that `pretrain.init_from` names: below sources/models, or OWNER/NAME@COMMIT of the
    Hugging Face hub, which is fetched, or with HF_HUB_OFFLINE=1 looked for in its cache.

    Raises UserError where there is none.
    """
    if init_from.startswith(FOLDER):
        if not (root / init_from).is_dir():
            raise UserError(f"pretrain.init_from={init_from}: there is no such folder; put the model directory there")
        return root / init_from
    name, _, commit = init_from.partition("@")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=list(_FETCHED)))
    except Exception as error:  # noqa: BLE001 the hub's, the network's and the disk's faults have no common class
        raise UserError(
            f"pretrain.init_from={init_from} could not be had from the Hugging Face hub: {error}\nIf it is not in the "
            "cache yet, fetch it once with HF_HUB_OFFLINE=0 in the environment, or put the model directory into "
            f"{FOLDER} and name that.",
            exit_code=1,
        ) from None


def adopt(directory: Path) -> Adopted:
    """The tokenizer of a model directory.

    Raises UserError: no tokenizer.json, not BPE, tokens beyond the embedding, more of them than 16 bits can number.
    """
    file = directory / "tokenizer.json"
    tokenizer, tree = _read(file)
    config = _json(directory / "config.json")
    n_rows = _n_rows(directory, config)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    beyond = sorted((i, token) for token, i in ids.items() if i >= n_rows)
    if beyond:
        shown = ", ".join(f"{i} ({token!r})" for i, token in beyond[:_N_SHOWN])
        more = f" and {len(beyond) - _N_SHOWN} more" if len(beyond) > _N_SHOWN else ""
        raise UserError(
            f"{file}: the tokenizer is larger than the embedding, which has {n_rows} rows (vocab_size in config.json): "
            f"there are no rows for ids {shown}{more}; use the tokenizer that belongs to these weights"
        )
    if [ids.get(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS))):
        tokenizer.encode_special_tokens = True
        return Adopted(tokenizer=tokenizer, rows=_numbered(file, tuple(range(n_rows))))
    moved = {ids[token] for token in SPECIAL_TOKENS if token in ids}
    first = [ids.get(token, NEW) for token in SPECIAL_TOKENS]
    if first[END_OF_TEXT] == NEW:
        first[END_OF_TEXT] = _end_of_text(config, n_rows)
    others = [row for row in range(n_rows) if row not in moved]
    new_ids = {row: len(first) + place for place, row in enumerate(others)}
    renumbered = _renumbered(file, tree, {token: new_ids[i] for token, i in ids.items() if i not in moved})
    return Adopted(tokenizer=renumbered, rows=_numbered(file, (*first, *others)))


def _numbered(file: Path, rows: tuple[int, ...]) -> tuple[int, ...]:
    if len(rows) > MAX_VOCAB_SIZE:
        raise UserError(f"{file}: {len(rows)} tokens, but there can be {MAX_VOCAB_SIZE} at most: ids are 16 bits")
    return rows


def _read(file: Path) -> tuple[Tokenizer, dict[str, Any]]:
    tree = _json(file)
    kind = tree.get("model", {}).get("type") if isinstance(tree.get("model"), dict) else None
    if kind != "BPE":
        raise UserError(f"{file}: model.type={kind!r} must be BPE; other tokenizers are not supported as a start")
    try:
        return Tokenizer.from_str(json.dumps(tree)), tree
    except Exception as error:  # noqa: BLE001 tokenizers raises nothing narrower
        raise UserError(f"{file} is not a tokenizer: {error}") from None


def _json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = ", and a model to start from needs its tokenizer" if file.name == "tokenizer.json" else ""
        raise UserError(f"{file} is missing{hint}") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file} must hold an object, but holds {type(tree).__name__}")
    return tree


def _n_rows(directory: Path, config: Mapping[str, Any]) -> int:
    own = config.get("decoder")  # where Axon keeps the config of a model that `transformers` has no class for
    n_rows = (own if isinstance(own, dict) else config).get("vocab_size")
    if not isinstance(n_rows, int) or n_rows < 1:
        raise UserError(f"{directory / 'config.json'}: vocab_size={n_rows!r} must be a whole number of at least 1")
    return n_rows


def _end_of_text(config: Mapping[str, Any], n_rows: int) -> int:
    ends = config.get("eos_token_id")
    end = ends[0] if isinstance(ends, list) and ends else ends
    return end if isinstance(end, int) and 0 <= end < n_rows else NEW


def _renumbered(file: Path, tree: dict[str, Any], ids: Mapping[str, int]) -> Tokenizer:
    """The tokenizer of `tree` with the chat format's tokens first and all others under `ids`.

    Nothing puts tokens around a text any more: in Axon's documents and chats there are no others than the format's.
    """
    vocabulary = {token: i for i, token in enumerate(SPECIAL_TOKENS)} | dict(ids)
    chat = [
        {"id": i, "content": token, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, token in enumerate(SPECIAL_TOKENS)
    ]
    added = [token | {"id": ids[token["content"]]} for token in tree.get("added_tokens", ()) if token["content"] in ids]
    model = tree["model"] | {"vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1]))}
    changed = tree | {
        "model": model,
        "added_tokens": chat + sorted(added, key=lambda token: int(token["id"])),
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    tokenizer = Tokenizer.from_str(json.dumps(changed))
    if tokenizer.get_vocab(with_added_tokens=True) != vocabulary:
        raise UserError(f"{file}: its tokens cannot be numbered anew; only a BPE with one token for each id can be")
    tokenizer.encode_special_tokens = True  # text that spells a special token stays text
    return tokenizer
