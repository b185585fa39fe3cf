"""Join several graphs, show more neighbours of a node, or restrict a graph to some layers. No torch.

`trace` follows what reaches the thresholds. Readers also want to see several graphs in one picture (`union`) and what
was cut off around a node (`expand`). A feature's scores, case and p-values do not depend on the graph it is in, so
joining graphs that share their thresholds loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from saeflow.errors import InvalidArgument
from saeflow.flow.graph import Direction, Edge, End, FlowGraph, Node, Reason
from saeflow.flow.trace import Matches, edge_to, keep_better, neighbours, null_of, trace
from saeflow.ids import FeatureId, Part, Site

MORE = 2
"""How many matches an expanded node shows beyond those that its graph follows."""


def union(graphs: Sequence[FlowGraph]) -> FlowGraph:
    """Join graphs into one that holds every node and edge once and has the seed of the first graph.

    If several graphs hold an edge, the better rank is kept. An end is kept only if no graph continues there.

    Raises:
        InvalidArgument: for no graph, or graphs of different releases or thresholds, whose cases are not comparable.
    """
    if not graphs:
        raise InvalidArgument("no graph was given to join. Give one or more.")
    first = graphs[0]
    for other in graphs[1:]:
        if (other.release, other.thresholds) != (first.release, first.thresholds):
            raise InvalidArgument(
                f"the graphs of {first.seed} and {other.seed} are of different releases or thresholds. Grow both in "
                "one atlas with the same thresholds."
            )
    nodes: dict[FeatureId, Node] = {}
    edges: dict[tuple[FeatureId, FeatureId], Edge] = {}
    ends: dict[tuple[FeatureId, Direction], End] = {}
    for graph in graphs:
        nodes |= {node.feature: node for node in graph.nodes if node.feature not in nodes}
        for edge in graph.edges:
            keep_better(edges, edge)
        ends |= {(end.feature, end.direction): end for end in graph.ends}
    floors = [graph.p_floor for graph in graphs if graph.p_floor is not None]
    return _whole(first, nodes.values(), edges.values(), ends.values(), max(floors, default=None))


def expand(graph: FlowGraph, features: Iterable[FeatureId], matches: Matches, *, k: int, modules: int = 1) -> FlowGraph:
    """The graph with the best `k` matches, at every adjacent site, of some of its features added.

    They are added whatever their score, so that the reader sees what a threshold cut off. A residual feature that is
    added brings along its best `modules` matches at each module that reach t(M) or t(A), as in the rest of the graph.

    Args:
        graph: a graph made by `trace` or `union`.
        features: nodes to expand.
        matches: the matches that the graph was grown from.
        k: how many matches per site are added.
        modules: how many matches per module an added feature brings along; use the `k` of the graph.

    Raises:
        InvalidArgument: when a feature is not a node of the graph, or `k` is below 1 or above the number of matches
            that `matches` keeps.
    """
    chosen = tuple(dict.fromkeys(features))
    if strange := [str(feature) for feature in chosen if feature not in graph.by_feature]:
        raise InvalidArgument(
            f"{', '.join(strange)} cannot be expanded: the graph of {graph.seed} does not hold it. Expand its nodes."
        )
    if k < 1:
        raise InvalidArgument(f"k={k} matches were asked for. Give k of at least 1.")
    known = dict(graph.by_feature)
    edges = {(edge.parent, edge.child): edge for edge in graph.edges}
    for feature in chosen:
        near = [edge for site in neighbours(feature.site, matches) for edge in _edges(feature, site, matches, k)]
        found = {side for edge in near for side in (edge.parent, edge.child)} - known.keys()
        for new in sorted(found):
            if new.part is Part.RES:
                near += [
                    edge
                    for site in new.site.modules
                    for edge in _edges(new, site, matches, modules)
                    if edge.score >= graph.thresholds.of(site.part, new.layer)
                ]
        for edge in near:
            edges.setdefault((edge.parent, edge.child), edge)
            for side in (edge.parent, edge.child):
                if side not in known:  # a graph of this feature only gives it its scores and case
                    alone = trace(side, matches, thresholds=graph.thresholds, backward=False, forward=False)
                    known[side] = alone.nodes[0]
    return _whole(graph, known.values(), edges.values(), graph.ends, graph.p_floor)


def within(graph: FlowGraph, first: int | None, last: int | None) -> FlowGraph:
    """The part of a graph from layer `first` to layer `last`, both included; None sets no limit.

    Raises:
        InvalidArgument: when the seed lies outside these layers, or `last` comes before `first`.
    """
    if first is None and last is None:
        return graph
    low = first or 0
    high = max(node.feature.layer for node in graph.nodes) if last is None else last
    if not low <= graph.seed.layer <= high:
        raise InvalidArgument(
            f"layers {low} to {high} leave out the seed {graph.seed}. Give layers with {graph.seed.layer} among them."
        )
    nodes = [node for node in graph.nodes if low <= node.feature.layer <= high]
    there = {node.feature for node in nodes}
    edges = [edge for edge in graph.edges if edge.parent in there and edge.child in there]
    ends = [end for end in graph.ends if end.feature in there]
    return _whole(graph, nodes, edges, ends, graph.p_floor)


def _whole(
    graph: FlowGraph, nodes: Iterable[Node], edges: Iterable[Edge], ends: Iterable[End], floor: float | None
) -> FlowGraph:
    """A graph like `graph` with other nodes, edges and ends, without the ends at which some edge continues."""
    edges = list(edges)
    into = {edge.child for edge in edges if edge.parent.part is Part.RES}
    out_of = {edge.parent for edge in edges}
    kept = [
        end
        for end in ends
        if end.reason is Reason.MODULE_OUTPUT
        or end.feature not in (into if end.direction is Direction.BACKWARD else out_of)
    ]
    return FlowGraph.of(graph.seed, nodes, edges, kept, graph.thresholds, graph.release, floor, graph.steps)


def _edges(feature: FeatureId, target: Site, matches: Matches, k: int) -> list[Edge]:
    """Edges to the best `k` matches of a feature at an adjacent site; empty if the sites were not matched."""
    if not matches.has(feature.site, target):
        return []
    null = null_of(matches, feature.site, target)
    return [
        edge_to(feature, match, rank, matches, None if null is None else null.p_value(match.score))
        for rank, match in enumerate(matches.best(feature, target, k))
    ]
