"""Claims of appendix E on three graphs of Gemma Scope, which matching has to reproduce to the last feature.

Nothing is random here: a number is exact, and its interval is the number itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from saeflow.experiments.origins_tables import SCORE_NAMES
from saeflow.experiments.statistics import Estimate
from saeflow.flow.graph import FlowGraph
from saeflow.flow.published import ROUNDING
from saeflow.ids import FeatureId, Part
from saeflow.paper.evidence import GraphsRun
from saeflow.paper.verdicts import ABOVE_0, ClaimNumber, NotMeasured, Rule

PARTICLES: Final = "24/res/14548"
LONDON: Final = "12/res/14455"
SHOWS: Final = ("17/res/9260", "18/res/2010")
NONE_AMISS: Final = Rule("within", 0.5)


def exact(value: float, n: int) -> Estimate:
    """An exact number, which is its own interval."""
    return Estimate(value, value, value, n)


def _acceptance(run: GraphsRun) -> Mapping[str, Any]:
    if run.acceptance is None:
        raise NotMeasured("The graph of Table 5 was not compared: it needs the weights of Gemma Scope.")
    return run.acceptance


def claim_nodes(run: GraphsRun) -> list[ClaimNumber]:
    """Every feature of Table 5 is in the grown graph."""
    accepted = _acceptance(run)
    agree, of = accepted.get("agree"), accepted.get("of")
    if not isinstance(agree, int) or not isinstance(of, int) or of < 1:
        raise NotMeasured("The comparison with Table 5 does not say how many features agree.")
    found = exact(float(of - agree), of)
    beside = f"{agree} of {of} agree"
    return [
        ClaimNumber("features of Table 5 that the grown graph does not have", found, NONE_AMISS, "count", beside=beside)
    ]


def _score(run: GraphsRun, feature: str, part: Part, printed: float) -> ClaimNumber:
    rows = _acceptance(run).get("pairs")
    for row in cast("list[Any]", rows) if isinstance(rows, list) else []:
        if isinstance(row, dict) and str(row.get("feature")) == feature and row.get("part") == part.value:
            value = row.get("found")
            if isinstance(value, int | float):
                found = exact(round(float(value) - printed, 9), 1)
                words = f"{SCORE_NAMES[part]} of {feature} less the printed {printed:g}"
                return ClaimNumber(words, found, Rule("within", ROUNDING + 1e-9), "number", beside=f"found {value:.3f}")
    raise NotMeasured(f"The graph does not say the score of {feature} at {part.value}.")


def claim_layer_7(run: GraphsRun) -> list[ClaimNumber]:
    """7/res/16335 has s(M) = 0.82 and s(R) = 0.30."""
    return [_score(run, "7/res/16335", Part.MLP, 0.82), _score(run, "7/res/16335", Part.RES, 0.30)]


def claim_layer_17(run: GraphsRun) -> list[ClaimNumber]:
    """17/res/8130 has s(M) = 0.79 and s(R) = 0.48."""
    return [_score(run, "17/res/8130", Part.MLP, 0.79), _score(run, "17/res/8130", Part.RES, 0.48)]


def _graph(run: GraphsRun, seed: str) -> FlowGraph:
    if seed in run.damaged:
        raise NotMeasured(run.damaged[seed])
    if seed not in run.graphs:
        raise NotMeasured(f"No graph was grown from {seed}: it needs the weights of Gemma Scope.")
    return run.graphs[seed]


def claim_between(run: GraphsRun) -> list[ClaimNumber]:
    """From layer 8 to 16, s(R) is large and s(M) small."""
    graph = _graph(run, PARTICLES)
    gaps = [
        (node.scores.res - node.scores.mlp, node.feature)
        for node in graph.nodes
        if node.feature.part is Part.RES
        and 8 <= node.feature.layer <= 16
        and node.scores
        and node.scores.res is not None
        and node.scores.mlp is not None
    ]
    if not gaps:
        raise NotMeasured("The graph has no scores at layers 8 to 16.")
    least, feature = min(gaps)
    words = "smallest s(R) - s(M) of the residual features at layers 8 to 16"
    return [ClaimNumber(words, exact(least, len(gaps)), ABOVE_0, "number", beside=f"at {feature}")]


def claim_london(run: GraphsRun) -> list[ClaimNumber]:
    """The graph of London passes through 17/res/9260 and 18/res/2010."""
    there = {node.feature for node in _graph(run, LONDON).nodes}
    missing = [name for name in SHOWS if FeatureId.parse(name) not in there]
    words = f"of {' and '.join(SHOWS)}, features that the graph does not have"
    return [ClaimNumber(words, exact(float(len(missing)), len(SHOWS)), NONE_AMISS, "count", beside=", ".join(missing))]
