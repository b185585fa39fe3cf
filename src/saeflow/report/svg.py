"""A laid-out flow graph as SVG: inside a page, or on its own for a README or a paper.

Colours are presentation attributes, which any SVG viewer shows; in a browser, static/figure.css overrides them in dark
mode. Every string is escaped, and is used in text nodes and attributes only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import Any

from saeflow.flow.graph import Edge, FlowGraph, MeasuredEdge, MeasuredNode, Node
from saeflow.flow.scores import Evolution
from saeflow.ids import Part
from saeflow.labels.words import Words, no_words, silent
from saeflow.report.document import static
from saeflow.report.layout import (
    BAND_GAP,
    BOX_WIDTH,
    GUTTER,
    ID_LINE,
    LANE_FOOT,
    LANE_HEAD,
    LINE,
    TEXT_SIZE,
    Band,
    Lane,
    Layout,
    NodeBox,
    Stub,
    Wire,
    lay_out,
    port,
    wrap,
)
from saeflow.report.tokens import headline, one_line
from saeflow.report.views import SILENT, facts, p_text, score_text

INK, MUTED, PAPER, BAND, WIRE = "#22201c", "#6a655b", "#fffefb", "#f4f1e9", "#5c574d"
# Blue, amber, vermilion and grey remain distinct for colour-blind readers; the letters A-D repeat the case.
TONES = {"translated": "#2a66a8", "processed": "#946900", "newborn": "#bf4318", "unexplained": "#77726a"}
MODULE = "#17786a"
KINDS = {
    "stream": ("#2a66a8", "residual stream"),
    "module": (MODULE, "module"),
    "error": ("#77726a", "what an SAE leaves unexplained"),
    "logit": ("#946900", "logit"),
}
"""Colours and names of the kinds of nodes in a prompt graph."""

FACE = "Helvetica, Arial, sans-serif"
_LEGEND_HEIGHT = 64.0  # for a figure wide enough to fit the keys on one line


def graph_svg(graph: FlowGraph, words: Words = no_words) -> str:
    """`graph` as a standalone SVG document with a legend, light or dark as its reader prefers."""
    layout = lay_out(graph, words)
    style = static("figure.css")
    label = escape("What happened at a token" if graph.measured else f"Feature flow of {graph.seed}")
    width, height = (layout.width, layout.height + (_LEGEND_HEIGHT if layout.width > 620 else 2 * _LEGEND_HEIGHT))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="flow" role="img" aria-label="{label}" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.1f} {height:.1f}">'
        f"<style>{style}</style>"
        f'<rect class="paper" width="100%" height="100%" fill="{PAPER}"/>'
        f"{draw(graph, words, layout)}{_legend(graph, words, layout)}</svg>\n"
    )


def figure_svg(graph: FlowGraph, words: Words = no_words) -> str:
    """`graph` as an element for a page that has figure.css and its own legend."""
    layout = lay_out(graph, words)
    name = "What happened at a token" if graph.measured else f"Feature flow of {graph.seed}"
    label = escape(f"{name}, {len(graph.nodes)} {'nodes' if graph.measured else 'features'}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="flow" role="group" aria-label="{label}" '
        f'width="{layout.width:.0f}" height="{layout.height:.0f}" '
        f'viewBox="0 0 {layout.width:.1f} {layout.height:.1f}">{draw(graph, words, layout)}</svg>'
    )


def draw(graph: FlowGraph, words: Words, layout: Layout) -> str:
    """The contents of the figure in painting order: bands, edges, stubs, nodes, scores and lane names."""
    empty = [lane for lane in layout.lanes if lane.empty and lane.part is not Part.RES]
    return _tag(
        "g",
        *(_band(graph, band, layout.height) for band in layout.bands),
        *(_wire(wire) for wire in layout.wires),
        *(_stub(stub) for stub in layout.stubs),
        *(_node(graph, words, box) for box in layout.boxes),
        *(_score(wire) for wire in layout.wires),
        *(_empty_lane(graph, lane) for lane in empty),
        _tag("g", *(_lane_name(lane) for lane in layout.lanes), class_="lane-names"),
        font_family=FACE,
    )


def strength(edge: Edge) -> float:
    """What the width of an edge shows: its absolute effect if it was measured, else its cosine."""
    return abs(edge.effect) if isinstance(edge, MeasuredEdge) else edge.score


def wire_width(score: float) -> float:
    """The width of an edge: proportional to its score, never invisible."""
    return 0.6 + 4.2 * max(score, 0.0)


def wire_opacity(score: float) -> float:
    """The opacity of an edge, which grows with its score."""
    return 0.25 + 0.6 * min(max(score, 0.0), 1.0)


def tone_of(node: Node) -> tuple[str, str]:
    """A node's CSS class and colour: by its case, `module` for module features, by its kind in a prompt graph."""
    if isinstance(node, MeasuredNode):
        kind = node.kind if node.kind != "feature" else "stream" if node.feature.part is Part.RES else "module"
        return kind, KINDS[kind][0]
    if node.feature.part is not Part.RES:
        return "module", MODULE
    name = "unexplained" if node.evolution is None else node.evolution.value
    return f"case-{name}" if node.evolution else "case-none", TONES[name]


def _tag(name: str, *inner: str, text: str = "", **attributes: str | float) -> str:
    """An element with escaped attributes and `text`, and unescaped `inner`; `stroke_width` becomes `stroke-width`."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(f"{v:.4g}" if abs(v) < 10 else f"{v:.1f}")}"'
        if isinstance(v, int | float)
        else f' {key.rstrip("_").replace("_", "-")}="{escape(v)}"'
        for key, v in attributes.items()
    )
    return f"<{name}{said}>{escape(text)}{''.join(inner)}</{name}>"


def _text(x: float, y: float, text: str, kind: str, **more: str | float) -> str:
    """A line of text; the first class in `kind`, `ink` or `muted`, sets its colour."""
    fill = INK if kind.startswith("ink") else MUTED
    base: dict[str, Any] = {"x": x, "y": y, "font_size": 10.5, "fill": fill}
    return _tag("text", text=text, class_=kind, **(base | more))


def _band(graph: FlowGraph, band: Band, height: float) -> str:
    """A layer's band across all three lanes, with the layer's name at the top."""
    ground = _tag("rect", class_="band", x=band.x, y=0, width=band.width, height=height, rx=6, fill=BAND)
    middle = band.x + band.width / 2
    name = _text(middle, 17, graph.layer_name(band.layer), "muted layer-name", text_anchor="middle", font_size=11.5)
    return _tag("g", ground, name, class_="layer", data_layer=str(band.layer))


def _lane_name(lane: Lane) -> str:
    """The name of a lane on its own background, which a page keeps at the left while the rest scrolls."""
    ground = _tag("rect", class_="paper", x=0, y=lane.y, width=GUTTER - 4, height=lane.height, fill=PAPER)
    x, y = GUTTER / 2 - 2, lane.y + (lane.height + LANE_HEAD - LANE_FOOT) / 2 + 4
    return ground + _text(x, y, lane.part.value, "muted lane-name", text_anchor="middle", font_size=12)


def _empty_lane(graph: FlowGraph, lane: Lane) -> str:
    matched = any(node.scores is not None and node.scores.of(lane.part) is not None for node in graph.nodes)
    said = f"no {lane.part.value} feature of any layer "
    line = "its threshold" if graph.thresholds.fdr else f"{graph.thresholds.of(lane.part):g}"
    said += f"reaches {line}" if matched else "was matched"
    return _text(GUTTER + BAND_GAP + 6, lane.y + 15, said, "muted")


def _wire(wire: Wire) -> str:
    edge = wire.edge
    module = edge.parent.part is not Part.RES
    title = f"{edge.parent} to {edge.child}: {score_text(edge.score)}, match {edge.rank + 1}"
    if isinstance(edge, MeasuredEdge):
        named = f"match {edge.rank + 1}" if edge.named else "not named by matching"
        if edge.named is None:
            named = edge.link
        control = "" if edge.control is None else f" (control {score_text(edge.control)})"
        control += "" if edge.direct is None else f", direct path {score_text(edge.direct)}"
        title = f"{edge.parent} to {edge.child}: effect {score_text(edge.effect)}{control}, "
        title += f"cosine {score_text(edge.score)}, {named}" if math.isfinite(edge.score) else named
    title += "" if edge.p is None else f", p = {p_text(edge.p)}"
    title += ", mutual best match" if edge.mutual else ""
    title += ", no better than chance" if edge.by_chance else ""
    missed = isinstance(edge, MeasuredEdge) and edge.named is False
    dashes = {"stroke_dasharray": "2 4"} if edge.by_chance or missed else {}
    return _tag(
        "path",
        _tag("title", text=title),
        class_=("wire module" if module else "wire") + (" chance" if edge.by_chance else ""),
        data_parent=str(edge.parent),
        data_child=str(edge.child),
        d=wire.path,
        fill="none",
        color=MODULE if module else WIRE,
        stroke="currentColor",
        stroke_width=wire_width(strength(edge)),
        stroke_opacity=wire_opacity(strength(edge)),
        **dashes,
    )


def _score(wire: Wire) -> str:
    if wire.label is None:
        return ""
    return _text(
        *wire.label,
        score_text(wire.edge.effect if isinstance(wire.edge, MeasuredEdge) else wire.edge.score),
        "muted wire-score",
        text_anchor="middle" if wire.edge.parent.part is Part.RES else "start",
        data_parent=str(wire.edge.parent),
        data_child=str(wire.edge.child),
    )


def _stub(stub: Stub) -> str:
    x = stub.x + 11 * stub.outward
    return _tag(
        "path",
        _tag("title", text=stub.end.sentence),
        class_="stub",
        data_id=str(stub.end.feature),
        d=f"M{stub.x:.1f} {stub.y:.1f}H{x:.1f}M{x:.1f} {stub.y - 8:.1f}v16",
        fill="none",
        color=MUTED,
        stroke="currentColor",
        stroke_width=1.5,
    )


def _node(graph: FlowGraph, words: Words, box: NodeBox) -> str:
    node = box.node
    kind, colour = tone_of(box.node)
    dead = bool(silent(words, node.feature))
    name = _spoken(graph, box, headline(words.get(node.feature)), dead=dead)
    kind += " silent" if dead else ""
    return _tag(
        "g",
        _tag("title", text=name),
        *(_ring(box) if node.feature == graph.seed else ()),
        *_box(box),
        *_inscription(box, words, dead=dead),
        *(_joint(box.x, box.middle + port(part) * box.height) for part in node.joins),
        class_=f"node {kind} seed" if node.feature == graph.seed else f"node {kind}",
        data_id=str(node.feature),
        tabindex="0",
        role="button",
        aria_label=name,
        color=colour,
    )


def _spoken(graph: FlowGraph, box: NodeBox, text: str, *, dead: bool) -> str:
    node = box.node
    seed = "the strongest on the target" if graph.measured else "the seed"
    said = [str(node.feature), text, seed if node.feature == graph.seed else ""]
    if isinstance(node, MeasuredNode):
        said.append(node.said)
    if node.evolution is not None:
        said.append(f"case {node.evolution.case}, {node.evolution.value}")
    said += [f"linear circuit with {part}" for part in node.joins]
    said += ["silent: it fired on none of the texts its words were made from"] if dead else []
    return one_line(". ".join(part for part in said if part))


def _ring(box: NodeBox) -> Iterable[str]:
    x, y, width, height = box.x - 4, box.y - 4, BOX_WIDTH + 8, box.height + 8
    line: dict[str, Any] = {"fill": "none", "stroke": INK, "stroke_width": 1.8}
    yield _tag("rect", class_="ring ink-line", x=x, y=y, width=width, height=height, rx=6, **line)


def _box(box: NodeBox) -> Iterable[str]:
    x, y, h = box.x, box.y, box.height
    line: dict[str, Any] = {"fill": PAPER, "stroke": "currentColor", "stroke_width": 1.2}
    unexplained = isinstance(box.node, MeasuredNode) and box.node.kind == "error"
    if unexplained or box.node.evolution is Evolution.UNEXPLAINED:
        line["stroke_dasharray"] = "4 3"
    yield _tag("rect", class_="box paper", x=x, y=y, width=BOX_WIDTH, height=h, rx=3, **line)
    band = f"M{x + 3:.1f} {y:.1f}h3v{h:.1f}h-3a3 3 0 0 1 -3 -3v-{h - 6:.1f}a3 3 0 0 1 3 -3z"
    yield _tag("path", d=band, fill="currentColor")


def _inscription(box: NodeBox, words: Words, *, dead: bool) -> Iterable[str]:
    x, y = box.x + 13, box.y + ID_LINE - 4
    yield _text(
        x,
        y,
        f"{box.node.feature} {SILENT}" if dead else str(box.node.feature),
        "muted id",
        font_family="Menlo, Consolas, monospace",
    )
    if box.node.evolution is not None:
        letter: dict[str, Any] = {"text_anchor": "end", "font_weight": "700", "fill": "currentColor"}
        case = box.node.evolution.case
        yield _tag("text", text=case, class_="letter", x=box.right - 8, y=y, font_size=11, **letter)
    for i, line in enumerate(box.lines):
        yield _text(x, y + (i + 1) * LINE, line, "ink words", font_size=TEXT_SIZE)
    # When zoomed out, a page shows this instead of the other text in the box: lane and band give the rest of the id.
    middle: dict[str, Any] = {"text_anchor": "middle", "font_size": 27, "display": "none"}
    other = isinstance(box.node, MeasuredNode) and box.node.kind != "feature"
    brief = headline(words.get(box.node.feature)).split(" ")[0] if other else str(box.node.feature.index)
    yield _text(box.x + BOX_WIDTH / 2 + 3, box.middle + 10, brief, "ink brief", **middle)


def _joint(x: float, y: float) -> str:
    """The mark of a linear circuit, at the point where the module's edge enters the box."""
    line: dict[str, Any] = {"stroke": "currentColor", "stroke_width": 1.5}
    disc = _tag("circle", class_="paper", cx=x, cy=y, r=6, fill=PAPER, **line)
    plus = _tag("path", d=f"M{x - 3.2:.1f} {y:.1f}h6.4M{x:.1f} {y - 3.2:.1f}v6.4", **line)
    return _tag("g", disc, plus, class_="circuit module", color=MODULE)


def _legend(graph: FlowGraph, words: Words, layout: Layout) -> str:
    """Lines under the figure: the meaning of its colours and marks, then the facts of the graph."""
    y, x = layout.height + 22.0, 12.0
    parts: list[str] = []
    cases = [(f"case-{c.value}", TONES[c.value], f"{c.case} {c.value}") for c in Evolution]
    cases += [("module", MODULE, "module"), ("circuit", MODULE, "linear circuit")]
    if graph.measured:
        cases = [(kind, colour, text) for kind, (colour, text) in KINDS.items()]
    for kind, colour, text in cases:
        width = 30 + 6.2 * len(text)
        if x + width > layout.width:
            x, y = 12.0, y + 16
        if kind == "circuit":
            parts.append(_joint(x + 5, y - 4))
        else:
            size: dict[str, Any] = {"width": 10, "height": 10, "rx": 2, "fill": "currentColor"}
            parts.append(_tag("rect", class_=kind, x=x, y=y - 9, color=colour, **size))
        parts.append(_text(x + 15, y, text, "ink"))
        x += width
    for mark, there in (
        (f"{SILENT} silent", any(silent(words, node.feature) for node in graph.nodes)),
        ("dashed line: no better than chance", any(edge.by_chance for edge in graph.edges)),
        ("width: effect; dashed: not named by matching", graph.measured),
    ):
        if there:
            width = 15 + 6.2 * len(mark)
            if x + width > layout.width:
                x, y = 12.0, y + 16
            parts.append(_text(x, y, mark, "ink"))
            x += width
    left = {"features", "edges", *(("seed", "thresholds") if graph.measured else ())}
    said = [f"{key} {value}" for key, value in facts(graph) if key not in left]
    for i, line in enumerate(wrap("; ".join(said), lines=4, width=layout.width - 24)):
        parts.append(_text(12, y + 26 + 15 * i, line, "muted"))
    return _tag("g", *parts, class_="legend", font_family=FACE)
