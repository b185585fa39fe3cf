"""Where every node, edge and lane of a flow graph is drawn. One layout for the page and the figure.

Layers run left to right and three lanes top to bottom: mlp, res, att. A box of R_L stands in column L;
boxes of M_L and A_L, which the model computes between R_{L-1} and R_L, stand to the left of it. Columns
are a channel apart, edges run in channels only, so no edge crosses a box:

    | M_L  |          x - SHIFT          features that share a site are stacked, in the order of
    .......\\          x - CHANNEL       their neighbours (two barycentre sweeps), centred on
    R_{L-1} --> R_L  x                  the lane
    ......./
    | A_L  |

Lengths are SVG user units, at scale 1 CSS pixels.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from saeflow.flow.graph import Direction, Edge, End, FlowGraph, Node, Reason
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.words import Words, no_words
from saeflow.report.tokens import headline

BOX_WIDTH, CHANNEL, STACK_GAP, MARGIN = 142.0, 54.0, 18.0, 22.0
GUTTER = 40.0  # at the left, for the names of lanes
PITCH = BOX_WIDTH + CHANNEL
MODULE_CHANNEL = 30.0  # between a module's box and the residual box it writes into
SHIFT = BOX_WIDTH + MODULE_CHANNEL
LANE_HEAD, LANE_FOOT = 28.0, 14.0
TEXT_SIZE, LINE, ID_LINE = 11.5, 14.0, 19.0
PORT = 0.23  # modules enter a box this share of its height above and below its middle
LANES = (Part.MLP, Part.RES, Part.ATT)


@dataclass(frozen=True, slots=True)
class Place:
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
    """A band across the figure for one part of the layers."""

    part: Part
    y: float
    height: float
    empty: bool


@dataclass(frozen=True, slots=True)
class Stub:
    """A bar where the flow ends at the residual stream, at the left or the right of a box."""

    end: End
    x: float
    y: float
    outward: float


@dataclass(frozen=True, slots=True)
class Layout:
    """A drawn graph, without colours. `columns` holds each layer with the middle of its column."""

    width: float
    height: float
    lanes: tuple[Lane, ...]
    columns: tuple[tuple[int, float], ...]
    places: tuple[Place, ...]
    wires: tuple[Wire, ...]
    stubs: tuple[Stub, ...]


def lay_out(graph: FlowGraph, words: Words = no_words) -> Layout:
    """Place every node and edge of `graph`; no two boxes overlap.

    Layers without a node take no room.
    """
    texts = {node.feature: wrap(headline(words.get(node.feature))) for node in graph.nodes}
    height = ID_LINE + 7 + LINE * max((len(lines) for lines in texts.values()), default=0)
    stacks = _stacks(graph)
    lanes = _lanes(stacks, height)
    layers = sorted({site.layer for site in stacks})
    modules_first = any(s.layer == layers[0] and s.part is not Part.RES for s in stacks) if layers else False
    left = GUTTER + MARGIN + (SHIFT if modules_first else 0.0)
    x_of = {layer: left + i * PITCH for i, layer in enumerate(layers)}
    places: dict[FeatureId, Place] = {}
    for site, stack in stacks.items():
        lane = lanes[site.part]
        used = len(stack) * height + (len(stack) - 1) * STACK_GAP
        top = lane.y + LANE_HEAD + (lane.height - LANE_HEAD - LANE_FOOT - used) / 2
        x = x_of[site.layer] - (0.0 if site.part is Part.RES else SHIFT)
        for i, node in enumerate(stack):
            y = top + i * (height + STACK_GAP)
            places[node.feature] = Place(node, x, y, height, texts[node.feature])
    right = max((place.right for place in places.values()), default=left) + MARGIN + 10.0
    bottom = max(lane.y + lane.height for lane in lanes.values())
    return Layout(
        width=max(right, 320.0),
        height=bottom,
        lanes=tuple(lanes.values()),
        columns=tuple((layer, x + BOX_WIDTH / 2) for layer, x in x_of.items()),
        places=tuple(places[node.feature] for node in graph.nodes),
        wires=_wires(graph, places, stacks),
        stubs=_stubs(graph, places),
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
    rows = {node.feature: _centred(i, stack) for stack in stacks.values() for i, node in enumerate(stack)}
    for neighbours, sites in ((before, sorted(stacks)), (after, sorted(stacks, reverse=True))):
        for site in sites:
            stack = stacks[site]
            means = {node.feature: _mean(rows, node.feature, neighbours) for node in stack}
            stack.sort(key=lambda node: means[node.feature])
            rows.update({node.feature: _centred(i, stack) for i, node in enumerate(stack)})
    return stacks


def _centred(i: int, stack: Sequence[Node]) -> float:
    return i - (len(stack) - 1) / 2


def _mean(rows: dict[FeatureId, float], feature: FeatureId, neighbours: dict[FeatureId, list[FeatureId]]) -> float:
    near = [rows[f] for f in neighbours.get(feature, ()) if f in rows]
    return sum(near) / len(near) if near else rows[feature]


def _lanes(stacks: dict[Site, list[Node]], height: float) -> dict[Part, Lane]:
    lanes: dict[Part, Lane] = {}
    y = 0.0
    for part in LANES:
        most = max((len(stack) for site, stack in stacks.items() if site.part is part), default=0)
        inner = most * height + (most - 1) * STACK_GAP + LANE_FOOT if most else 0.0
        lanes[part] = Lane(part, y, LANE_HEAD + inner, not most)
        y += LANE_HEAD + inner
    return lanes


def _wires(graph: FlowGraph, places: dict[FeatureId, Place], stacks: dict[Site, list[Node]]) -> tuple[Wire, ...]:
    drawn = [e for e in graph.edges if e.parent in places and e.child in places]
    fans: dict[tuple[FeatureId, Part], int] = {}
    for edge in drawn:
        key = (edge.child, edge.parent.part)
        fans[key] = fans.get(key, 0) + 1
    wires: list[Wire] = []
    for edge in drawn:
        start, end = places[edge.parent], places[edge.child]
        x1, y1, x2, y2 = start.right, start.middle, end.x, end.middle + port(edge.parent.part) * end.height
        bend = max(abs(x2 - x1) * 0.55, 16.0)
        path = f"M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
        alone = fans[edge.child, edge.parent.part] == 1 and len(stacks[edge.child.site]) == 1
        alone = alone and len(stacks[edge.parent.site]) == 1
        wires.append(Wire(edge, path, _label_at(edge, start, end) if alone else None))
    return tuple(wires)


def port(part: Part) -> float:
    """Where edges from `part` enter a box: a share of its height below the middle (mlp above it)."""
    return {Part.MLP: -PORT, Part.RES: 0.0, Part.ATT: PORT}[part]


def _label_at(edge: Edge, start: Place, end: Place) -> tuple[float, float]:
    """Where a score is written: over a residual edge; right of a module's, where it leaves the lane."""
    if edge.parent.part is Part.RES:
        return (start.right + 16.0, start.middle - 5.0)
    below = end.y - 9.0 if edge.parent.part is Part.MLP else end.y + end.height + 17.0
    return (end.x + 1.0, below)


def _stubs(graph: FlowGraph, places: dict[FeatureId, Place]) -> tuple[Stub, ...]:
    stubs: list[Stub] = []
    for end in graph.ends:
        if end.reason is Reason.MODULE_OUTPUT or end.feature not in places:
            continue
        place = places[end.feature]
        back = end.direction is Direction.BACKWARD
        stubs.append(Stub(end, place.x if back else place.right, place.middle, -1.0 if back else 1.0))
    return tuple(stubs)
