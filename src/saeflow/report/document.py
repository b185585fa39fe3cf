"""A page as one HTML file that loads nothing: inlined style and script, allowed by their hashes alone.

Templates lie in `templates/`. Whatever a template shows is escaped and set on one line with its control characters
shown, unless it is `Markup` already: names of models, data sets, labels and texts come from files that others wrote.
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
        template: a file of `templates/` that extends `document.html.j2`; that one itself shows `body`, a `Markup`.
        title: in the title bar.
        styles: files of `static/`, in order.
        scripts: files of `static/`, in order; they share one scope: `import` and `export` fall away.
        more_style: rules after the files of `styles`.
        kind: the class of `body`.
        values: what the template shows.
    """
    from markupsafe import Markup

    style = "".join(static(name) for name in styles) + more_style
    script = '"use strict";\n' + "".join(_MODULE.sub("", static(name)) for name in scripts)
    whole = {"title": title, "kind": kind, "style": Markup(style), "script": Markup(script)}  # noqa: S704 our own files
    return str(render(template, **whole, **values))


def render(template: str, **values: object) -> Markup:
    """A file of `templates/` with these values."""
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
    """A file of `static/`."""
    return (files("saeflow.report") / "static" / name).read_text(encoding="utf-8")


def sentence(text: str) -> Markup:
    """A sentence whose intervals, settings and percentages are not broken over lines, and whose `commands` are code."""
    from markupsafe import Markup, escape

    whole = r"\([^()<>]{1,24}\)|\b[rs] = \u2212?[0-9.]*[0-9]|[0-9] (?:%|pp)|`[^`<>]{1,80}`"

    def kept(found: re.Match[str]) -> str:
        words = found[0]
        return f"<code>{words[1:-1]}</code>" if words[0] == "`" else f'<span class="whole">{words}</span>'

    return Markup(re.sub(whole, kept, str(escape(one_line(text)))))  # noqa: S704 escaped before


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
