"""The single entry point for showing a graph: `render(graph, to=...)`, and its display in a notebook."""

from __future__ import annotations

from contextlib import suppress
from html import escape
from typing import Final, Literal, overload

from saeflow.errors import InvalidArgument, SaeflowError, nearest
from saeflow.flow.graph import FlowGraph
from saeflow.labels.folders import words_for
from saeflow.labels.words import Words, no_words
from saeflow.report.blocks import Page
from saeflow.report.exports import FORMATS
from saeflow.report.html import page_html
from saeflow.report.views import graph_page

HEIGHT: Final = 640
"""Height of a frame in pixels: enough for the figure of a graph with one match per site, and the head of its page."""


@overload
def render(  # pyright: ignore[reportOverlappingOverload]
    thing: FlowGraph, to: Literal["png"], words: Words = ...
) -> bytes: ...


@overload
def render(
    thing: FlowGraph | Page, to: str = ..., words: Words = ..., *, width: int | None = ..., colour: bool = ...
) -> str: ...


def render(
    thing: FlowGraph | Page,
    to: str = "text",
    words: Words = no_words,
    *,
    width: int | None = None,
    colour: bool = False,
) -> str | bytes:
    """`thing` as text for a terminal, or in any format of `saeflow graph -o`: bytes for "png", a string for all others.

    Formats are text, html, json, graphml, svg, png, dot, mermaid, circuit-tracer. `width` (the terminal's by default)
    and `colour` (ANSI, off by default) apply to text only. A `Page` can only become text or HTML; for its figures and
    data, use the results that it was made from.

    Raises:
        InvalidArgument: for an unknown format, or one that a page does not have.
    """
    if to in {"text", "html"}:
        page = graph_page(thing, words) if isinstance(thing, FlowGraph) else thing
        if to == "html":
            return page_html(page)
        from saeflow.report.text import page_text  # only the terminal needs rich

        return page_text(page, width=width, colour=colour)
    known = ("text", *FORMATS) if isinstance(thing, FlowGraph) else ("text", "html")
    if to not in known or not isinstance(thing, FlowGraph):
        raise InvalidArgument(
            f"a {type(thing).__name__} cannot be rendered to {to!r}.{nearest(to, known)} Choose {', '.join(known)}."
        )
    data = FORMATS[to].write(thing, words)
    return data if to == "png" else data.decode()


def graph_html(graph: FlowGraph) -> str:
    """The page of a graph, with the words of its release found on this machine; never uses the network."""
    words: Words = no_words
    if graph.release:
        with suppress(SaeflowError):  # show the graph even if its words cannot be read
            words = words_for(graph.release)
    return render(graph, to="html", words=words)


def framed(page: str, *, title: str, height: int = HEIGHT) -> str:
    """A page as an `iframe` for another page: its scripts run, but can reach neither that page nor the network."""
    return (
        f'<iframe title="{escape(title)}" srcdoc="{escape(page)}" sandbox="allow-scripts" width="100%" '
        f'height="{height}" frameborder="0"></iframe>'
    )
