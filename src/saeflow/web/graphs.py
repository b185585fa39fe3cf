"""Graphs as the page asks for them: grown, expanded, compared, drawn. No torch."""

from __future__ import annotations

import time
from typing import Any

from saeflow.errors import InvalidArgument
from saeflow.flow.graph import FlowGraph
from saeflow.flow.scores import Thresholds
from saeflow.flow.trace import trace
from saeflow.flow.union import MORE, expand, union, within
from saeflow.ids import FeatureId, Part
from saeflow.labels.words import Words
from saeflow.report.data import graph_data
from saeflow.report.svg import figure_svg
from saeflow.web.answers import CompareAnswer, Counts, GraphAnswer, GraphData, OriginShares
from saeflow.web.asked import CompareAsked, GraphAsked, GrowthAsked
from saeflow.web.explorer import Explorer
from saeflow.web.lookups import Bounded

MOST_NODES = 600
"""Nodes of a graph that is drawn: beyond, nobody can read it, and it takes seconds."""


def graph_answer(explorer: Explorer, asked: GraphAsked) -> GraphAnswer:
    """The graph of a feature with its drawing.

    Raises:
        SaeflowError: when it cannot be grown as asked.
    """
    start = time.perf_counter()
    graph = grown(explorer, asked)
    data, svg = _drawn(graph, explorer.words)
    return GraphAnswer(data=data, svg=svg, took_ms=_ms(start), counts=_counts(graph), groups=_groups(explorer, graph))


def compare_answer(explorer: Explorer, asked: CompareAsked) -> CompareAnswer:
    """Two graphs as one, and what of it is in which.

    Raises:
        SaeflowError: when one cannot be grown as asked.
    """
    start = time.perf_counter()
    cuts = _thresholds(explorer, asked)
    one, other = (_trace(explorer, explorer.feature(name), asked, cuts) for name in (asked.a, asked.b))
    # after the union: the layers asked for need to hold the first seed only
    whole = _bounded(within(union([one, other]), asked.from_layer, asked.to_layer))
    data, svg = _drawn(whole, explorer.words)
    ends = [{(edge.parent, edge.child) for edge in graph.edges} for graph in (one, other)]
    sides = ["".join(name for name, there in zip("ab", ends, strict=True) if pair in there) for pair in _pairs(whole)]
    mine, theirs = one.by_feature, other.by_feature
    shown = [node.feature for node in whole.nodes]
    return CompareAnswer.model_validate(
        {
            "data": data,
            "svg": svg,
            "took_ms": _ms(start),
            "counts": _counts(whole),
            "groups": _groups(explorer, whole),
            "in_a": [str(f) for f in shown if f not in theirs],
            "in_b": [str(f) for f in shown if f not in mine],
            "both": [str(f) for f in shown if f in mine and f in theirs],
            "edges_in": sides,
            "edges_a": sides.count("a"),
            "edges_b": sides.count("b"),
            "edges_both": sides.count("ab"),
        }
    )


def _pairs(graph: FlowGraph) -> list[tuple[FeatureId, FeatureId]]:
    return [(edge.parent, edge.child) for edge in graph.edges]


def grown(explorer: Explorer, asked: GraphAsked) -> FlowGraph:
    """The graph that was asked for.

    Raises:
        SaeflowError: when it cannot be grown as asked.
    """
    cuts = _thresholds(explorer, asked)
    graph = _trace(explorer, explorer.feature(asked.feature), asked, cuts)
    wanted = [explorer.feature(name) for name in asked.expand.split(",") if name]
    if wanted:
        _bounded(graph)
        k = min(asked.k + MORE, explorer.atlas.k)
        graph = expand(graph, wanted, Bounded(explorer.atlas), k=k, modules=asked.k)
    return _bounded(within(graph, asked.from_layer, asked.to_layer))


def _thresholds(explorer: Explorer, asked: GrowthAsked) -> Thresholds:
    plain = asked.model_fields_set & {"t_res", "t_mlp", "t_att", "high"}
    if asked.fdr is not None and plain:
        raise InvalidArgument(f"calibrated thresholds replace {', '.join(sorted(plain))}. Give either those, or fdr.")
    return explorer.thresholds(res=asked.t_res, mlp=asked.t_mlp, att=asked.t_att, high=asked.high, fdr=asked.fdr)


def _trace(explorer: Explorer, seed: FeatureId, asked: GrowthAsked, thresholds: Thresholds) -> FlowGraph:
    return trace(
        seed,
        Bounded(explorer.atlas),
        thresholds=thresholds,
        k=asked.k,
        backward=asked.direction != "forward",
        forward=asked.direction != "backward",
    )


def _bounded(graph: FlowGraph) -> FlowGraph:
    """The graph, unless it is too large to draw."""
    if len(graph.nodes) > MOST_NODES:
        raise InvalidArgument(
            f"this graph has {len(graph.nodes)} features, more than the {MOST_NODES} that are drawn. Raise the "
            "thresholds, lower k, or ask for fewer layers; `saeflow graph` writes it whole."
        )
    return graph


def _drawn(graph: FlowGraph, words: Words) -> tuple[GraphData, str]:
    return GraphData.model_validate(graph_data(graph, words)), figure_svg(graph, words)


def _counts(graph: FlowGraph) -> Counts:
    found: dict[str, Any] = dict.fromkeys((part.value for part in Part), 0)
    for node in graph.nodes:
        found[node.feature.part.value] += 1
    return Counts(**found, edges=len(graph.edges))


def _groups(explorer: Explorer, graph: FlowGraph) -> dict[str, OriginShares] | None:
    if explorer.origins is None:
        return None
    known = {str(node.feature): explorer.origins.shares(node.feature) for node in graph.nodes}
    return {name: shares for name, shares in known.items() if shares is not None}


def _ms(start: float) -> float:
    return round(1000 * (time.perf_counter() - start), 2)
