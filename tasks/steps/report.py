"""Write the report: `report/report.html` and its Markdown twin `report/report.md`.

Both are pure functions of the artifacts and of `params.yaml`. Section `runtime` is left out: it changes no
result, so it must not change this page either.
"""

from __future__ import annotations

from tasks.files import write_text
from tasks.reports import composition, inputs, render, view
from tasks.steps.context import StepContext


def run(context: StepContext) -> None:
    """Read everything below `context.root` that the stages left, write the two files.

    Raises `UserError` when an input is missing or damaged.
    """
    parameters = context.params.model_dump(mode="json", exclude={"runtime"})
    read = inputs.read(context.root, parameters)
    shown = view.build(read, composition.read(context.root / "data"))
    write_text(context.root / "report" / "report.html", render.html(shown))
    write_text(context.root / "report" / "report.md", render.markdown(shown))
    context.report(1, 1, {"files": float(len(read.digests))})
