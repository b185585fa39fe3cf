"""Choose features worth a first look: long flows, shaped by modules, with words to read."""

from __future__ import annotations

from dataclasses import dataclass

from saeflow.flow import Evolution, FlowGraph, Thresholds, trace
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.words import FeatureWords, Words
from saeflow.matching.atlas import Atlas

# A feature on more than 3 % of tokens is mostly grammar; below 1 in 5,000 its words rest on too little.
RAREST, COMMONEST = 2e-4, 3e-2


@dataclass(frozen=True)
class Pick:
    """A feature worth a look, its graph, and how interesting it is (higher is more)."""

    graph: FlowGraph
    label: str
    interest: float


def worth_a_look(atlas: Atlas, words: Words, n: int, *, thresholds: Thresholds | None = None) -> list[Pick]:
    """The `n` most interesting residual features of the last third of the model, one for each label.

    Interest counts the layers of the span, a little more where a module joins or the case changes, and
    how well the flow holds together; a feature without words is left out.
    """
    layers = sorted({site.layer for site in atlas.sites if site.part is Part.RES})
    found: list[Pick] = []
    for layer in layers[-max(1, len(layers) // 3) :]:
        site = Site(layer, Part.RES)
        for index, known in enumerate(words.site(site)):
            if known is None or not _readable(known):
                continue
            graph = trace(FeatureId(site, index), atlas, thresholds=thresholds)
            found.append(Pick(graph, known.label, _interest(graph)))
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
    """Whether the words say something: whole words among them, and neither rare nor everywhere."""
    whole = sum(
        token.startswith(" ") and token[1:].isalpha() and len(token) > 3 for token in known.tokens[:4]
    )
    return whole >= 3 and bool(known.contexts) and RAREST <= (known.frequency or 0.0) <= COMMONEST


def _interest(graph: FlowGraph) -> float:
    if graph.span is None:
        return 0.0
    first, last = graph.span
    cases = {node.evolution for node in graph.nodes if node.evolution not in (None, Evolution.UNEXPLAINED)}
    stream = [edge.score for edge in graph.edges if edge.parent.part is Part.RES]
    holds = sum(stream) / len(stream) if stream else 0.0
    return (last - first + 1) * (0.5 + holds) + 0.7 * len(graph.circuits) + 0.5 * len(cases)
