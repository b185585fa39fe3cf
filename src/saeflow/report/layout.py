"""The layout of a flow graph: positions of its nodes, edges, bands and lanes. The page and the figure share it.

Each layer is a vertical band, and the bands run from left to right. Three horizontal lanes cross them: mlp, res, att.
So the features of a layer are stacked under its name, M_L above R_L and A_L below it. Edges between layers run from
band to band; the edges of modules stay within their band, along its left side:

    layer L-1            layer L
    +-----------+        +-----------+
    | .-M_{L-1} |        | .-M_L     |     features of the same site are stacked in the order of their neighbours
    | '>R_{L-1}-|--------|->R_L      |     (two barycentre sweeps), centred on the lane; more than `ROWS` of them
    | '-A_{L-1} |        | '-A_L     |     may take several columns of the band, row by row; edges pass behind them
    +-----------+        +-----------+

Lengths are SVG user units, which at scale 1 are CSS pixels.
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
BAND_LEFT, BAND_RIGHT, BAND_GAP = 28.0, 8.0, 8.0  # room for the modules' edges, right margin, gap between bands
GUTTER = 36.0  # at the left, for the lane names
HEAD, FOOT = 24.0, 6.0  # room for the layer name at the top of a band, and at its bottom
LANE_HEAD, LANE_FOOT = 22.0, 18.0
TEXT_SIZE, LINE, ID_LINE = 11.5, 14.0, 19.0
PORT = 0.23  # edges from modules enter a box this share of its height above (mlp) or below (att) its middle
LANES = (Part.MLP, Part.RES, Part.ATT)
ROWS = 8
"""Up to this many features of a site always share one column."""

ASPECT = 1.6
"""The ratio of width to height that graphs with taller stacks aim for when choosing their columns."""


@dataclass(frozen=True, slots=True)
class NodeBox:
    """A node's box, and its words wrapped to fit into it. (`x`, `y`) is the upper left corner."""

    node: Node
    x: float
    y: float
    height: float
    lines: tuple[str, ...]

    @property
    def right(self) -> float:
        """The x coordinate of the right edge."""
        return self.x + BOX_WIDTH

    @property
    def middle(self) -> float:
        """The y coordinate of the middle."""
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Wire:
    """An edge as an SVG path, and the position of its score; None where there are too many edges for numbers."""

    edge: Edge
    path: str
    label: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Lane:
    """A horizontal strip across the figure for one part."""

    part: Part
    y: float
    height: float
    empty: bool


@dataclass(frozen=True, slots=True)
class Band:
    """A vertical strip for one layer, over the full height of the figure; it contains all features of the layer."""

    layer: int
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Stub:
    """A bar at the left or right side of a box, where the flow along the residual stream ends."""

    end: End
    x: float
    y: float
    outward: float


@dataclass(frozen=True, slots=True)
class Layout:
    """The geometry of a drawn graph, without colours."""

    width: float
    height: float
    lanes: tuple[Lane, ...]
    bands: tuple[Band, ...]
    boxes: tuple[NodeBox, ...]
    wires: tuple[Wire, ...]
    stubs: tuple[Stub, ...]


def lay_out(graph: FlowGraph, words: Words = no_words) -> Layout:
    """Place every node and edge of `graph`; no two boxes overlap.

    Layers without nodes take no space.
    """
    texts = {node.feature: wrap(headline(words.get(node.feature))) for node in graph.nodes}
    box_height = ID_LINE + 7 + LINE * max((len(lines) for lines in texts.values()), default=0)
    stacks = _stacks(graph)

    # 1. the maximum stack height: the graph should fill a screen rather than be a thin strip
    def size(rows: int) -> tuple[float, float]:
        bands, lanes = _bands(stacks, rows), _lanes(stacks, rows, box_height)
        return bands[-1].x + bands[-1].width if bands else 0.0, lanes[-1].y + lanes[-1].height + FOOT

    most = max([ROWS, *map(len, stacks.values())])
    sizes = {rows: size(rows) for rows in range(ROWS, most + 1)}
    rows = min(sizes, key=lambda rows: max(sizes[rows][0] / ASPECT, sizes[rows][1]))

    # 2. boxes, row by row, centred in their lane and band
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

    # 3. stubs where the flow ends, then edges
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
    """`text` wrapped to at most `lines` lines of at most `width`, with an ellipsis if it was cut."""
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
    """The approximate width of `text` in a sans-serif face: a generous estimate, because fonts differ."""
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
    """The nodes by site, each site ordered to reduce edge crossings."""
    stacks: dict[Site, list[Node]] = {}
    for node in graph.nodes:
        stacks.setdefault(node.feature.site, []).append(node)
    before: dict[FeatureId, list[FeatureId]] = {}
    after: dict[FeatureId, list[FeatureId]] = {}
    for edge in sorted(graph.edges, key=lambda e: e.rank):
        before.setdefault(edge.child, []).append(edge.parent)
        after.setdefault(edge.parent, []).append(edge.child)

    # a row is a node's position relative to the middle of its stack
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
    """The number of columns for a site with `n` features, at most `rows` in each."""
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
    """The lanes of the parts from top to bottom, each as tall as its tallest site."""
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
        if edge.parent.layer == edge.child.layer:  # leave by the left side and return: along the side of the band
            x1, out = start.x, -0.9 * BAND_LEFT
        else:
            x1, out = start.right, max(abs(x2 - start.right) * 0.55, 16.0)
        bend = abs(out)
        y1 = start.middle
        path = f"M{x1:.1f} {y1:.1f}C{x1 + out:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
        label = None
        if fans[edge.child, part] == 1 and len(stacks[edge.child.site]) == len(stacks[edge.parent.site]) == 1:
            # the score of a residual edge is above it; that of a module's edge is beside the box it enters
            above = end.y - 8.0 if part is Part.MLP else end.y + end.height + 16.0
            label = (start.right + 16.0, start.middle - 5.0) if part is Part.RES else (end.x + 1.0, above)
        wires.append(Wire(edge, path, label))
    return tuple(wires)


def port(part: Part) -> float:
    """Where edges from `part` enter a box, as a share of its height below the middle (negative, so above, for mlp)."""
    return {Part.MLP: -PORT, Part.RES: 0.0, Part.ATT: PORT}[part]
