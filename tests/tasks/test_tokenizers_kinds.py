"""What holds for every kind of tokenizer: identity on any text, no unknown token, special tokens, `transformers`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from tasks.errors import UserError
from tasks.parameter_mistakes import MIN_VOCAB_SIZES
from tasks.tokenizers import byte_fallback, bytelevel, chat, folder, kinds

TEXTS = [
    "Compute the mean of an array along an axis.\n\nParameters\n----------\na : array_like\n    The array. x = 12345",
    "naïve café 東京 <|user|> says <|end|> <0x41> <0xE2><0x96><0x81> ▁ it's \ufdd0\ufdd1 12 + 34 = 46",
    "the  quick   brown    fox\tjumps over\r\nthe lazy dog, and then the dog sleeps. ",
] * 40
VOCAB_SIZE = 360
HARD = [
    "",
    " ",
    "  a  ",
    "\n\n \n",
    "▁",
    "▁▁ ▁a",
    "\0",
    "\u0301",
    "e\u0301",
    "\ufdd0",
    "\ufdd2\ufdd1\ufdd0",
    "\ufdd0\ufdd1",
]
HARD += [
    "\ufdd0\ufdd2▁ \ufdd0",
    "<0x41>",
    "<0xE2><0x96><0x81>",
    "½Ⅷ٣",
    "\U0001f600\u200d\U0001f600",
    "\ufffd",
    "\uffff",
]
PIECES = [
    " ",
    "▁",
    "\n",
    "\0",
    "\u0301",
    "\ufdd0",
    "\ufdd1",
    "\ufdd2",
    "<",
    "<0x41>",
    "|>",
    "<|",
    "user",
    "the",
    "7",
    "é",
]
ANY_TEXT = st.lists(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from([*PIECES, *chat.SPECIAL_TOKENS]))
).map("".join)


@pytest.fixture(scope="module", params=list(kinds.TRAIN))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / request.param
    folder.save(kinds.TRAIN[request.param](TEXTS, vocab_size=VOCAB_SIZE), path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return bytelevel.load(directory)


def _check_identity(tokenizer: Tokenizer, text: str) -> None:
    ids = chat.encode_text(tokenizer, text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == text
    assert all(len(chat.SPECIAL_TOKENS) <= token < VOCAB_SIZE for token in ids)


@settings(max_examples=400, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_comes_back_unchanged_and_is_never_special(tokenizer: Tokenizer, text: str) -> None:
    _check_identity(tokenizer, text)


@pytest.mark.parametrize("text", [*HARD, *chat.SPECIAL_TOKENS, "".join(map(chr, range(0x3000)))])
def test_hard_texts_come_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    _check_identity(tokenizer, text)


def test_ids_and_size_are_as_promised(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in chat.SPECIAL_TOKENS] == list(range(6))
    assert tokenizer.get_vocab_size() == VOCAB_SIZE == max(tokenizer.get_vocab().values()) + 1
    merged = tokenizer.encode("the array").ids
    assert len(merged) < len("the array"), "nothing was merged"
    assert tokenizer.encode("x = 12345").tokens[-5:] == list("12345")


@pytest.mark.parametrize("model_type", [None, "llama"])
def test_transformers_gives_the_same_ids_texts_and_chats(
    tokenizer: Tokenizer, directory: Path, tmp_path: Path, model_type: str | None
) -> None:
    from transformers import AutoTokenizer

    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if model_type:
        config = {"model_type": model_type, "architectures": ["LlamaForCausalLM"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS[:1], *TEXTS[2:3], *HARD, "  spaces \n 12 345"]:
        ids = chat.encode_text(tokenizer, text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    messages = [{"role": "user", "content": " What ▁ is 7 + 8? "}, {"role": "assistant", "content": "15"}]
    ids = theirs.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert ids == chat.encode_messages(tokenizer, messages, for_answer=False)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (chat.END, chat.PAD, chat.END_OF_TEXT)


def test_a_kept_tokenizer_of_any_kind_is_copied_to_the_byte(directory: Path, tmp_path: Path) -> None:
    bytelevel.keep(directory, tmp_path / "kept", vocab_size=VOCAB_SIZE)
    for file in directory.iterdir():
        assert (tmp_path / "kept" / file.name).read_bytes() == file.read_bytes()


def test_training_is_the_same_again_and_from_an_iterator(directory: Path) -> None:
    again = kinds.TRAIN[directory.name](iter(TEXTS), vocab_size=VOCAB_SIZE)
    assert again.to_str(pretty=True) + "\n" == (directory / "tokenizer.json").read_text()


@pytest.mark.parametrize("kind", kinds.TRAIN)
def test_too_little_text_is_a_clear_mistake(kind: str) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=4096: the training text yields only"):
        kinds.TRAIN[kind](["short"], vocab_size=4096)


@pytest.mark.parametrize("kind", kinds.TRAIN)
def test_the_smallest_vocabulary_still_writes_everything(kind: str) -> None:
    smallest, _ = MIN_VOCAB_SIZES[kind]
    tokenizer = kinds.TRAIN[kind](["short text"], vocab_size=smallest)
    text = "a▁ \ufdd0東"
    assert tokenizer.decode(chat.encode_text(tokenizer, text)) == text


def test_a_byte_fallback_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(UserError, match="must be at least 268"):
        byte_fallback.train(["short"], vocab_size=267)


def test_characters_for_bytes_are_the_librarys() -> None:
    assert sorted(bytelevel.CHARACTERS) == sorted(pre_tokenizers.ByteLevel.alphabet())
    every = bytes(range(128)).decode() + "".join(chr(c) for c in range(0x80, 0x800))
    ((written, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(every)
    assert written == "".join(bytelevel.CHARACTERS[byte] for byte in every.encode())


@pytest.fixture(scope="module")
def llamas() -> Tokenizer:
    texts = ["the cat sat on the mat, the cat ate the rat\n" * 200 + "東"]
    return byte_fallback.train(texts, vocab_size=296)


class TestByteFallback:
    """What makes it Llama's kind."""

    def test_spaces_are_written_as_in_sentencepiece(self, llamas: Tokenizer) -> None:
        assert llamas.encode("the cat").tokens == ["the", "▁cat"]

    def test_rare_characters_are_their_bytes(self, llamas: Tokenizer) -> None:
        assert llamas.token_to_id("東") is None
        assert llamas.encode("東").ids == [6 + byte for byte in "東".encode()]
        assert llamas.encode("東").tokens == ["<0xE6>", "<0x9D>", "<0xB1>"]

    def test_spaces_and_escapes_stay_apart(self, llamas: Tokenizer) -> None:
        assert llamas.encode("▁ \ufdd0").tokens == ["\ufdd0\ufdd2", "▁", "\ufdd0\ufdd1"]

    def test_its_model_has_byte_fallback_and_no_unknown_token(self, llamas: Tokenizer) -> None:
        model = json.loads(llamas.to_str())["model"]
        assert (model["byte_fallback"], model["fuse_unk"], model["unk_token"]) == (True, True, None)
        assert [model["vocab"][f"<0x{byte:02X}>"] for byte in range(256)] == list(range(6, 262))

    def test_the_alphabet_covers_what_is_frequent(self) -> None:
        text = "a" * 6000 + "b" * 3996 + "c" * 4
        assert byte_fallback.alphabet([text], at_most=9) == ["a", "b"]
        assert byte_fallback.alphabet([text, "c" * 100], at_most=9) == ["a", "b", "c"]
        assert byte_fallback.alphabet([text], at_most=1) == ["a"]
        assert byte_fallback.alphabet(["a b▁\ufdd0"], at_most=9) == ["a", "b"]
        assert byte_fallback.alphabet([text, " " * 100_000], at_most=9) == ["a", "b"]
