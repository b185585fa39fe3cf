"""Graphs as text that other programs draw: DOT for Graphviz, Mermaid for Markdown.

Layers run from left to right, as in the figure. Words are quoted for each language, so that a label may
hold anything.
"""

from __future__ import annotations

from saeflow.flow.graph import FlowGraph, Node
from saeflow.ids import FeatureId, Part
from saeflow.labels.words import Words, no_words
from saeflow.report.svg import MODULE, TONES, WIRE
from saeflow.report.tokens import headline, one_line
from saeflow.report.views import score_text


def dot(graph: FlowGraph, words: Words = no_words) -> bytes:
    """`graph` in the DOT language: nodes of a part in line, the width of an edge by its score."""
    lines = [
        "digraph flow {",
        f"  label={_quoted(f'Feature flow of {graph.seed}, {graph.release}')};",
        "  rankdir=LR; fontname=Helvetica;",
        '  node [shape=box, style="rounded", fontname=Helvetica, fontsize=11];',
        f'  edge [fontname=Helvetica, fontsize=9, color="{WIRE}"];',
    ]
    lines += [f"  {_dot_node(graph, words, node)}" for node in graph.nodes]
    for edge in graph.edges:
        ends = f"{_quoted(str(edge.parent))} -> {_quoted(str(edge.child))}"
        width = f"penwidth={0.5 + 3 * max(edge.score, 0.0):.2f}"
        lines.append(f'  {ends} [label="{score_text(edge.score)}", weight={1 + round(8 * abs(edge.score))}, {width}];')
    return "\n".join([*lines, "}", ""]).encode("utf-8", "replace")


def _dot_node(graph: FlowGraph, words: Words, node: Node) -> str:
    said = [str(node.feature), headline(words.get(node.feature))]
    text = "\\n".join(_escaped(one_line(part)) for part in said if part)
    bold = ", penwidth=2.5" if node.feature == graph.seed else ""
    return f'{_quoted(str(node.feature))} [label="{text}", group={node.feature.part}, color="{_colour(node)}"{bold}];'


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def mermaid(graph: FlowGraph, words: Words = no_words) -> bytes:
    """`graph` as a Mermaid flowchart, which GitHub and many editors draw in Markdown."""
    # No subgraph for a layer: it would push each layer below the one before it.
    lines = ["flowchart LR", *(f"  {_mermaid_node(graph, words, node)}" for node in graph.nodes)]
    for edge in graph.edges:
        arrow = "-->" if edge.parent.part is Part.RES else "-.->"
        lines.append(f"  {_name(edge.parent)} {arrow}|{score_text(edge.score)}| {_name(edge.child)}")
    used = {_tone(node): _colour(node) for node in graph.nodes}
    lines += [f"  classDef {tone} stroke:{colour}" for tone, colour in used.items()]
    return "\n".join([*lines, ""]).encode("utf-8", "replace")


def _mermaid_node(graph: FlowGraph, words: Words, node: Node) -> str:
    said = [str(node.feature), one_line(headline(words.get(node.feature)))]
    # Entities of HTML are the one way to write quotes and brackets that Mermaid takes everywhere.
    text = "<br/>".join(_entities(part) for part in said if part)
    opening, closing = ("([", "])") if node.feature == graph.seed else ("[", "]")
    return f'{_name(node.feature)}{opening}"{text}"{closing}:::{_tone(node)}'


def _entities(text: str) -> str:
    return "".join(char if char.isalnum() or char in " ,./-" else f"#{ord(char)};" for char in text)


def _name(feature: FeatureId) -> str:
    return f"f{feature.layer}_{feature.part}_{feature.index}"


def _tone(node: Node) -> str:
    if node.feature.part is not Part.RES:
        return "module"
    return "unexplained" if node.evolution is None else node.evolution.value


def _colour(node: Node) -> str:
    tone = _tone(node)
    return MODULE if tone == "module" else TONES[tone]
