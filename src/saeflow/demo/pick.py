"""Choose features worth a first look: long flows, shaped by modules, with readable words."""

from __future__ import annotations

from dataclasses import dataclass

from saeflow.flow import Evolution, FlowGraph, Thresholds, trace
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.words import FeatureWords, Words
from saeflow.matching.atlas import Atlas

# A feature active on more than 3 % of tokens is mostly grammar; below 1 in 5,000 tokens its words have too little data.
RAREST, COMMONEST = 2e-4, 3e-2

MOST_UNREAD = 2000
"""Number of features whose graphs are examined when none has readable words."""


@dataclass(frozen=True)
class Pick:
    """A feature worth a look: its graph, its label, and how interesting it is (higher is more)."""

    graph: FlowGraph
    label: str
    interest: float


def worth_a_look(atlas: Atlas, words: Words, n: int, *, thresholds: Thresholds | None = None) -> list[Pick]:
    """The `n` most interesting residual features of the last third of the layers; no two share a label or a flow.

    Interest grows with the number of layers spanned, weighted by how well the flow holds together, plus a little for
    each module that joins and each evolution case; features without words are left out. If any features have readable
    words, only these are considered; otherwise (other scripts, other tokenizers, a small corpus) any words will do.
    """
    layers = sorted({site.layer for site in atlas.sites if site.part is Part.RES})
    told: list[tuple[FeatureId, FeatureWords]] = []
    found: list[Pick] = []
    for layer in layers[-max(1, len(layers) // 3) :]:
        site = Site(layer, Part.RES)
        for index, known in enumerate(words.site(site)):
            if known is not None and known.tokens:
                told.append((FeatureId(site, index), known))
    readable = [(feature, known) for feature, known in told if _readable(known)]
    for feature, known in readable or told[:MOST_UNREAD]:
        graph = trace(feature, atlas, thresholds=thresholds)
        found.append(Pick(graph, known.label or str(feature), _interest(graph)))
    found.sort(key=lambda pick: -pick.interest)
    seen: set[str] = set()
    kept: list[Pick] = []
    for pick in found:
        family = {str(node.feature) for node in pick.graph.nodes if node.feature.part is Part.RES}
        if pick.label not in seen and not family & seen:
            kept.append(pick)
        seen |= family | {pick.label}
    return kept[:n]


def _readable(known: FeatureWords) -> bool:
    """Whether the words are informative: mostly whole words, of a feature neither too rare nor too common."""
    whole = sum(token.startswith(" ") and token[1:].isalpha() and len(token) > 3 for token in known.tokens[:4])
    return whole >= 3 and bool(known.contexts) and RAREST <= (known.frequency or 0.0) <= COMMONEST


def _interest(graph: FlowGraph) -> float:
    if graph.span is None:
        return 0.0
    first, last = graph.span
    cases = {node.evolution for node in graph.nodes if node.evolution not in (None, Evolution.UNEXPLAINED)}
    stream = [edge.score for edge in graph.edges if edge.parent.part is Part.RES]
    holds = sum(stream) / len(stream) if stream else 0.0
    return (last - first + 1) * (0.5 + holds) + 0.7 * len(graph.circuits) + 0.5 * len(cases)
