"""What a notebook shows of a graph: its page in a frame, apart from the styles and scripts around it."""

from __future__ import annotations

from html import escape
from typing import Final

from saeflow.errors import SaeflowError
from saeflow.flow.graph import FlowGraph
from saeflow.labels.sources import words_for
from saeflow.labels.words import Words, no_words
from saeflow.report.render import render

HEIGHT: Final = 640
"""Pixels of a frame: the figure of a graph with one match a site, and the head of its page."""


def graph_html(graph: FlowGraph) -> str:
    """The page of a graph, with the words of its release that are on this machine; never asks the network."""
    return render(graph, to="html", words=_known(graph.release))


def framed(page: str, *, title: str, height: int = HEIGHT) -> str:
    """A page as an element to stand in another: its scripts run, but can reach neither that page nor the network."""
    return (
        f'<iframe title="{escape(title)}" srcdoc="{escape(page)}" sandbox="allow-scripts" width="100%" '
        f'height="{height}" frameborder="0"></iframe>'
    )


def _known(release: str) -> Words:
    try:
        return words_for(release) if release else no_words
    except SaeflowError:  # words that cannot be read are no reason to show no graph
        return no_words
