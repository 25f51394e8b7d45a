"""`axon chat` and `axon generate`: load a model directory and print its tokens as they come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks import registry
from tasks.errors import UserError
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout

STAGES = ("pretrain", "sft", "sft_continued", "ppo", "dpo")


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


def _load(directory: Path) -> tuple[Any, Any]:
    """(tokenizer, model); a `UserError` where one cannot be read or they do not go together."""
    import axon_models
    from tasks.tokenizers import bytelevel

    try:
        tokenizer, module = bytelevel.load(directory), axon_models.load(directory)
        largest = max(tokenizer.get_vocab().values(), default=0)
        if largest >= module.config.vocab_size:
            raise ValueError(f"token {largest} of its tokenizer is beyond the {module.config.vocab_size} of the model")
    except (OSError, UserError):
        raise
    except Exception as error:  # noqa: BLE001 tokenizers raises nothing narrower
        raise UserError(
            f"{directory} holds no model that can be loaded: {error}\nDelete it and run `axon run`: it is restored or "
            "made again.",
            exit_code=1,
        ) from None
    return tokenizer, module


class Speaker:
    """A loaded model with its tokenizer."""

    def __init__(self, checkout: Checkout, model: str) -> None:
        self.name = model
        self._tokenizer, self._module = _load(directory_of(checkout, model))

    def say(self, tokens: list[int], emit: Callable[[str], None], **settings: Any) -> int:
        """Generate behind `tokens`, passing text on as it becomes whole characters; returns the count of tokens."""
        import axon_models
        from tasks.tokenizers import chat

        limit = self._module.config.max_positions - settings["max_new_tokens"]
        if limit < 1 or len(tokens) > limit:
            raise UserError(
                f"the prompt has {len(tokens)} tokens; with --max-new-tokens {settings['max_new_tokens']} at most "
                f"{max(limit, 0)} fit into this model's {self._module.config.max_positions} positions."
            )
        from tokenizers.decoders import DecodeStream

        # Bytes of an unfinished character wait in the stream for the rest.
        stream = DecodeStream(skip_special_tokens=True)

        def emit_token(_row: int, token: int) -> None:
            text = stream.step(self._tokenizer, token)
            if text:
                emit(text)

        (answer,) = axon_models.generate(
            self._module,
            [tokens],
            eos_id=chat.END,
            stream=emit_token,
            **settings,
        )
        return len(answer)

    def conversation(self, messages: list[dict[str, str]]) -> list[int]:
        from tasks.tokenizers import chat

        return chat.encode_messages(self._tokenizer, messages, for_answer=True)

    def text(self, prompt: str) -> list[int]:
        from tasks.tokenizers import chat

        return [chat.END_OF_TEXT, *chat.encode_text(self._tokenizer, prompt)]


def _print(text: str) -> None:
    # Control characters of a model must not reach a terminal.
    print("".join(c if c.isprintable() or c in "\n\t" else "�" for c in text), end="", flush=True)


def generate(checkout: Checkout, model: str, prompt: str, *, raw: bool, **settings: Any) -> None:
    """Answer one prompt, or continue it with `raw`."""
    speaker = Speaker(checkout, model)
    tokens = speaker.text(prompt) if raw else speaker.conversation([{"role": "user", "content": prompt}])
    if raw:
        _print(prompt)
    speaker.say(tokens, _print, **settings)
    print()


def chat(checkout: Checkout, model: str, *, temperature: float, max_new_tokens: int, seed: int) -> None:
    """Read a line, answer it, until an empty line, Ctrl-D or Ctrl-C. Each question stands by itself."""
    speaker = Speaker(checkout, model)
    print(f"{speaker.name}. Ask for example: 37 + 48 = ?   (an empty line or Ctrl-D ends)")
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not line:
            return
        tokens = speaker.conversation([{"role": "user", "content": line}])
        try:
            speaker.say(tokens, _print, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
        except UserError as error:
            print(error, end="")
        print()
