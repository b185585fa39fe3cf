"""Prompt graphs: the flow of features on one text, with measured edges.

    graph = saeflow.trace_text("Once upon a time there was a", "demo")
    graph.edges, graph.nodes, graph.fidelity

A flow graph from weights says what could carry a feature; a prompt graph says what carried it on this text. `graph.py`
is the graph as data, `trace.py` measures it, `fidelity.py` measures how much of the prediction it carries, and
`matches.py` turns prompt graphs of several texts into matches for `flow.trace`.
"""

from saeflow.prompt_graph.graph import Fidelity, PromptGraph, Pruning

__all__ = ["Fidelity", "PromptGraph", "Pruning"]
