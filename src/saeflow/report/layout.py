"""Where every node, edge, band and lane of a flow graph is drawn. One layout for the page and the figure.

A layer is a band from top to bottom, and bands run left to right. Three lanes cross them: mlp, res, att. So the
features of a layer stand over one another under its name: M_L above R_L, A_L below it. Edges between layers run from
band to band; those of modules stay in their band, along its left side:

    layer L-1            layer L
    +-----------+        +-----------+
    | .-M_{L-1} |        | .-M_L     |     features that share a site are stacked, in the order of their neighbours
    | '>R_{L-1}-|--------|->R_L      |     (two barycentre sweeps), centred on the lane; more than `ROWS` of them
    | '-A_{L-1} |        | '-A_L     |     take several columns of the band, row by row, and edges pass behind them
    +-----------+        +-----------+

Lengths are SVG user units, at scale 1 CSS pixels.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saeflow.flow.graph import Direction, Edge, End, FlowGraph, Node, Reason
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.words import Words, no_words
from saeflow.report.tokens import headline

BOX_WIDTH, STACK_GAP, COLUMN_GAP = 128.0, 18.0, 16.0
BAND_LEFT, BAND_RIGHT, BAND_GAP = 28.0, 8.0, 8.0  # room for the modules' edges, room at the right, between bands
GUTTER = 36.0  # at the left, for the names of lanes
HEAD, FOOT = 24.0, 6.0  # the name of a layer at the top of its band, room at its bottom
LANE_HEAD, LANE_FOOT = 22.0, 18.0
TEXT_SIZE, LINE, ID_LINE = 11.5, 14.0, 19.0
PORT = 0.23  # modules enter a box this share of its height above and below its middle
LANES = (Part.MLP, Part.RES, Part.ATT)
ROWS = 8
"""Features of a site that always stand in one column."""

ASPECT = 1.6
"""Width by height that a graph with taller stacks is given, as far as their columns allow."""


@dataclass(frozen=True, slots=True)
class NodeBox:
    """A node's box, and its words as lines that fit into it. `x`, `y` is the upper left corner."""

    node: Node
    x: float
    y: float
    height: float
    lines: tuple[str, ...]

    @property
    def right(self) -> float:
        """The right edge."""
        return self.x + BOX_WIDTH

    @property
    def middle(self) -> float:
        """The height of the middle."""
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Wire:
    """An edge as an SVG path, and where its score stands; None in a channel too full for numbers."""

    edge: Edge
    path: str
    label: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Lane:
    """A strip across the figure for one part of the layers."""

    part: Part
    y: float
    height: float
    empty: bool


@dataclass(frozen=True, slots=True)
class Band:
    """A layer, from the top of the figure to its bottom: all of its features stand within it."""

    layer: int
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Stub:
    """A bar where the flow ends at the residual stream, at the left or the right of a box."""

    end: End
    x: float
    y: float
    outward: float


@dataclass(frozen=True, slots=True)
class Layout:
    """A drawn graph, without colours."""

    width: float
    height: float
    lanes: tuple[Lane, ...]
    bands: tuple[Band, ...]
    boxes: tuple[NodeBox, ...]
    wires: tuple[Wire, ...]
    stubs: tuple[Stub, ...]


def lay_out(graph: FlowGraph, words: Words = no_words) -> Layout:
    """Place every node and edge of `graph`; no two boxes overlap.

    Layers without a node take no room.
    """
    texts = {node.feature: wrap(headline(words.get(node.feature))) for node in graph.nodes}
    box_height = ID_LINE + 7 + LINE * max((len(lines) for lines in texts.values()), default=0)
    stacks = _stacks(graph)

    # 1. how many features stand over one another: the graph is to fill a screen rather than be a thread
    def size(rows: int) -> tuple[float, float]:
        bands, lanes = _bands(stacks, rows), _lanes(stacks, rows, box_height)
        return bands[-1].x + bands[-1].width if bands else 0.0, lanes[-1].y + lanes[-1].height + FOOT

    most = max([ROWS, *map(len, stacks.values())])
    sizes = {rows: size(rows) for rows in range(ROWS, most + 1)}
    rows = min(sizes, key=lambda rows: max(sizes[rows][0] / ASPECT, sizes[rows][1]))

    # 2. boxes, row by row in the middle of their lane and band
    bands, lanes = _bands(stacks, rows), _lanes(stacks, rows, box_height)
    band_of, lane_of = {band.layer: band for band in bands}, {lane.part: lane for lane in lanes}
    boxes: dict[FeatureId, NodeBox] = {}
    for site, stack in stacks.items():
        band, lane, columns = band_of[site.layer], lane_of[site.part], _columns(len(stack), rows)
        used = -(-len(stack) // columns) * (box_height + STACK_GAP) - STACK_GAP
        top = lane.y + LANE_HEAD + (lane.height - LANE_HEAD - LANE_FOOT - used) / 2
        inner = band.width - BAND_LEFT - BAND_RIGHT
        left = band.x + BAND_LEFT + (inner - columns * (BOX_WIDTH + COLUMN_GAP) + COLUMN_GAP) / 2
        for i, node in enumerate(stack):
            row, column = divmod(i, columns)
            x, y = left + column * (BOX_WIDTH + COLUMN_GAP), top + row * (box_height + STACK_GAP)
            boxes[node.feature] = NodeBox(node, x, y, box_height, texts[node.feature])

    # 3. what joins them
    stubs: list[Stub] = []
    for end in graph.ends:
        if end.reason is not Reason.MODULE_OUTPUT and end.feature in boxes:
            box, back = boxes[end.feature], end.direction is Direction.BACKWARD
            stubs.append(Stub(end, box.x if back else box.right, box.middle, -1.0 if back else 1.0))
    width, height = sizes[rows]
    return Layout(
        width=max(width + BAND_GAP, 320.0),
        height=height,
        lanes=lanes,
        bands=bands,
        boxes=tuple(boxes[node.feature] for node in graph.nodes),
        wires=_wires(graph, boxes, stacks),
        stubs=tuple(stubs),
    )


def wrap(text: str, lines: int = 2, width: float = BOX_WIDTH - 22.0) -> tuple[str, ...]:
    """`text` on at most `lines` lines that fit into `width`, with an ellipsis where it was cut."""
    done: list[str] = []
    rest = text.strip()
    while rest and len(done) < lines:
        if text_width(rest) <= width:
            done.append(rest)
            break
        last = len(done) == lines - 1
        fit = _fitting(rest, width - (text_width("…") if last else 0.0))
        space = rest.rfind(" ", 0, fit + 1)
        cut = space if space > fit // 2 else fit
        head, rest = rest[:cut].rstrip(), rest[cut:].lstrip()
        done.append(f"{head.rstrip(',;.')}…" if last else head)
    return tuple(done)


def text_width(text: str, size: float = TEXT_SIZE) -> float:
    """About how wide `text` is set in a sans-serif face: on the generous side, as fonts differ."""
    return size * sum(_em(char) for char in text)


def _em(char: str) -> float:
    if unicodedata.east_asian_width(char) in "WF":
        return 1.05
    if char in "iljtfrI.,:;'|!()[] ":
        return 0.36
    if char in "mwMW@%…—␣⏎⇥" or ord(char) > 0x2000:
        return 0.95
    return 0.7 if char.isupper() else 0.58


def _fitting(text: str, width: float) -> int:
    """How many characters of `text` fit into `width`; at least 1."""
    room = width
    for i, char in enumerate(text):
        room -= text_width(char)
        if room < 0:
            return max(i, 1)
    return len(text)


def _stacks(graph: FlowGraph) -> dict[Site, list[Node]]:
    """Nodes by site, each site ordered to keep edges from crossing."""
    stacks: dict[Site, list[Node]] = {}
    for node in graph.nodes:
        stacks.setdefault(node.feature.site, []).append(node)
    before: dict[FeatureId, list[FeatureId]] = {}
    after: dict[FeatureId, list[FeatureId]] = {}
    for edge in sorted(graph.edges, key=lambda e: e.rank):
        before.setdefault(edge.child, []).append(edge.parent)
        after.setdefault(edge.parent, []).append(edge.child)

    # rows are counted from the middle of a stack
    rows = {node.feature: i - (len(stack) - 1) / 2 for stack in stacks.values() for i, node in enumerate(stack)}
    for neighbours, sites in ((before, sorted(stacks)), (after, sorted(stacks, reverse=True))):
        for site in sites:
            stack = stacks[site]
            means: dict[FeatureId, float] = {}
            for node in stack:
                near = [rows[f] for f in neighbours.get(node.feature, ()) if f in rows]
                means[node.feature] = sum(near) / len(near) if near else rows[node.feature]
            stack.sort(key=lambda node: means[node.feature])
            rows.update({node.feature: i - (len(stack) - 1) / 2 for i, node in enumerate(stack)})
    return stacks


def _columns(n: int, rows: int) -> int:
    """Columns of a site with `n` features, at most `rows` over one another."""
    return -(-n // rows)


def _bands(stacks: Mapping[Site, Sequence[Node]], rows: int) -> tuple[Band, ...]:
    """The layers from left to right, each as wide as its widest site."""
    bands: list[Band] = []
    x = GUTTER + BAND_GAP
    for layer in sorted({site.layer for site in stacks}):
        columns = max(_columns(len(stack), rows) for site, stack in stacks.items() if site.layer == layer)
        width = BAND_LEFT + columns * (BOX_WIDTH + COLUMN_GAP) - COLUMN_GAP + BAND_RIGHT
        bands.append(Band(layer, x, width))
        x += width + BAND_GAP
    return tuple(bands)


def _lanes(stacks: Mapping[Site, Sequence[Node]], rows: int, box_height: float) -> tuple[Lane, ...]:
    """The parts from top to bottom, each as high as its highest site."""
    lanes: list[Lane] = []
    y = HEAD
    for part in LANES:
        heights = [-(-len(stack) // _columns(len(stack), rows)) for site, stack in stacks.items() if site.part is part]
        inner = max(heights) * (box_height + STACK_GAP) - STACK_GAP + LANE_FOOT if heights else 0.0
        lanes.append(Lane(part, y, LANE_HEAD + inner, not heights))
        y += LANE_HEAD + inner
    return tuple(lanes)


def _wires(
    graph: FlowGraph, boxes: Mapping[FeatureId, NodeBox], stacks: Mapping[Site, Sequence[Node]]
) -> tuple[Wire, ...]:
    drawn = [e for e in graph.edges if e.parent in boxes and e.child in boxes]
    fans: dict[tuple[FeatureId, Part], int] = {}
    for edge in drawn:
        key = (edge.child, edge.parent.part)
        fans[key] = fans.get(key, 0) + 1
    wires: list[Wire] = []
    for edge in drawn:
        start, end, part = boxes[edge.parent], boxes[edge.child], edge.parent.part
        x2, y2 = end.x, end.middle + port(part) * end.height
        if edge.parent.layer == edge.child.layer:  # out of the left side and in again: along the side of the band
            x1, out = start.x, -0.9 * BAND_LEFT
        else:
            x1, out = start.right, max(abs(x2 - start.right) * 0.55, 16.0)
        bend = abs(out)
        y1 = start.middle
        path = f"M{x1:.1f} {y1:.1f}C{x1 + out:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
        label = None
        if fans[edge.child, part] == 1 and len(stacks[edge.child.site]) == len(stacks[edge.parent.site]) == 1:
            # a score stands over a residual edge, and at the box that a module's edge enters
            above = end.y - 8.0 if part is Part.MLP else end.y + end.height + 16.0
            label = (start.right + 16.0, start.middle - 5.0) if part is Part.RES else (end.x + 1.0, above)
        wires.append(Wire(edge, path, label))
    return tuple(wires)


def port(part: Part) -> float:
    """Where edges from `part` enter a box: a share of its height below the middle (mlp above it)."""
    return {Part.MLP: -PORT, Part.RES: 0.0, Part.ATT: PORT}[part]
