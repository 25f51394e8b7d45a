"""`axon chat` and `axon generate` with a tiny model, without engines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from axon_models import Request, Vocabulary, answer, beam_search, checkpoint, generate
from axon_models.generation.beams import BeamSettings
from axon_models.layers.language_model import LanguageModel
from flows import cli, talk_commands, talking
from flows.talking import Settings
from tasks.errors import UserError
from tasks.runtime.checkout import Checkout
from tasks.tokenizers import bytelevel, chat
from tests.axon_models.memory.small import small_model
from tests.axon_models.small import small_decoder
from tests.tasks.tiny_root import byte_tokenizer


def write_model(root: Path, *, overflows: bool = False, memory: bool = False) -> LanguageModel:
    """models/sft: random weights, a byte-level tokenizer. overflows: finite weights, whose products are not."""
    bytelevel.save(byte_tokenizer(), root / "tokenizer")
    small = small_model if memory else small_decoder
    model = small(vocab_size=262, max_positions=64)
    if overflows:
        with torch.no_grad():
            model.norm.get_parameter("weight").mul_(1e38)
            model.embedding.weight.mul_(10)
    checkpoint.save(model, root / "models" / "sft", tokenizer_dir=root / "tokenizer")
    return model


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    write_model(tmp_path)
    return Checkout(tmp_path)


def text_of(tokens: Sequence[int]) -> str:
    return byte_tokenizer().decode(list(tokens), skip_special_tokens=True)


def safe(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def asked(question: str) -> list[int]:
    return chat.encode_messages(byte_tokenizer(), [{"role": "user", "content": question}], for_answer=True)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("arguments", SETTINGS)
def test_what_is_printed_is_what_the_engine_of_training_writes(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], memory: bool
) -> None:
    write_model(checkout.root, memory=memory)
    module = checkpoint.load(checkout.root / "models" / "sft")
    settings = {"max_new_tokens": 30, "temperature": 0.0, **arguments}
    (expected,) = generate(module, [asked("1+1=")], eos_id=chat.END, **settings)
    talking.generate(checkout, "sft", "1+1=", Settings(**settings), raw=False)
    assert capsys.readouterr().out == safe(text_of(expected)) + "\n"
    prompt = [chat.END_OF_TEXT, *chat.encode_text(byte_tokenizer(), "Some")]
    (expected,) = generate(module, [prompt], eos_id=chat.END, **settings)
    talking.generate(checkout, "sft", "Some", Settings(**settings), raw=True)
    assert capsys.readouterr().out == "Some" + safe(text_of(expected)) + "\n"


@pytest.mark.parametrize("beams", [1, 2])
def test_weights_are_rounded_where_it_is_asked_for(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], beams: int
) -> None:
    module = checkpoint.load(checkout.root / "models" / "sft")
    arguments: dict[str, Any] = {"eos_id": chat.END, "dtype": torch.bfloat16}
    if beams == 1:
        (found,) = answer(module, [Request(prompt=asked("1+1="), max_new_tokens=30)], max_rows=1, **arguments)
    else:
        found = beam_search(module, asked("1+1="), max_new_tokens=30, settings=BeamSettings(beams=beams), **arguments)[
            0
        ]
    settings = Settings(max_new_tokens=30, beams=beams, precision="bfloat16")
    talking.generate(checkout, "sft", "1+1=", settings, raw=False)
    assert capsys.readouterr().out == safe(text_of(found.tokens)) + "\n"


def test_text_comes_in_pieces_that_make_up_the_answer(checkout: Checkout) -> None:
    speaker, pieces = talking.Speaker(checkout, "sft"), list[str]()
    answer = speaker.say(asked("x"), pieces.append, Settings(max_new_tokens=40, temperature=1.0))
    assert len(pieces) > 5
    assert all(pieces)
    assert "".join(pieces) == answer.text == text_of(answer.tokens)


def test_an_answer_ends_before_a_stop_string(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    speaker = talking.Speaker(checkout, "sft")
    whole = speaker.say(asked("x"), lambda _: None, Settings(max_new_tokens=40, temperature=1.0)).text or ""
    place = next(i for i in range(4, len(whole) - 1) if whole[i : i + 2].isascii() and whole[i : i + 2].isprintable())
    stop = whole[place : place + 2]
    pieces: list[str] = []
    settings = Settings(max_new_tokens=40, temperature=1.0, stop=("never", stop))
    cut = speaker.say(asked("x"), pieces.append, settings)
    assert cut.reason == "stop"
    assert "".join(pieces) == cut.text == whole.partition(stop)[0]


def test_beams_print_the_likeliest_answer(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    module = checkpoint.load(checkout.root / "models" / "sft")
    best = beam_search(module, asked("x"), max_new_tokens=12, eos_id=chat.END)[0]
    talking.generate(checkout, "sft", "x", Settings(max_new_tokens=12, beams=4), raw=False)
    assert capsys.readouterr().out == safe(text_of(best.tokens)) + "\n"


def test_control_characters_never_reach_the_terminal(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = talking._load

    def wild(directory: Path) -> tuple[Any, Any, Any]:
        tokenizer, _, module = load(directory)
        return tokenizer, Vocabulary(pieces=dict.fromkeys(range(262), b"\x1b[31m\x07a\tb\n")), module

    monkeypatch.setattr(talking, "_load", wild)
    talking.generate(checkout, "sft", "x", Settings(max_new_tokens=2), raw=False)
    assert capsys.readouterr().out == "�[31m�a\tb\n�[31m�a\tb\n\n"


def test_a_tokenizer_that_cannot_be_read_token_by_token_is_refused(checkout: Checkout) -> None:
    file = checkout.root / "models" / "sft" / "tokenizer.json"
    tree = json.loads(file.read_text())
    file.write_text(json.dumps(tree | {"decoder": {"type": "BPEDecoder", "suffix": "</w>"}}))
    with pytest.raises(UserError, match=r"tokenizer\.json: .* decoder BPEDecoder cannot be read token by") as told:
        talking.generate(checkout, "sft", "x", Settings(max_new_tokens=2), raw=False)
    assert told.value.exit_code == 1


def test_a_tokenizer_larger_than_the_embedding_is_refused(checkout: Checkout) -> None:
    larger = byte_tokenizer()
    larger.add_tokens(["one more"])
    larger.save(str(checkout.root / "models" / "sft" / "tokenizer.json"))
    message = r"models/sft holds no model .*: tokenizer\.json has id 262, but the last row of the embedding is 261"
    with pytest.raises(UserError, match=message) as told:
        talking.generate(checkout, "sft", "x", Settings(max_new_tokens=2), raw=False)
    assert told.value.exit_code == 1


def test_chat_answers_each_line_by_itself(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["1+1=", "x" * 99, "1+1=", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    talking.chat(checkout, "sft", Settings(max_new_tokens=8))
    module = checkpoint.load(checkout.root / "models" / "sft")
    (expected,) = generate(module, [asked("1+1=")], max_new_tokens=8, temperature=0, eos_id=chat.END)
    said = capsys.readouterr().out.partition("ends)\n")[2]
    refused = "the prompt has 102 tokens; with --max-new-tokens 8 at most 56 fit into the 64 positions of models/sft."
    answer = safe(text_of(expected))
    assert said == f"{answer}\n{refused}\n{answer}\n"


def test_a_model_whose_scores_overflow_is_refused_by_name(tmp_path: Path) -> None:
    write_model(tmp_path, overflows=True)
    for beams in (1, 3):
        with pytest.raises(UserError, match="models/sft gives scores that are not finite") as told:
            talking.generate(Checkout(tmp_path), "sft", "x", Settings(max_new_tokens=3, beams=beams), raw=False)
        assert told.value.exit_code == 1


def test_a_prompt_longer_than_the_context_is_refused(checkout: Checkout) -> None:
    with pytest.raises(UserError, match="the prompt has 103 tokens; with --max-new-tokens 16 at most 48 fit"):
        talking.generate(checkout, "sft", "x" * 100, Settings(max_new_tokens=16), raw=False)
    with pytest.raises(UserError, match="with --max-new-tokens 99 at most 0 fit"):
        talking.generate(checkout, "sft", "x", Settings(max_new_tokens=99), raw=False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"temperature": float("nan")}, "temperature=nan must be 0"),
        ({"top_p": float("nan")}, "top_p=nan must be in"),
        ({"min_p": 2.0}, "min_p=2.0 must be in"),
        ({"precision": "half"}, "--precision 'half' must be one of: float32, bfloat16"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be a positive number"),
        ({"stop": ("a", "")}, "--stop must not be empty"),
        ({"beams": 0}, "--beams 0 must be at least 1"),
        ({"beams": 2, "temperature": 1.0}, "--beams 2 searches for the likeliest answer, so it goes with"),
        ({"beams": 2, "stop": ("x",)}, "--beams 2 searches"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Settings(**arguments)


def test_the_command_line_hands_everything_over(monkeypatch: pytest.MonkeyPatch, checkout: Checkout) -> None:
    told: list[Any] = []
    monkeypatch.setattr(talk_commands, "_checkout", lambda: checkout)
    monkeypatch.setattr(talking, "generate", lambda *arguments, **named: told.append((*arguments, named)))
    monkeypatch.setattr(talking, "chat", lambda *arguments: told.append(arguments))
    draws = ["--top-k=5", "--top-p=0.9", "--min-p=0.1", "--repetition-penalty=1.2", "--stop=a", "--stop=b", "--seed=7"]
    draws += ["--temperature=0.5", "--max-new-tokens=9", "--model=dpo", "--precision=bfloat16"]
    values: dict[str, Any] = {"top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2, "stop": ("a", "b")}
    expected = Settings(**values, seed=7, temperature=0.5, max_new_tokens=9, precision="bfloat16")
    run = CliRunner().invoke
    assert run(cli.app, ["generate", "x", "--raw", *draws]).exit_code == 0
    assert run(cli.app, ["chat", *draws]).exit_code == 0
    assert run(cli.app, ["generate", "x", "--beams=3"]).exit_code == 0
    assert told == [
        (checkout, "dpo", "x", expected, {"raw": True}),
        (checkout, "dpo", expected),
        (checkout, "champion", "x", Settings(beams=3), {"raw": False}),
    ]


@pytest.mark.parametrize(
    ("argument", "allowed"),
    [
        ("--top-k=0", "greater than or equal to 1"),
        ("--top-p=1.5", "less than or equal to 1"),
        ("--min-p=-1", "greater than or equal to 0"),
        ("--repetition-penalty=0", "greater than or equal to 0.01"),
        ("--temperature=9", "less than or equal to 5"),
        ("--seed=-1", "greater than or equal to 0"),
        ("--max-new-tokens=0", "greater than or equal to 1"),
        ("--beams=0", "greater than or equal to 1"),
        ("--top-k=many", "valid integer"),
        ("--precision=int4", "'float32', 'bfloat16'"),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(argument: str, allowed: str) -> None:
    result = CliRunner().invoke(cli.app, ["generate", "x", argument])
    assert result.exit_code == 2
    assert argument.partition("=")[0] in result.output
    assert allowed in " ".join(result.output.replace("│", " ").split())
