"""Continuous batching: every answer is the one of its request alone, whatever comes and goes beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from axon_models import answer, generate
from axon_models.errors import ScoresError
from axon_models.generation.answers import Answer, Piece, Request
from axon_models.generation.batcher import Batcher, _likeliest
from axon_models.generation.sampling import Sampling, uniforms
from axon_models.generation.text import TextStream
from axon_models.generation.vocabulary import Vocabulary
from axon_models.layers.language_model import LanguageModel
from axon_models.presets import PRESETS
from tests.axon_models.small import small_decoder, small_preset, some_tokens

EOS = 8
SETTINGS = (
    Sampling(temperature=0),
    Sampling(),
    Sampling(temperature=0.7, top_k=9, top_p=0.9),
    Sampling(repetition_penalty=1.4, min_p=0.01),
)


def requests(n: int = 17) -> list[Request]:
    """Prompts of 1 to 37 tokens, answers of at most 3 to 19, four settings."""
    return [
        Request(
            prompt=some_tokens(1 + 9 * i % 37, seed=i).tolist(),
            max_new_tokens=3 + 5 * i % 17,
            sampling=SETTINGS[i % len(SETTINGS)],
            seed=i // 3,
            row=i % 3,
        )
        for i in range(n)
    ]


def letters(tokens: list[int]) -> str:
    """A text of one character for each token but the end token."""
    return "".join(chr(ord("A") + token) for token in tokens if token != EOS)


LETTERS = Vocabulary(pieces={token: chr(ord("A") + token).encode() for token in range(100)}, special=frozenset({EOS}))


def assert_same(found: Answer, expected: Answer) -> None:
    assert replace(found, logprobs=()) == replace(expected, logprobs=())
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def assert_together(model: LanguageModel, asked: list[Request], expected: list[Answer], **arguments: Any) -> None:
    """What a batcher of these arguments answers."""
    batcher = Batcher(model, eos_id=EOS, **arguments)
    for request in asked:
        batcher.submit(request)
    together = dict(batcher.run())
    assert len(together) == len(expected)
    for number, one in enumerate(expected):
        assert_same(together[number], one)


@pytest.mark.parametrize("arguments", [{}, {"max_rows": 1}, {"max_rows": 3}, {"max_rows": 5, "chunk": 7}])
@pytest.mark.parametrize("prepare", [True, False])
def test_answers_are_those_of_each_request_alone(arguments: dict[str, int], prepare: bool) -> None:
    model, asked = small_decoder(), requests()
    alone = [answer(model, [request], eos_id=EOS)[0] for request in asked]
    assert {a.reason for a in alone} == {"eos", "length"}
    assert_together(model, asked, alone, prepare=prepare, **arguments)


@torch.no_grad()
def recomputed(model: LanguageModel, request: Request) -> Answer:
    """Each token from all of the text before it anew."""
    text, logprobs = list(request.prompt), []
    for draw in uniforms(request.seed, request.row, request.max_new_tokens):
        logits = model(torch.tensor([text]))[:, -1]  # (1, V)
        seen = torch.zeros_like(logits, dtype=torch.bool).index_fill_(1, torch.tensor(text), True)
        text.append(int(request.sampling.choose(logits, torch.tensor([draw], dtype=torch.float64), seen)))
        logprobs.append(float(logits.log_softmax(-1)[0, text[-1]]))
        if text[-1] == EOS:
            break
    tokens = tuple(text[len(request.prompt) :])
    return Answer(tokens=tokens, logprobs=tuple(logprobs), reason="eos" if text[-1] == EOS else "length", text=None)


@pytest.mark.parametrize("preset", PRESETS)
def test_answers_of_every_preset_are_full_recomputation_alone_and_together(preset: str) -> None:
    model, asked = small_preset(preset), requests(11)
    expected = [recomputed(model, request) for request in asked]
    assert len({token for one in expected for token in one.tokens}) > 20
    for request, one in zip(asked, expected, strict=True):
        assert_same(answer(model, [request], eos_id=EOS)[0], one)
    for arguments in ({"max_rows": 3}, {"max_rows": 4, "chunk": 7}, {"max_rows": 3, "prepare": False}):
        assert_together(model, asked, expected, **arguments)


def test_answers_are_those_of_the_engine_that_training_uses() -> None:
    model = small_decoder()
    for request in requests():
        s = request.sampling
        arguments: dict[str, Any] = vars(s) | {"first_row": request.row, "seed": request.seed}
        (expected,) = generate(model, [request.prompt], max_new_tokens=request.max_new_tokens, eos_id=EOS, **arguments)
        (found,) = answer(model, [request], eos_id=EOS)
        assert list(found.tokens) == expected


def test_requests_come_and_go_between_steps() -> None:
    model, asked = small_decoder(), requests(12)
    batcher = Batcher(model, eos_id=EOS, max_rows=4)
    together: dict[int, Answer] = {}
    for request in asked:
        number = batcher.submit(request)
        if number % 5 == 3:
            batcher.cancel(number)  # while it waits
        if number % 5 == 4:
            batcher.step()
            batcher.cancel(number - 2)  # in work, or ended already
        together |= batcher.step()
    together |= dict(batcher.run())
    assert {3, 8}.isdisjoint(together)
    assert 8 <= len(together) < 10  # and some were in work when they were dropped
    for number, found in together.items():
        assert_same(found, answer(model, [asked[number]], eos_id=EOS)[0])


def test_a_stream_hears_every_token_and_the_text() -> None:
    heard: dict[int, list[Piece]] = {}
    asked = requests()
    answers = answer(
        small_decoder(),
        asked,
        eos_id=EOS,
        max_rows=4,
        vocabulary=LETTERS,
        stream=lambda p: heard.setdefault(p.request, []).append(p),
    )
    for number, found in enumerate(answers):
        assert tuple(piece.token for piece in heard[number]) == found.tokens
        assert tuple(piece.logprob for piece in heard[number]) == found.logprobs
        assert "".join(piece.text for piece in heard[number]) == found.text == letters(list(found.tokens))


def test_a_stop_string_ends_an_answer_before_it() -> None:
    model = small_decoder()
    free = [answer(model, [request], vocabulary=LETTERS)[0] for request in requests()]
    assert all(a.text is not None for a in free)
    asked, expected = [], []
    for request, whole in zip(requests(), free, strict=True):
        text = whole.text or ""
        stop = (text[2:4], "never said") if len(text) > 5 else ("never said",)
        asked.append(replace(request, stop=stop))
        expected.append(text.partition(stop[0])[0])
    heard: dict[int, str] = {}

    def listen(piece: Piece) -> None:
        heard[piece.request] = heard.get(piece.request, "") + piece.text

    stopped = answer(model, asked, max_rows=5, vocabulary=LETTERS, stream=listen)
    assert [a.text for a in stopped] == expected == [heard[number] for number in range(len(asked))]
    for whole, cut, request in zip(free, stopped, asked, strict=True):
        assert cut.reason == ("stop" if len(request.stop) == 2 else "length")
        assert cut.tokens == whole.tokens[: len(cut.tokens)]
        if cut.reason == "stop":  # the tokens go on to the one that completed the string
            stream = TextStream(LETTERS, stop=request.stop)
            for token in cut.tokens:
                assert not stream.is_stopped
                stream.add(token)
            assert stream.is_stopped


def test_seeds_of_sequences_decide() -> None:
    request = Request(prompt=[1, 2, 3], max_new_tokens=9, sampling=Sampling())
    one, same, other, row = answer(
        small_decoder(), [request, request, replace(request, seed=1), replace(request, row=1)]
    )
    assert one == same
    assert len({one.tokens, other.tokens, row.tokens}) == 3


def test_an_error_leaves_nothing_in_work() -> None:
    model, asked = small_decoder(), requests(6)
    fails = [True]

    def stream(_: Piece) -> None:
        if fails[0]:
            raise KeyboardInterrupt

    batcher = Batcher(model, eos_id=EOS, max_rows=2, stream=stream)
    for request in asked:
        batcher.submit(request)
    with pytest.raises(KeyboardInterrupt):
        batcher.step()
    assert list(batcher.run()) == []
    fails[0] = False
    number = batcher.submit(asked[4])
    assert_same(dict(batcher.run())[number], answer(model, [asked[4]], eos_id=EOS)[0])


@pytest.mark.parametrize("vocab_size", [64, 640, 67])
@pytest.mark.parametrize("n_rows", [1, 8, 20])
def test_the_likeliest_token_is_the_first_of_equals(vocab_size: int, n_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = torch.randint(0, 9, (n_rows, vocab_size), generator=generator).float()  # many equals
        assert _likeliest(logits).tolist() == [row.index(max(row)) for row in logits.tolist()]


@pytest.mark.parametrize("n_requests", [1, 3], ids=["greedy", "drawn"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused_with_the_models_name(value: float, n_requests: int) -> None:
    model = small_decoder()
    with torch.no_grad():
        model.blocks[0].attention.output.weight[3, 5] = value
    with pytest.raises(ScoresError, match="champion gives scores that are not finite"):
        answer(model, requests(n_requests), name="champion")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [1] * 61}, "the prompt has 61 tokens; with max_new_tokens=4 at most 60 fit into 64 positions"),
        ({"prompt": [67]}, "a token outside 0 … 66"),
        ({"prompt": [-1]}, "a token outside 0 … 66"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": 99}, "with max_new_tokens=99 at most 0 fit into 64"),
        ({"stop": ("x",)}, "needs `vocabulary`"),
        ({"stop": ("",)}, "an empty string"),
    ],
)
def test_mistakes_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        answer(small_decoder(), [replace(Request(prompt=[1], max_new_tokens=4), **changes)])


@pytest.mark.parametrize("arguments", [{"max_rows": 0}, {"chunk": 0}, {"length": 65}, {"length": 0}])
def test_sizes_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value} must be"):
        Batcher(small_decoder(), **arguments)


def test_no_requests_give_no_answers() -> None:
    assert answer(small_decoder(), []) == []
