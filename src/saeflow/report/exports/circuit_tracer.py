"""A flow graph as an attribution graph of circuit-tracer, which its viewer and Neuronpedia open.

Those formats know prompts, tokens and one kind of feature; a flow graph has neither prompt nor activation. So
the three parts stand where tokens would, left to right: attention, MLP, residual stream. The weight of a link
is the cosine, and labels are in `clerp`. What their viewer asks for, read in circuit-tracer 0.5:

- a feature in more than two thirds of the tokens is thrown away: with one token, every node;
- nodes are told apart by layer, number and token, and labels edited there are kept by the number alone: 3/res/7
  and 3/mlp/7 need tokens and numbers of their own;
- without an output node the axis has 26 layers, and the label of one must hold its probability: there is one
  output, linked to nothing, that says there is none.
"""

from __future__ import annotations

import json
from typing import Any, Final

from saeflow.errors import InvalidArgument, UnknownRelease
from saeflow.flow.graph import FlowGraph, Node
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.sources import sources_of
from saeflow.labels.words import Words, no_words
from saeflow.report.tokens import headline, one_line
from saeflow.version import __version__

LANES: Final = {Part.ATT: 0, Part.MLP: 1, Part.RES: 2}
"""The place of a part among the tokens."""
_TOKENS: Final = ("attn", "mlp", "resid")
_PINNED: Final = 18
"""Nodes put into the subgraph of the viewer; more cannot be read there."""


def circuit_tracer_json(graph: FlowGraph, words: Words = no_words) -> bytes:
    """`graph` as the JSON of an attribution graph (schema version 1).

    `feature` is `feature_number`: another for every feature, and layer, part and row can be read back from it.
    """
    data = {
        "metadata": _metadata(graph),
        "qParams": {
            "pinnedIds": [_node_id(node.feature) for node in _nearest(graph)],
            "supernodes": [],
            "linkType": "both",
            "clickedId": _node_id(graph.seed),
            "sg_pos": "",
        },
        "nodes": [*(_node(node.feature, _label(node, words)) for node in graph.nodes), _no_output(graph)],
        "links": [{"source": _node_id(e.parent), "target": _node_id(e.child), "weight": e.score} for e in graph.edges],
    }
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def feature_number(feature: FeatureId) -> int:
    """One number for a layer l, a part and a row: (l + i)(l + i + 1) / 2 + i with i = 3 row + place of the part.

    The Cantor pair of circuit-tracer, which has one kind of feature and i = row. The places are those of `LANES`.
    """
    index = len(LANES) * feature.index + LANES[feature.part]
    return (feature.layer + index) * (feature.layer + index + 1) // 2 + index


def _metadata(graph: FlowGraph) -> dict[str, Any]:
    seed = str(graph.seed)
    return {
        "slug": f"saeflow-{_plain(graph.release) or 'graph'}-{seed.replace('/', '-')}",
        "scan": _model(graph.release),
        "transcoder_list": [],
        "prompt_tokens": list(_TOKENS),
        "prompt": f"Feature flow of {seed}, from the weights: cosines of decoder rows, no prompt.",
        "schema_version": 1,
        "info": {
            "description": "Columns are parts of the model (attention, MLP, residual stream), not tokens. "
            "Weights are cosines of decoder rows, not attributions.",
            "generator": {"name": "saeflow", "version": __version__},
        },
    }


def _model(release: str) -> str:
    """The model as Neuronpedia calls it; the release where nothing says it."""
    try:
        return sources_of(release).model
    except (UnknownRelease, InvalidArgument):
        return _plain(release) or "unknown"


def _plain(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name).strip("-.")


def _node_id(feature: FeatureId) -> str:
    return f"{feature.layer}_{feature.index}_{LANES[feature.part]}"


def _node(feature: FeatureId, label: str) -> dict[str, Any]:
    lane = LANES[feature.part]
    return {
        "node_id": _node_id(feature),
        "feature": feature_number(feature),
        "layer": str(feature.layer),
        "ctx_idx": lane,
        "feature_type": "cross layer transcoder",
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": len(_TOKENS) - 1 - lane,
        "jsNodeId": f"{feature.layer}_{feature.index}-{len(_TOKENS) - 1 - lane}",
        "clerp": label,
        "influence": None,
        "activation": None,
    }


def _label(node: Node, words: Words) -> str:
    case = "" if node.evolution is None else f" ({node.evolution.case})"
    return f"{node.feature}{case} {one_line(headline(words.get(node.feature)))}".rstrip()


def _no_output(graph: FlowGraph) -> dict[str, Any]:
    last = max(node.feature.layer for node in graph.nodes) + 1
    return _node(FeatureId(Site(last, Part.RES), 0), "") | {
        "feature_type": "logit",
        "jsNodeId": "L_0-0",
        "clerp": 'Output "none" (p=0.000)',
    }


def _nearest(graph: FlowGraph) -> list[Node]:
    """What is put into the subgraph: the stream nearest to the seed, then the modules that write into it."""

    def away(node: Node) -> tuple[bool, bool, int]:
        feature = node.feature
        return feature != graph.seed, feature.part is not Part.RES, abs(feature.layer - graph.seed.layer)

    return sorted(graph.nodes, key=away)[:_PINNED]
