"""The view model laid out as one HTML page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tasks.reports.text import cell, fenced, visible


def _finalize(value: Any) -> Any:
    """Make every printed string visible: nothing invisible reaches the page, whatever it came from."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(path: str) -> Markup:
    """A path that may break after its slashes on a narrow screen."""
    return Markup("/<wbr>").join(escape(visible(part)) for part in path.split("/"))


@lru_cache(maxsize=2)
def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("tasks.reports"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize if autoescape else None,
    )
    environment.filters |= {"cell": cell, "fenced": fenced, "breakable": _breakable}
    return environment


def html(view: Mapping[str, Any]) -> str:
    """The page: one file, no script, nothing fetched from anywhere."""
    return _environment(autoescape=True).get_template("report.html.j2").render(view)


def markdown(view: Mapping[str, Any]) -> str:
    """The same figures as Markdown, for a terminal or a repository's page."""
    return _environment(autoescape=False).get_template("report.md.j2").render(view)
