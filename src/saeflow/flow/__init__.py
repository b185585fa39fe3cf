"""Flow graphs: where a feature emerges, persists, changes and disappears (section 3.3). No torch."""

from saeflow.flow.graph import Direction, Edge, End, FlowGraph, Node, Reason
from saeflow.flow.scores import Evolution, Scores, Thresholds
from saeflow.flow.trace import Matches, trace

__all__ = [
    "Direction",
    "Edge",
    "End",
    "Evolution",
    "FlowGraph",
    "Matches",
    "Node",
    "Reason",
    "Scores",
    "Thresholds",
    "trace",
]
