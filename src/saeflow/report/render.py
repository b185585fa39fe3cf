"""The one way from a graph to something to read: `render(graph, to=...)`, and what a notebook shows of it."""

from __future__ import annotations

import json
from contextlib import suppress
from html import escape
from typing import Final, Literal

from saeflow.errors import InvalidArgument, SaeflowError
from saeflow.flow.graph import FlowGraph
from saeflow.labels.folders import words_for
from saeflow.labels.words import Words, no_words
from saeflow.report.blocks import Page
from saeflow.report.html import page_html
from saeflow.report.svg import graph_svg
from saeflow.report.views import graph_data, graph_page

Target = Literal["text", "html", "json", "svg"]

HEIGHT: Final = 640
"""Pixels of a frame: the figure of a graph with one match a site, and the head of its page."""


def render(
    thing: FlowGraph | Page,
    to: Target | str = "text",
    words: Words = no_words,
    *,
    width: int | None = None,
    colour: bool = False,
) -> str:
    """`thing` as text for a terminal, one HTML file, JSON, or an SVG figure.

    `width` (the terminal's by default) and `colour` (ANSI, off by default) matter to text only. A page
    of other blocks has text and HTML; its figures and data come from the results it was made of.

    Raises:
        InvalidArgument: for a target that does not exist, or that a page does not have.
    """
    if to in {"text", "html"}:
        page = graph_page(thing, words) if isinstance(thing, FlowGraph) else thing
        if to == "html":
            return page_html(page)
        from saeflow.report.text import page_text  # the terminal alone needs rich

        return page_text(page, width=width, colour=colour)
    if to not in {"json", "svg"} or not isinstance(thing, FlowGraph):
        has = "'text', 'html', 'json' or 'svg'" if isinstance(thing, FlowGraph) else "'text' or 'html'"
        raise InvalidArgument(f"a {type(thing).__name__} cannot be rendered to {to!r}. Choose {has}.")
    if to == "svg":
        return graph_svg(thing, words)
    text = json.dumps(graph_data(thing, words), indent=1, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8") + "\n"


def graph_html(graph: FlowGraph) -> str:
    """The page of a graph, with the words of its release that are on this machine; never asks the network."""
    words: Words = no_words
    if graph.release:
        with suppress(SaeflowError):  # words that cannot be read are no reason to show no graph
            words = words_for(graph.release)
    return render(graph, to="html", words=words)


def framed(page: str, *, title: str, height: int = HEIGHT) -> str:
    """A page as an element to stand in another: its scripts run, but can reach neither that page nor the network."""
    return (
        f'<iframe title="{escape(title)}" srcdoc="{escape(page)}" sandbox="allow-scripts" width="100%" '
        f'height="{height}" frameborder="0"></iframe>'
    )
