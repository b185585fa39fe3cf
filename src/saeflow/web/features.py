"""The card of a feature: words, scores, matches on either side, group shares, links. No torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from saeflow.flow.scores import T_MODULE, T_RES, Evolution
from saeflow.flow.trace import trace
from saeflow.ids import FeatureId, Site
from saeflow.records import Match
from saeflow.web.answers import CaseData, ContextData, FeatureAnswer, Link, Neighbour, ScoresData
from saeflow.web.asked import FeatureAsked
from saeflow.web.explorer import Explorer

NEURONPEDIA: Final = "https://www.neuronpedia.org"


def feature_answer(explorer: Explorer, asked: FeatureAsked) -> FeatureAnswer:
    """The card of a feature.

    Raises:
        SaeflowError: when there is no such feature, or the atlas has no nulls for `fdr`.
    """
    feature = explorer.feature(asked.id)
    cuts = explorer.thresholds(res=T_RES, mlp=T_MODULE, att=T_MODULE, high=asked.high, fdr=asked.fdr)
    alone = trace(feature, explorer.atlas, thresholds=cuts, backward=False, forward=False).nodes[0]
    known = explorer.words.get(feature)
    told: dict[str, Any] = {
        "label": "",
        "by": "",
        "score": None,
        "tokens": [],
        "promotes": [],
        "contexts": [],
        "frequency": None,
    }
    if known is not None:
        told = {
            "label": known.label,
            "by": known.by,
            "score": known.score,
            "tokens": list(known.tokens),
            "promotes": list(known.promotes),
            "contexts": [
                ContextData(tokens=list(c.tokens), values=list(c.values), source=c.source) for c in known.contexts
            ],
            "frequency": known.frequency,
        }
    case = alone.evolution
    return FeatureAnswer(
        feature=str(feature),
        site=str(feature.site),
        **told,
        scores=None if alone.scores is None else ScoresData(**asdict(alone.scores)),
        p=None if alone.p is None else ScoresData(**asdict(alone.p)),
        evolution=None if case is None else _case(case),
        joins=[part.value for part in alone.joins],
        predecessors=_beside(explorer, feature, feature.site.predecessors),
        successors=_beside(explorer, feature, (feature.site.successor,)),
        groups=None if explorer.origins is None else explorer.origins.groups(feature),
        links=_links(explorer, feature),
    )


def _case(case: Evolution) -> CaseData:
    told = {"case": case.case, "name": case.value, "sentence": case.sentence}
    return CaseData.model_validate(told)


def _beside(explorer: Explorer, feature: FeatureId, sites: tuple[Site, ...]) -> dict[Any, list[Neighbour]]:
    """The matches of a feature at some sites, by part; parts that were not matched are left out."""
    atlas = explorer.atlas
    return {
        site.part.value: [_neighbour(explorer, feature, match) for match in atlas.best(feature, site)]
        for site in sites
        if atlas.has(feature.site, site)
    }


def _neighbour(explorer: Explorer, feature: FeatureId, match: Match) -> Neighbour:
    null = explorer.atlas.null(feature.site, match.feature.site)
    return Neighbour(
        feature=str(match.feature),
        label=explorer.label(match.feature),
        score=match.score,
        p=None if null is None else null.p_value(match.score),
    )


def _links(explorer: Explorer, feature: FeatureId) -> list[Link]:
    source = None if explorer.sources is None else explorer.sources.at(feature.site)
    if source is None:
        return []
    return [Link(title="Neuronpedia", url=f"{NEURONPEDIA}/{source.model}/{source.id}/{feature.index}")]
