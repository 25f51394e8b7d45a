"""How numbers and foreign text are written in the report."""

from __future__ import annotations

import re
from typing import Any

MISSING = "–"
BIDI_CONTROLS = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}

MODEL_TITLES = {
    "base": "Base",
    "sft": "SFT",
    "sft_continued": "SFT, continued",
    "ppo": "PPO",
    "dpo": "DPO",
    "best_of_n": "Best of n",
}


def number(value: float | None, digits: int = 2) -> str:
    """A figure with a fixed number of decimals and a true minus sign; a dash where nothing was measured."""
    if value is None:
        return MISSING
    written = f"{value:.{digits}f}"
    if float(written) == 0.0:
        written = written.lstrip("-")
    return written.replace("-", "−")


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """ "0.48 – 0.55", or nothing where there is no interval."""
    return "" if low is None or high is None else f"{number(low, digits)} – {number(high, digits)}"


def count(value: int) -> str:
    """A count with a narrow space between groups of three digits: 12 345."""
    return f"{value:,}".replace(",", "\u202f")


def size(n_bytes: int) -> str:
    """Bytes in decimal units: 10.4 MB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes} B"


def millions(n_parameters: int) -> str:
    """2.6 M; below a hundred thousand the count itself."""
    return f"{n_parameters / 1e6:.1f} M" if n_parameters >= 100_000 else count(n_parameters)


def brief(value: float) -> str:
    """Three significant digits: 0.0217, 3.28, 1 204."""
    return (f"{value:.3g}" if abs(value) < 1000 else count(round(value))).replace("-", "−")


def title(name: str) -> str:
    """`pairwise_accuracy` as a heading: Pairwise accuracy. Abbreviations keep their spelling."""
    spelt = {"kl": "KL", "latex": "LaTeX", "sft": "SFT", "ppo": "PPO", "dpo": "DPO"}
    words = [spelt.get(word, word) for word in name.split("_") if word]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]]) if words else ""


def model_title(name: str, n_samples: int) -> str:
    return f"Best of {n_samples}" if name == "best_of_n" else MODEL_TITLES.get(name, title(name))


def exact(value: Any) -> str:
    """A value as it stands in its JSON file."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(exact(part) for part in value) or "(none)"
    return repr(value) if isinstance(value, float) else str(value)


def flatten(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """The leaves of nested mappings (and lists of mappings) as (dotted key, exact value), keys sorted."""
    if isinstance(tree, dict) and tree:
        return [
            leaf
            for key in sorted(tree, key=str)
            for leaf in flatten(tree[key], f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(tree, list) and any(isinstance(part, dict | list) for part in tree):
        return [leaf for place, part in enumerate(tree) for leaf in flatten(part, f"{prefix}[{place}]")]
    return [(prefix, exact(tree) if tree != {} else MISSING)]


def visible(text: str) -> str:
    """`text` with everything that would be invisible, or turn the text around it, replaced by visible signs.

    Models answer with any bytes at all: control characters become their pictures (U+2400 …), lone surrogates
    the replacement character, and marks that change the direction of writing are spelt out.
    """
    shown = []
    for character in text:
        code = ord(character)
        if character in "\n\t":
            shown.append(character)
        elif code < 0x20:
            shown.append(chr(0x2400 + code))
        elif code == 0x7F:
            shown.append("\u2421")
        elif 0x80 <= code < 0xA0 or code in BIDI_CONTROLS or code in (0x2028, 0x2029, 0xFEFF):
            shown.append(f"⟨U+{code:04X}⟩")
        elif 0xD800 <= code < 0xE000 or (code & 0xFFFE) == 0xFFFE:
            shown.append("\ufffd")
        else:
            shown.append(character)
    return "".join(shown)


def fenced(text: str) -> str:
    """A Markdown code block around `text`, with a fence longer than any run of backticks within."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{visible(text)}\n{fence}"


def cell(text: str) -> str:
    """`text` for a cell of a Markdown table: no markup, no line breaks."""
    escaped = re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", visible(text))
    return escaped.replace("\n", " ").replace("\t", " ")
