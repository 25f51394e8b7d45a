"""The directory of a tokenizer, of whatever kind: written, kept from elsewhere, and loaded."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from tasks.errors import UserError
from tasks.files import new_directory, write_bytes, write_json, write_text
from tasks.tokenizers.chat import END, END_OF_TEXT, PAD, SPECIAL_TOKENS, TEMPLATE

FILES = ("tokenizer.json", "special_tokens_map.json", "tokenizer_config.json")


def of_size(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The tokenizer, if it has `vocab_size` tokens.

    Raises UserError when the texts were too few for so many merges: a smaller vocabulary than promised would
    change the shape of the model in silence.
    """
    if tokenizer.get_vocab_size() != vocab_size:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size}: the training text yields only {tokenizer.get_vocab_size()} tokens; "
            "lower tokenizer.vocab_size in params.yaml, or add text under data",
            exit_code=1,
        )
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and the files by which `transformers.AutoTokenizer` loads it, chat template included."""
    with new_directory(directory) as folder:
        write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
        special = {
            "bos_token": SPECIAL_TOKENS[END_OF_TEXT],
            "eos_token": SPECIAL_TOKENS[END],
            "pad_token": SPECIAL_TOKENS[PAD],
        }
        others = [token for token in SPECIAL_TOKENS if token not in special.values()]
        write_json(folder / "special_tokens_map.json", special | {"additional_special_tokens": others})
        write_json(
            folder / "tokenizer_config.json",
            special
            | {
                "additional_special_tokens": others,
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": False,
                "chat_template": TEMPLATE,
            },
        )


def keep(kept: Path, directory: Path, *, vocab_size: int) -> Tokenizer:
    """Copy the files of a tokenizer that was kept, byte for byte, and load it.

    Raises UserError if a file is missing, or the vocabulary has another size than the parameters say.
    """
    tokenizer = load(kept)
    if tokenizer.get_vocab_size() != vocab_size:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size}, but the tokenizer kept in {kept} has {tokenizer.get_vocab_size()} "
            f"tokens; set tokenizer.vocab_size to that, or remove {kept / FILES[0]} to train one"
        )
    missing = [name for name in FILES if not (kept / name).is_file()]
    if missing:
        raise UserError(f"{kept} holds a tokenizer without {', '.join(missing)}; restore it: git checkout {kept}")
    with new_directory(directory) as folder:
        for name in FILES:
            write_bytes(folder / name, (kept / name).read_bytes())
    return tokenizer


def load(directory: Path) -> Tokenizer:
    """The tokenizer of a directory; raises UserError if its special tokens are not those of the chat format."""
    path = directory / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it with: axon run tokenizer") from None
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}; make it again with: axon run tokenizer") from None
    tokenizer = Tokenizer.from_str(text)
    found = tuple(tokenizer.id_to_token(i) for i in range(len(SPECIAL_TOKENS)))
    if found != SPECIAL_TOKENS:
        raise UserError(f"{path} must have the tokens {', '.join(SPECIAL_TOKENS)} as ids 0 to 5, but has {found}")
    tokenizer.encode_special_tokens = True  # text that spells a special token stays text
    return tokenizer
