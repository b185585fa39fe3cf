"""A flow graph with its words as JSON values: what a page embeds and what `--json` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from saeflow.flow.graph import FlowGraph
from saeflow.labels.words import Words, no_words, silent


def graph_data(graph: FlowGraph, words: Words = no_words) -> dict[str, Any]:
    """`graph.to_dict()` with what is known of each node under `words` (null where nothing is).

    `FlowGraph.from_json` reads the result; it passes over the words. `silent` says whether a node is dead by its words,
    null where nobody looked. `case` and `sentence` of a node say its case of section 3.3 in the paper's letter and in a
    sentence.
    """
    data = graph.to_dict()
    for node, row in zip(graph.nodes, data["nodes"], strict=True):
        found = words.get(node.feature)
        row["words"] = None if found is None else asdict(found)
        row["silent"] = silent(words, node.feature)
        row["case"] = None if node.evolution is None else node.evolution.case
        row["sentence"] = None if node.evolution is None else node.evolution.sentence
    return data
