"""A flow graph in the formats of other tools: `export(graph, "circuit-tracer")`. No torch.

Pictures (`svg`, `png`) are the figure of the page; `html` is the page; `json` is what saeflow reads back.
`graphml` opens in networkx, Gephi and yEd, `dot` in Graphviz, `mermaid` in Markdown, `circuit-tracer` in the
viewer of attribution graphs and on Neuronpedia.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from saeflow.errors import InvalidArgument
from saeflow.flow.graph import FlowGraph
from saeflow.labels.words import Words, no_words
from saeflow.report.exports.circuit_tracer import circuit_tracer_json
from saeflow.report.exports.drawn_text import dot, mermaid
from saeflow.report.exports.picture import png
from saeflow.report.render import render


@dataclass(frozen=True, slots=True)
class Format:
    """A format to export to.

    Attributes:
        suffix: the ending of a file, such as ".graph.json"; no two formats share one.
        media_type: what a server says of it.
        title: what it is for, in a few words.
    """

    suffix: str
    media_type: str
    title: str
    write: Callable[[FlowGraph, Words], bytes]


def _rendered(to: str) -> Callable[[FlowGraph, Words], bytes]:
    return lambda graph, words: render(graph, to=to, words=words).encode()


FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "html": Format(".graph.html", "text/html; charset=utf-8", "one page that opens offline", _rendered("html")),
        "json": Format(".graph.json", "application/json", "what saeflow reads back", _rendered("json")),
        "graphml": Format(
            ".graph.graphml", "application/graphml+xml", "networkx, Gephi, yEd", lambda g, _: g.to_graphml().encode()
        ),
        "svg": Format(".graph.svg", "image/svg+xml", "the figure, for papers", _rendered("svg")),
        "png": Format(".graph.png", "image/png", "the figure, for slides", png),
        "dot": Format(".graph.dot", "text/vnd.graphviz", "Graphviz", dot),
        "mermaid": Format(".graph.mmd", "text/vnd.mermaid", "a diagram in Markdown", mermaid),
        "circuit-tracer": Format(
            ".circuit-tracer.json", "application/json", "circuit-tracer's viewer and Neuronpedia", circuit_tracer_json
        ),
    }
)
"""What a graph can be written as, by the name that `--formats` takes."""


def export(graph: FlowGraph, to: str, words: Words = no_words) -> bytes:
    """`graph` as a file of the format `to`, one of FORMATS.

    Raises:
        InvalidArgument: for another format.
    """
    return format_named(to).write(graph, words)


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        InvalidArgument: when there is none.
    """
    if name not in FORMATS:
        raise InvalidArgument(f"graphs are not exported to {name!r}. Choose one of {', '.join(FORMATS)}.")
    return FORMATS[name]
