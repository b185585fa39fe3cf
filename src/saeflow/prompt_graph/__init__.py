"""What happened on a text: flow graphs of a prompt, whose edges are measured.

    graph = saeflow.trace_text("Once upon a time there was a", "demo")
    graph.edges, graph.nodes, graph.fidelity

A flow graph from weights says what could carry a feature; this says what carried it here. `graph.py` is the graph as
data, `trace.py` measures it, `fidelity.py` says how much of the prediction it carries, `matches.py` grows flow graphs
from many of them.
"""

from saeflow.prompt_graph.graph import Fidelity, PromptGraph, Pruning

__all__ = ["Fidelity", "PromptGraph", "Pruning"]
