"""BPE over characters with byte fallback, as SentencePiece makes it and Llama and Mistral have it; digits stand alone.

A space is written ▁. Characters that are rare in the training text are no tokens: each is the tokens of its UTF-8
bytes, <0x00> to <0xFF>, which are all in the vocabulary, so nothing is ever unknown (Kudo and Richardson 2018; Touvron
et al. 2023, section 2.2). SentencePiece reads ▁ itself back as a space. Here it comes back as it was, and so does any
text:

    ▁ is written U+FDD0 U+FDD2, and U+FDD0 is written U+FDD0 U+FDD1

U+FDD0 to U+FDD2 are characters that Unicode keeps for such uses inside of programs. Each of the two pairs is one token,
by the first two merges, so that the decoder, which looks at single tokens, can turn it back.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tasks.errors import UserError
from tasks.tokenizers.chat import SPECIAL_TOKENS
from tasks.tokenizers.folder import of_size

SPACE = "▁"
ESCAPE, AS_ESCAPE, AS_SPACE = "\ufdd0", "\ufdd1", "\ufdd2"
ESCAPES = ((ESCAPE, ESCAPE + AS_ESCAPE), (SPACE, ESCAPE + AS_SPACE))  # (character of the text, as it is written)
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# The space is always a token: what decodes to a space is ▁ as a character, and never its bytes.
FIXED = (*SPECIAL_TOKENS, *BYTES, ESCAPE, AS_ESCAPE, AS_SPACE, *(written for _, written in ESCAPES), SPACE)
COVERAGE = 0.9995  # the share of the training text whose characters are tokens; SentencePiece's default

# A word is letters (with their marks), or other characters, with one space before it; or line ends; or spaces. No word
# has letters and punctuation, so no merge makes `<|user|>` of text; none has a digit and more, so none makes `<0x0A>`.
_WORDS = rf"{SPACE}?[\p{{L}}\p{{M}}]+|{SPACE}?[^{SPACE}\n\p{{L}}\p{{M}}\p{{N}}]+|\n+|{SPACE}+(?![^{SPACE}\n])|{SPACE}"


def _around(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    escapes = [normalizers.Replace(character, written) for character, written in ESCAPES]
    tokenizer.normalizer = normalizers.Sequence([*escapes, normalizers.Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split(Regex(_WORDS), "isolated")]
    )
    # Spaces first: a ▁ that comes from an escape or from bytes is none.
    unescapes = [decoders.Replace(written, character) for character, written in reversed(ESCAPES)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), *unescapes, decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def alphabet(texts: Iterable[str], *, at_most: int) -> list[str]:
    """The most frequent characters but the space, until with it they cover `COVERAGE` of the texts; sorted."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    for character in (SPACE, ESCAPE, AS_ESCAPE, AS_SPACE):
        counts.pop(character, None)
    uncovered = (1 - COVERAGE) * counts.total()
    kept: list[str] = []
    remaining = counts.total() - counts.pop(" ", 0)
    for character, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if remaining <= uncovered or len(kept) == at_most:
            break
        kept.append(character)
        remaining -= n
    return sorted(kept)


def train(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A tokenizer whose ids are the special tokens, the 256 bytes, five for escapes, the space, characters, merges
    by frequency.

    Raises UserError when `vocab_size` is too small for what is always there, or the texts are too few for it.
    """
    if vocab_size < len(FIXED):
        raise UserError(
            f"tokenizer.vocab_size={vocab_size} must be at least {len(FIXED)} with tokenizer.kind=byte_fallback: "
            "special tokens, 256 bytes, escapes and the space; edit params.yaml"
        )
    if iter(texts) is texts:  # an iterator: it could not be read a second time
        texts = list(texts)
    characters = alphabet(texts, at_most=vocab_size - len(FIXED))
    tokenizer = _around(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(FIXED) + 1,  # the space is learnt with, and is in FIXED too
        initial_alphabet=[SPACE, *characters],
        limit_alphabet=1 + len(characters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_covered(texts, characters), trainer)
    return of_size(_complete(tokenizer), vocab_size)


def _covered(texts: Iterable[str], characters: Iterable[str]) -> Iterable[str]:
    """The texts cut at every character that is no token: the trainer would take what is around it for neighbours."""
    pattern = re.compile(f"[{re.escape(''.join([' ', *characters]))}]+")
    for text in texts:
        yield from pattern.findall(text)


def _complete(trained: Tokenizer) -> Tokenizer:
    """The same merges behind the tokens that every tokenizer of this kind has."""
    model = json.loads(trained.to_str())["model"]
    learnt = sorted(model["vocab"].keys() - {SPACE}, key=model["vocab"].__getitem__)
    vocabulary = {token: i for i, token in enumerate((*FIXED, *learnt))}
    escapes = [(written[0], written[1]) for _, written in ESCAPES]
    merges = [*escapes, *((left, right) for left, right in model["merges"])]
    tokenizer = _around(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
