"""Matches by measured effect: trace flow graphs along the effects of removals on some texts, in place of cosines.

    matches = effect_matches(texts, feature, dictionaries, model)
    graph = saeflow.flow.trace(feature, matches, thresholds=Thresholds(res=0.1, mlp=0.1, att=0.1))

The score of a match is the share of the child's activation that is lost when the parent is removed (`trace.py`),
averaged over the traced tokens where both are active. Unlike a cosine, it holds for these texts only, and is known
only for features that are active on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.matching.direct import DirectMatches
from saeflow.plain_types import Match, Progress
from saeflow.prompt_graph.graph import PromptGraph
from saeflow.prompt_graph.trace import trace_text
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

TOKENS = 3
"""How many tokens of a text are traced: those where the feature is strongest."""


@dataclass(frozen=True, eq=False)
class EffectMatches:
    """Matches for `flow.trace` whose scores are measured effects.

    Attributes:
        effects: the mean effect of each parent on each child, by (parent, child).
    """

    effects: Mapping[tuple[FeatureId, FeatureId], float]

    @staticmethod
    def of(graphs: Iterable[PromptGraph]) -> EffectMatches:
        """Average over the tokens where parent and child are active; an edge that a graph lacks counts as 0."""
        sums: Counter[tuple[str, str]] = Counter()
        together: Counter[tuple[str, str]] = Counter()
        for graph in graphs:
            edges = graph.edges[graph.edges["link"] == "stream"]
            pairs = zip(edges["parent"].str.split("@").str[0], edges["child"].str.split("@").str[0], strict=True)
            for pair, effect in zip(pairs, edges["effect"], strict=True):
                sums[pair] += effect
            features = graph.nodes[graph.nodes["kind"] == "feature"]
            for _, here in features.groupby("position"):
                together.update(product(here["feature"], here["feature"]))
        return EffectMatches(
            {
                (FeatureId.parse(parent), FeatureId.parse(child)): total / together[parent, child]
                for (parent, child), total in sums.items()
                if (parent, child) in together  # leaves out errors, which are not features
            }
        )

    def has(self, source: Site, target: Site) -> bool:
        """Whether an effect between the two sites was measured."""
        return frozenset((source, target)) in self._pairs

    def best(self, feature: FeatureId, target: Site, k: int | None = None) -> tuple[Match, ...]:
        """The `k` features at `target` that `feature` depends on most, or that depend on it most, best first."""
        there = [one for one in self._of.get(feature, ()) if one.feature.site == target]
        return tuple(sorted(there, key=lambda one: (-one.score, one.feature))[:k])

    @cached_property
    def _pairs(self) -> set[frozenset[Site]]:
        return {frozenset((parent.site, child.site)) for parent, child in self.effects}

    @cached_property
    def _of(self) -> dict[FeatureId, list[Match]]:
        """All matches of each feature, both as child and as parent."""
        found: dict[FeatureId, list[Match]] = {}
        for (parent, child), effect in self.effects.items():
            found.setdefault(child, []).append(Match(parent, effect))
            found.setdefault(parent, []).append(Match(child, effect))
        return found


def effect_matches(
    texts: Sequence[str],
    feature: FeatureId,
    dictionaries: Mapping[Site, Dictionary],
    model: LanguageModel,
    *,
    tokens: int = TOKENS,
    max_length: int = 64,
    progress: Progress | None = None,
) -> EffectMatches:
    """Trace texts at the tokens where a feature is strongest, and average the effects.

    Args:
        texts: texts on which the feature is active; others are skipped.
        feature: the feature.
        dictionaries: the dictionaries of the release.
        model: the model that they were trained on.
        tokens: the most tokens traced per text.
        max_length: texts are truncated to this many tokens.
        progress: called with (texts done, texts in all, what is being done).

    Raises:
        InvalidArgument: when the feature is active on none of the texts, or there is no dictionary at its site.
    """
    if feature.site not in dictionaries:
        raise InvalidArgument(f"there is no dictionary at {feature.site}. Trace a feature of one that there is.")
    dictionary = dictionaries[feature.site].for_model(model)
    matches, graphs = DirectMatches(dictionaries, projector=model), list[PromptGraph]()
    for number, text in enumerate(texts):
        if progress:
            progress(number, len(texts), f"tracing {feature}")
        ids = model.tokenize([text], max_length=max_length)
        h = model.capture(ids, [dictionary.point])[dictionary.point][0]
        with torch.no_grad():
            acts = dictionary.encode(h.to(dictionary.W_enc))[:, feature.index]
        strongest = acts.topk(min(tokens, len(acts)))
        graphs += [
            trace_text(
                text,
                dictionaries,
                token=token,
                model=model,
                atlas=matches,
                max_length=max_length,
                pruning=None,
                fidelity=False,
                random_graphs=0,
            )
            for token, size in zip(strongest.indices.tolist(), strongest.values.tolist(), strict=True)
            if size > 0
        ]
    if not graphs:
        raise InvalidArgument(
            f"{feature} is active on none of the {len(texts)} texts. Give texts of what it stands for."
        )
    return EffectMatches.of(graphs)
