"""A page as one HTML file that loads nothing: inlined style and script, allowed by their hashes alone.

The pages of results folders and of reproductions are made of it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from saeflow.report.tokens import one_line


def document(
    title: str, *, styles: Sequence[str], more_style: str = "", scripts: Sequence[str], body: str, kind: str
) -> str:
    """The page as one HTML document.

    Args:
        title: in the title bar; escaped here.
        styles: files of `static/`, in order.
        more_style: rules after them.
        scripts: files of `static/`, in order; they share one scope.
        body: HTML, escaped by whoever made it.
        kind: the class of `body`.
    """
    style = "".join(static(name) for name in styles) + more_style
    script = '"use strict";\n' + "".join(static(name) for name in scripts)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="generator" content="saeflow">\n'
        f'<title>{safe(title)}</title>\n<style>{style}</style>\n</head>\n<body class="{kind}">\n'
        f"{body}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def static(name: str) -> str:
    """A file of `static/`."""
    return (files("saeflow.report") / "static" / name).read_text(encoding="utf-8")


def safe(text: object) -> str:
    """Words from anywhere as HTML text, on one line, control characters shown."""
    return escape(one_line(str(text)))


def sentence(text: str) -> str:
    """A sentence whose intervals, settings and percentages are not broken over lines, and whose `commands` are code."""
    whole = r"\([^()<>]{1,24}\)|\b[rs] = \u2212?[0-9.]*[0-9]|[0-9] (?:%|pp)|`[^`<>]{1,80}`"

    def kept(found: re.Match[str]) -> str:
        words = found[0]
        return f"<code>{words[1:-1]}</code>" if words[0] == "`" else f'<span class="whole">{words}</span>'

    return re.sub(whole, kept, safe(text))


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
