"""`axon chat` and `axon generate`: load a model directory and print its tokens as they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import registry
from tasks.errors import UserError
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout

if TYPE_CHECKING:
    from axon_models.generation.answers import Answer

STAGES = ("pretrain", "sft", "sft_continued", "ppo", "dpo")
PRECISIONS = ("float32", "bfloat16")


def directory_of(checkout: Checkout, model: str) -> Path:
    """The model directory of a stage or of a registry alias."""
    if model in STAGES:
        directory = checkout.root / "models" / model
        if not directory.is_dir():
            raise UserError(f"models/{model} is not there yet; make it with `axon run {model}`.", exit_code=1)
        _verify(checkout, model, directory)
        return directory
    if model in (registry.CHAMPION, registry.CHALLENGER):
        return registry.download(checkout, model)
    allowed = ", ".join((registry.CHAMPION, registry.CHALLENGER, *STAGES))
    raise UserError(f"--model {model!r} is not a model; allowed: {allowed}.")


def _verify(checkout: Checkout, model: str, directory: Path) -> None:
    """A `UserError` unless the directory is what `dvc.lock` says that its stage wrote, as for a registered version."""
    outs = stages.read_lock(checkout.root).get(model, {}).get("outs", ())
    recorded = {out["path"]: out.get("md5") for out in outs}.get(f"models/{model}")
    found = stages.digest(directory) if recorded else None
    if found == recorded:
        return
    raise UserError(
        f"models/{model} has MD5 {found}, but dvc.lock records {recorded}: it was damaged or edited. Delete it and run "
        f"`axon run {model}`: it is restored or made again.",
        exit_code=1,
    )


def _load(directory: Path) -> tuple[Any, Any, Any]:
    """(tokenizer, its bytes, model); a `UserError` where one cannot be read or they do not go together."""
    import axon_models
    from tasks.tokenizers import bytelevel

    try:
        tokenizer, module = bytelevel.load(directory), axon_models.load(directory)
        largest, n_rows = max(tokenizer.get_vocab().values(), default=0), module.config.vocab_size
        if largest >= n_rows:
            raise ValueError(
                f"tokenizer.json has id {largest}, but the last row of the embedding is {n_rows - 1} "
                f"(vocab_size={n_rows} in config.json)"
            )
    except (OSError, UserError):
        raise
    except Exception as error:  # noqa: BLE001 tokenizers raises nothing narrower
        raise UserError(
            f"{directory} holds no model that can be loaded: {error}\nDelete it and run `axon run`: it is restored or "
            "made again.",
            exit_code=1,
        ) from None
    try:
        return tokenizer, axon_models.Vocabulary.of(tokenizer), module
    except ValueError as error:
        raise UserError(f"{directory / 'tokenizer.json'}: {error}", exit_code=1) from None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model speaks; a value out of range is a `UserError`. `beams` more than 1 searches instead of drawing.

    precision: what the weights are rounded to, see `docs/generation.md`.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    beams: int = 1
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision {self.precision!r} must be one of: {', '.join(PRECISIONS)}.")
        if "" in self.stop:
            raise UserError("--stop must not be empty; give the text before which an answer ends.")
        if self.beams < 1:
            raise UserError(f"--beams {self.beams} must be at least 1.")
        draws = (self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty, self.stop)
        if self.beams > 1 and draws != (0, None, None, None, 1, ()):
            raise UserError(
                f"--beams {self.beams} searches for the likeliest answer, so it goes with --max-new-tokens alone, "
                "and not with --temperature, --top-k, --top-p, --min-p, --repetition-penalty or --stop."
            )
        _ = self.sampling

    @property
    def sampling(self) -> Any:
        from axon_models.generation.sampling import Sampling

        try:
            return Sampling(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
            )
        except ValueError as error:
            raise UserError(f"{error}.") from None


class Speaker:
    """A loaded model with its tokenizer; precision as in `Settings`."""

    def __init__(self, checkout: Checkout, model: str, precision: str = "float32") -> None:
        import torch

        from axon_models.generation.batcher import Batcher
        from tasks.tokenizers import chat

        self.name = model
        self._place = f"models/{model}" if model in STAGES else f"the {model}"
        self._tokenizer, self._vocabulary, self._module = _load(directory_of(checkout, model))
        self._eos_id = chat.END
        self._dtype = torch.bfloat16 if precision == "bfloat16" else None  # None: as the checkpoint says
        self._emit: Callable[[str], None] = _print
        self._batcher = Batcher(
            self._module,
            eos_id=chat.END,
            max_rows=1,
            vocabulary=self._vocabulary,
            stream=lambda piece: self._emit(piece.text) if piece.text else None,
            dtype=self._dtype,
            name=self._place,
        )

    def say(self, tokens: list[int], emit: Callable[[str], None], settings: Settings) -> Answer:
        """Generate behind `tokens`; `emit` gets the text as it becomes certain, of beams all at the end."""
        from axon_models.errors import ScoresError

        limit = self._module.config.max_positions - settings.max_new_tokens
        if limit < 1 or len(tokens) > limit:
            raise UserError(
                f"the prompt has {len(tokens)} tokens; with --max-new-tokens {settings.max_new_tokens} at most "
                f"{max(limit, 0)} fit into the {self._module.config.max_positions} positions of {self._place}."
            )
        try:
            return self._search(tokens, emit, settings) if settings.beams > 1 else self._draw(tokens, emit, settings)
        except ScoresError as error:
            raise UserError(str(error), exit_code=1) from None

    def _draw(self, tokens: list[int], emit: Callable[[str], None], settings: Settings) -> Answer:
        from axon_models.generation.answers import Request

        self._emit = emit
        self._batcher.submit(
            Request(
                prompt=tokens,
                max_new_tokens=settings.max_new_tokens,
                sampling=settings.sampling,
                seed=settings.seed,
                stop=settings.stop,
            )
        )
        ((_, answer),) = self._batcher.run()
        return answer

    def _search(self, tokens: list[int], emit: Callable[[str], None], settings: Settings) -> Answer:
        from axon_models.generation.beams import BeamSettings, beam_search

        best = beam_search(
            self._module,
            tokens,
            max_new_tokens=settings.max_new_tokens,
            settings=BeamSettings(beams=settings.beams),
            eos_id=self._eos_id,
            vocabulary=self._vocabulary,
            dtype=self._dtype,
            name=self._place,
        )[0]
        emit(best.text or "")
        return best

    def conversation(self, messages: list[dict[str, str]]) -> list[int]:
        from tasks.tokenizers import chat

        return chat.encode_messages(self._tokenizer, messages, for_answer=True)

    def text(self, prompt: str) -> list[int]:
        from tasks.tokenizers import chat

        return [chat.END_OF_TEXT, *chat.encode_text(self._tokenizer, prompt)]


def _print(text: str) -> None:
    # Control characters of a model must not reach a terminal.
    print("".join(c if c.isprintable() or c in "\n\t" else "�" for c in text), end="", flush=True)


def generate(checkout: Checkout, model: str, prompt: str, settings: Settings, *, raw: bool) -> None:
    """Answer one prompt, or continue it with `raw`."""
    speaker = Speaker(checkout, model, settings.precision)
    tokens = speaker.text(prompt) if raw else speaker.conversation([{"role": "user", "content": prompt}])
    if raw:
        _print(prompt)
    speaker.say(tokens, _print, settings)
    print()


def chat(checkout: Checkout, model: str, settings: Settings) -> None:
    """Read a line, answer it, until an empty line, Ctrl-D or Ctrl-C. Each question stands by itself."""
    speaker = Speaker(checkout, model, settings.precision)
    print(f"{speaker.name}. Ask for example: 37 + 48 = ?   (an empty line or Ctrl-D ends)")
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not line:
            return
        try:
            speaker.say(speaker.conversation([{"role": "user", "content": line}]), _print, settings)
        except UserError as error:
            print(error, end="")
        print()
