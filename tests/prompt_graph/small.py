"""A small prompt graph, written out by hand."""

from __future__ import annotations

from saeflow.prompt_graph import Fidelity, PromptGraph
from saeflow.prompt_graph.graph import EDGE_COLUMNS, NODE_COLUMNS, frame

NODES = [
    ("0/res/3@1", 2.0, 0.75),
    ("0/res/4@1", 1.0, 0.25),
    ("0/res/error@1", 0.5, 0.1),
    ("1/mlp/7@1", 1.5, 1.0),
    ("1/res/5@1", 2.5, 1.0),
    ("logit/9@1", 4.0, 0.6),
    ("logit/2@1", 1.0, 0.1),
]
EDGES = [
    ("0/res/3@1", "1/mlp/7@1", "block", None, 0.1, 0.9, None, 1.35, None),
    ("0/res/3@1", "1/res/5@1", "stream", 0, 0.8, 0.6, 0.05, 1.5, None),
    ("1/mlp/7@1", "1/res/5@1", "stream", None, 0.2, 0.3, None, 0.75, None),
    ("0/res/error@1", "1/res/5@1", "stream", None, None, -0.15, None, -0.375, None),
    ("0/res/4@1", "1/res/5@1", "stream", None, 0.7, 0.02, 0.6, 0.05, None),
    ("1/res/5@1", "logit/9@1", "logit", None, None, 0.8, None, 3.2, 3.0),
    ("1/res/5@1", "logit/2@1", "logit", None, None, 0.04, None, 0.04, 0.1),
]


def row_of(node, activation, share):
    name, _, position = node.partition("@")
    layer, part, index = (None, "", "") if name.startswith("logit") else name.split("/")
    kind = "logit" if layer is None else "error" if index == "error" else "feature"
    return {
        "node": node,
        "kind": kind,
        "position": int(position),
        "token": " <b>" if kind == "logit" else " cat",
        "layer": None if layer is None else int(layer),
        "part": part,
        "feature": name if kind == "feature" else "",
        "activation": activation,
        "share": share,
    }


def small_graph(**changes):
    nodes = frame([row_of(*node) for node in NODES], NODE_COLUMNS)
    edges = frame([dict(zip(EDGE_COLUMNS, edge, strict=True)) for edge in EDGES], EDGE_COLUMNS)
    fidelity = Fidelity(4.0, 0.0, 3.0, 1.0, ((1.0, 3.0), (2.0, 2.0)))
    asked = {"fidelity": fidelity, "notes": ("1/att: left out.",)} | changes
    asked = {"positions": (1,)} | asked
    return PromptGraph(
        "demo", "demo", "a cat", ("<bos>", " cat"), target="logit/9@1", nodes=nodes, edges=edges, **asked
    )
