"""Decoding against transformers: the cuts against its processors, greedy and beam search against its `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from axon_models import answer, beam_search
from axon_models.checkpoint import save
from axon_models.decoder.model import Decoder
from axon_models.generation.answers import Request
from axon_models.generation.beams import BeamSettings
from axon_models.generation.sampling import Sampling
from tests.axon_models.small import small_decoder, some_tokens

EOS = 8

# In the order in which transformers' generate applies them.
PROCESSORS: dict[str, Any] = {
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}
SETTINGS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 500},
    {"top_p": 0.05},
    {"top_p": 0.8},
    {"top_p": 0.99},
    {"min_p": 0.02},
    {"min_p": 0.5},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "temperature": 0.6},
    {"temperature": 1.9, "top_k": 20, "top_p": 0.7},
    {"repetition_penalty": 1.2, "temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
]


@pytest.mark.parametrize("arguments", SETTINGS)
def test_distributions_are_those_of_transformers_processors(arguments: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(40, 300, generator=generator)
    texts = torch.randint(0, 300, (40, 50), generator=generator)
    scores = logits.clone()
    for name, processor in PROCESSORS.items():
        if name in arguments:
            process: LogitsProcessor = processor(arguments[name])
            scores = process(texts, scores)  # type: ignore[arg-type]
    seen = torch.zeros(40, 300, dtype=torch.bool).scatter_(1, texts, True)
    ours = Sampling(**arguments).distribution(logits, seen)
    assert torch.equal(ours > 0, scores.softmax(-1) > 0)
    torch.testing.assert_close(ours, scores.softmax(-1))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, LlamaForCausalLM]:
    directory: Path = tmp_path_factory.mktemp("llama")
    ours = small_decoder()
    save(ours, directory)
    return ours, LlamaForCausalLM.from_pretrained(directory).eval()


def theirs_alone(model: LlamaForCausalLM, prompt: list[int], **settings: Any) -> list[int]:
    """What transformers writes behind one prompt, without the padding behind the end token."""
    tokens = torch.tensor([prompt])
    output = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, eos_token_id=EOS, pad_token_id=1, **settings
    )
    written = output[0, len(prompt) :].tolist()
    return written[: written.index(EOS) + 1] if EOS in written else written


def test_greedy_answers_are_those_of_transformers(both: tuple[Decoder, LlamaForCausalLM]) -> None:
    ours, theirs = both
    prompts = [some_tokens(n, seed=n).tolist() for n in (1, 30, 7, 12)]
    for penalty in (1.0, 1.3):
        sampling = Sampling(temperature=0, repetition_penalty=penalty)
        asked = [Request(prompt=prompt, max_new_tokens=25, sampling=sampling) for prompt in prompts]
        expected = [theirs_alone(theirs, p, max_new_tokens=25, repetition_penalty=penalty) for p in prompts]
        assert [list(a.tokens) for a in answer(ours, asked, eos_id=EOS, max_rows=3)] == expected


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 5])
def test_beams_are_those_of_transformers(
    both: tuple[Decoder, LlamaForCausalLM], beams: int, length_penalty: float, early_stopping: Any
) -> None:
    ours, theirs = both
    settings = BeamSettings(beams=beams, length_penalty=length_penalty, early_stopping=early_stopping)
    for seed in range(3):
        prompt = some_tokens(4 + 3 * seed, seed=seed).tolist()
        best = beam_search(ours, prompt, max_new_tokens=14, settings=settings, eos_id=EOS)[0]
        arguments: dict[str, Any] = {"num_beams": beams, **vars(settings)}
        del arguments["beams"]
        assert list(best.tokens) == theirs_alone(theirs, prompt, max_new_tokens=14, **arguments)
