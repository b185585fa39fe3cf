"""A page as a single HTML file that loads nothing: style and script are inlined, and allowed only by their hashes.

The templates are in `templates/`. Every value that a template shows is escaped and put on one line with its control
characters made visible, unless it is already `Markup`: names of models and data sets, labels and texts come from files
that others wrote.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from saeflow.report.tokens import one_line

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_MODULE = re.compile(r"^(import .*\n|export )", re.MULTILINE)


def document(
    template: str,
    title: str,
    *,
    styles: Sequence[str],
    scripts: Sequence[str],
    more_style: str = "",
    kind: str = "",
    **values: object,
) -> str:
    """A page as one HTML document.

    Args:
        template: a file of `templates/` that extends `document.html.j2`, or that file itself, which shows the `Markup`
            value `body`.
        title: the text of the title bar.
        styles: files of `static/`, in order.
        scripts: files of `static/`, in order; they share one scope, so `import` and `export` are stripped.
        more_style: rules that follow the files of `styles`.
        kind: the CSS class of the `body` element.
        values: the values that the template shows.
    """
    from markupsafe import Markup

    style = "".join(static(name) for name in styles) + more_style
    script = '"use strict";\n' + "".join(_MODULE.sub("", static(name)) for name in scripts)
    whole = {"title": title, "kind": kind, "style": Markup(style), "script": Markup(script)}  # noqa: S704 our own files
    return str(render(template, **whole, **values))


def render(template: str, **values: object) -> Markup:
    """Render a file of `templates/` with these values."""
    from markupsafe import Markup

    return Markup(templates().get_template(template).render(**values))  # noqa: S704 escaped by the template


@functools.cache
def templates() -> Environment:
    """The templates with their filters."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        return value if isinstance(value, Markup) else "" if value is None else one_line(str(value))

    found = Environment(
        loader=PackageLoader("saeflow.report"),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    more: dict[str, Any] = {"hash": _hash, "sentence": sentence}
    found.filters.update(more)
    return found


def static(name: str) -> str:
    """The text of a file in `static/`."""
    return (files("saeflow.report") / "static" / name).read_text(encoding="utf-8")


def sentence(text: str) -> Markup:
    """Mark up a sentence: intervals, settings and percentages do not break across lines, and `commands` are code."""
    from markupsafe import Markup, escape

    whole = r"\([^()<>]{1,24}\)|\b[rs] = \u2212?[0-9.]*[0-9]|[0-9] (?:%|pp)|`[^`<>]{1,80}`"

    def kept(found: re.Match[str]) -> str:
        words = found[0]
        return f"<code>{words[1:-1]}</code>" if words[0] == "`" else f'<span class="whole">{words}</span>'

    return Markup(re.sub(whole, kept, str(escape(one_line(text)))))  # noqa: S704 escaped before


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
