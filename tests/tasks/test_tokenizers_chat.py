"""The chat format, and what `transformers` makes of a tokenizer directory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tasks.errors import UserError
from tasks.tokenizers import bytelevel, chat
from tests.helpers import REPOSITORY

TEXTS = [
    "What is 37 + 48? The answer is 85.",
    "Compute the mean of an array along an axis.\n\nParameters\n----------\na : array_like",
    "naïve café 東京 x = 12345",
] * 3
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 7 + 8?\nShow  it. "},
    {"role": "assistant", "content": "15"},
    {"role": "user", "content": "And 東京?"},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    bytelevel.save(bytelevel.train(TEXTS, vocab_size=300), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return bytelevel.load(directory)


def test_special_tokens_come_first_and_all_bytes_are_known(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in chat.SPECIAL_TOKENS] == list(range(6))
    assert tokenizer.get_vocab_size() == 300
    every_byte = bytes(range(256)).decode("latin-1")
    assert tokenizer.decode(chat.encode_text(tokenizer, every_byte), skip_special_tokens=False) == every_byte


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    ids = chat.encode_text(tokenizer, text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(token >= len(chat.SPECIAL_TOKENS) for token in ids)


@pytest.mark.parametrize("token", chat.SPECIAL_TOKENS)
def test_text_that_spells_a_special_token_stays_text(tokenizer: Tokenizer, token: str) -> None:
    ids = chat.encode_prompt(tokenizer, f"ignore {token} this")
    assert ids[0] == chat.USER
    assert ids[-2:] == [chat.END, chat.ASSISTANT]
    assert min(ids[1:-2]) >= len(chat.SPECIAL_TOKENS)
    assert tokenizer.decode(ids[1:-2], skip_special_tokens=False) == f"ignore {token} this"


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("x = 12345").tokens
    assert tokens[-5:] == list("12345")


def test_example_is_prompt_answer_and_end(tokenizer: Tokenizer) -> None:
    ids, prompt_length = chat.encode_example(tokenizer, "What is 7 + 8?", "15")
    assert ids[:prompt_length] == chat.encode_prompt(tokenizer, "What is 7 + 8?")
    assert ids[prompt_length:] == [*chat.encode_text(tokenizer, "15"), chat.END]


def test_a_prompt_of_several_turns_is_json(tokenizer: Tokenizer) -> None:
    prompt = json.dumps(CHAT, ensure_ascii=False)
    expected = chat.encode_messages(tokenizer, CHAT, for_answer=True)
    assert chat.encode_prompt(tokenizer, prompt) == expected
    assert chat.to_messages('[{"role": "wizard"}]') == [{"role": "user", "content": '[{"role": "wizard"}]'}]


def test_unknown_roles_are_refused() -> None:
    with pytest.raises(ValueError, match="wizard"):
        chat.render([{"role": "wizard", "content": "x"}], for_answer=False)


@pytest.mark.parametrize("model_type", [None, "llama"])
def test_transformers_gives_the_same_ids_and_chat(
    tokenizer: Tokenizer, directory: Path, tmp_path: Path, model_type
) -> None:
    from transformers import AutoTokenizer

    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if model_type:
        config = {"model_type": model_type, "architectures": ["LlamaForCausalLM"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "  spaces  and\ttabs\n\n12 345 <x> it's ", "\u00e9e\u0301 \U0001f600"]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == chat.encode_text(tokenizer, text)
        assert theirs(text)["input_ids"] == chat.encode_text(tokenizer, text)
        assert theirs.decode(chat.encode_text(tokenizer, text)) == text
    for for_answer in (False, True):
        rendered = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=for_answer)
        assert rendered == chat.render(CHAT, for_answer=for_answer)
        ids = theirs.apply_chat_template(CHAT, add_generation_prompt=for_answer, return_dict=True)["input_ids"]
        assert ids == chat.encode_messages(tokenizer, CHAT, for_answer=for_answer)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (chat.END, chat.PAD, chat.END_OF_TEXT)


def test_training_gives_the_same_bytes_in_another_process(directory: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tasks.tokenizers import bytelevel; "
        f"bytelevel.save(bytelevel.train({TEXTS!r}, vocab_size=300), Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], cwd=REPOSITORY, check=True)
    for file in sorted(directory.iterdir()):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_too_little_text_for_the_vocabulary_is_a_clear_mistake() -> None:
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=4096"):
        bytelevel.train(["short"], vocab_size=4096)


def test_damaged_and_foreign_tokenizers_are_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        bytelevel.load(tmp_path)
    text = (directory / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="damaged"):
        bytelevel.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text.replace("<|user|>", "<|human|>"))
    with pytest.raises(UserError, match="ids 0 to 5"):
        bytelevel.load(tmp_path)
