"""Learning curves as small SVG drawings that take their colours from the page, so that they turn dark with it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from tasks.reports.inputs import Curve
from tasks.reports.text import brief, title

WIDTH, HEIGHT = 340, 196  # one drawing pixel is one CSS pixel on a phone
NOT_DRAWN = ("tokens", "learning_rate", "grad_norm")
VALIDATION = "validation_"
MAX_PANELS = 8

# Stand-ins while drawing; the page's own variables in the finished drawing.
COLOURS = {"#010101": "--ink-soft", "#020202": "--rule", "#030303": "--accent", "#040404": "--second"}
INK, RULE, ACCENT, SECOND = COLOURS
Points = Sequence[tuple[float, float]]


def smoothed(points: Points, weight: float = 0.9) -> list[tuple[float, float]]:
    """Exponential moving average without bias towards the start (as Adam corrects its moments)."""
    total, norm, averaged = 0.0, 0.0, []
    for x, y in points:
        total, norm = weight * total + (1 - weight) * y, weight * norm + (1 - weight)
        averaged.append((x, total / norm))
    return averaged


def clean_svg(svg: str, name: str, label: str) -> str:
    """A matplotlib SVG made fit to stand inside a page: no prologue, no metadata, names of its own, our colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"\bxlink:href=", "href=", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]+;?", "", svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return re.sub(r"<svg[^>]*>", head, svg, count=1).strip()


def _draw(name: str, label: str, training: Points, validation: Points) -> str:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings: Any = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 11.0, "axes.unicode_minus": True}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes((0.125, 0.125, 0.855, 0.845))
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(RULE)
        axes.tick_params(colors=INK, length=0, pad=4)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.015, y=0.08)
        noisy = len(training) > 40
        if training:
            axes.plot(*zip(*training, strict=True), color=ACCENT, linewidth=0.7 if noisy else 1.6,
                      alpha=0.3 if noisy else 1.0)  # fmt: skip
        if noisy:
            axes.plot(*zip(*smoothed(training), strict=True), color=ACCENT, linewidth=1.6)
        if validation:
            axes.plot(*zip(*validation, strict=True), color=SECOND, linewidth=1.4, marker="o", markersize=3.2)
        if noisy:
            _limit_to_smooth(axes, training, validation)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return clean_svg(buffer.getvalue(), name, label)


def _limit_to_smooth(axes: Any, training: Points, validation: Points) -> None:
    """Let the first few steps run out of the picture: they are so high that the rest would look flat."""
    tail = [y for _, y in training[len(training) // 20 :]] + [y for _, y in validation[1:]]
    low, high = min(tail), max(tail)
    margin = 0.08 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)


def panels(stage: str, curve: Curve) -> list[dict[str, str]]:
    """One drawing per quantity of a stage: what was logged in training and in validation, in one picture.

    Each is {"title", "legend", "svg"}; legend says which lines there are: "both", "training" or "validation".
    """
    names = dict.fromkeys(column.removeprefix(VALIDATION) for column in curve)
    drawn = []
    for name in names:
        if name in NOT_DRAWN:
            continue
        training, validation = curve.get(name, []), curve.get(VALIDATION + name, [])
        if len(training) < 2 and len(validation) < 2:
            continue
        legend = "both" if training and validation else "training" if training else "validation"
        label = f"{title(stage)}: {title(name)} by step"
        drawn.append(
            {
                "title": title(name),
                "legend": legend,
                "svg": _draw(f"{stage}-{name}", label, training, validation),
                "first": brief((training or validation)[0][1]),
                "last": brief((validation or training)[-1][1]),
            }
        )
    return drawn[:MAX_PANELS]
