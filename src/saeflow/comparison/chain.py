"""More than two dictionaries: a chain of steps (checkpoints), and a set (seeds).

In a chain, dictionaries take the place of layers in a flow. A feature is carried if its best match at the previous step
scores at least `shared`, born if not, and lost if it has no such match at the next step. A lineage follows a feature of
the last step back through mutual best matches. `StepMatches` lets `flow.trace` run over steps.

In a set, a feature is consistent if it and its one-to-one partners by |cosine| in all other dictionaries are also each
other's partners, all at `shared` or more.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from saeflow.comparison.pairs import ComparedDictionary, PairMatches
from saeflow.comparison.settings import ComparisonSettings
from saeflow.comparison.tables import BEYOND
from saeflow.experiments.results import SummaryTable
from saeflow.flow import FlowGraph, Reason, Thresholds, trace
from saeflow.flow.union import union
from saeflow.ids import FeatureId, Part, Site
from saeflow.matching.null import NullDistribution
from saeflow.plain_types import Match

SHOWN = 6
"""Features the graph of a chain is grown from, at most: a third each carried, born late and lost early."""
Pairs = Mapping[tuple[int, int], PairMatches]


@dataclass(frozen=True, eq=False)
class StepMatches:
    """Matches between neighbouring steps in the form `flow.trace` expects: step n of a chain is the site n/res."""

    pairs: Pairs
    n: int
    release: str = ""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The steps, as sites."""
        return tuple(Site(step, Part.RES) for step in range(self.n))

    def has(self, source: Site, target: Site) -> bool:
        """Whether two steps are neighbours."""
        inside = max(source.layer, target.layer) < self.n and {source.part, target.part} == {Part.RES}
        return inside and abs(source.layer - target.layer) == 1

    def best(self, feature: FeatureId, target: Site, k: int | None = None) -> tuple[Match, ...]:
        """The best `k` matches of a feature at a neighbouring step, best first."""
        pair, ahead = self._pair(feature.site, target)
        way = pair.forward if ahead else pair.backward
        found = zip(way.index[feature.index, :k].tolist(), way.score[feature.index, :k].tolist(), strict=True)
        return tuple(Match(FeatureId(target, index), score) for index, score in found if score != -np.inf)

    def null(self, source: Site, target: Site) -> NullDistribution | None:
        """The null of best-match scores, None if it was not drawn."""
        pair, ahead = self._pair(source, target)
        return (pair.forward if ahead else pair.backward).nulls.get(pair.settings.null)

    def _pair(self, source: Site, target: Site) -> tuple[PairMatches, bool]:
        low, high = sorted((source.layer, target.layer))
        return self.pairs[low, high], source.layer == low


@dataclass(frozen=True, eq=False)
class Lineages:
    """The ancestors of each feature of the last step at all earlier steps.

    Attributes:
        index: the feature at each step, -1 before it was born.
        score: the cosine of the match to the next step, NaN where there is no match.
    """

    index: Int64[np.ndarray, "n_last n_steps"]
    score: Float64[np.ndarray, "n_last n_steps"]

    @property
    def born(self) -> Int64[np.ndarray, " n_last"]:
        """The first step of each lineage."""
        return (self.index < 0).sum(axis=1)

    @property
    def turned(self) -> Float64[np.ndarray, " n_last"]:
        """The sum of step-to-step angles of each lineage, in degrees: an upper bound on how far it turned in all."""
        return np.nansum(np.degrees(np.arccos(self.score.clip(-1, 1))), axis=1)


def lineages(pairs: Pairs, n_steps: int, n_last: int, shared: float) -> Lineages:
    """Follow the features of the last step back through mutual best matches of at least `shared`."""
    index = np.full((n_last, n_steps), -1)
    score = np.full((n_last, n_steps), np.nan)
    index[:, -1] = np.arange(n_last)
    for step in range(n_steps - 2, -1, -1):
        pair, later = pairs[step, step + 1], index[:, step + 1]
        here = np.where(later < 0, 0, later)
        back, cosine = pair.backward.index[here, 0], pair.backward.best[here]
        kept = (later >= 0) & (cosine >= shared) & (pair.forward.index[back, 0] == here)
        index[kept, step], score[kept, step] = back[kept], cosine[kept]
    return Lineages(index, score)


def chain_tables(
    chain: str, dictionaries: Sequence[ComparedDictionary], pairs: Pairs, settings: ComparisonSettings
) -> tuple[dict[str, SummaryTable], FlowGraph | None]:
    """Make the tables of a chain of dictionaries, and the flow graph of some features over its steps.

    `chain` is the name of the chain in the tables: its site.
    """
    n, last = len(dictionaries), dictionaries[-1]
    found = lineages(pairs, n, last.dictionary.n_features, settings.shared)
    shared = f"{settings.shared:g}"
    names = [one.name for one in dictionaries]
    made = [
        SummaryTable.of(
            "compare_steps",
            "Birth, drift and death over the chain",
            BEYOND,
            f"carried: features whose best match at the step before is at least {shared}; born: the others; lost: "
            f"features without a match of at least {shared} at the next step. drift is the mean angle of carried "
            "features to their match, in degrees. pw_mcc is with the step before, and with the last step; there is the "
            f"share of the last step's features whose best match at this step is at least {shared}.",
            "chain, step, name, features, carried, born, lost, drift, pw_mcc, pw_mcc last, there",
            ((chain, *_step_row(step, dictionaries, pairs, settings)) for step in range(n)),
        ),
        SummaryTable.of(
            "compare_matrix",
            "PW-MCC of every two dictionaries",
            BEYOND,
            "Mean |cosine| of partners one to one.",
            "chain, a, b, pw_mcc",
            (
                (chain, names[i], names[j], pairs[min(i, j), max(i, j)].pw_mcc)
                for i, j in itertools.permutations(range(n), 2)
            ),
        ),
        SummaryTable.of(
            "compare_presence",
            "In how many of the other dictionaries a feature is found",
            BEYOND,
            f"Found: its partner one to one has a |cosine| of at least {shared}. Shares of the features with a "
            f"direction. consistent: it and all its partners are each other's partners, at {shared} or more.",
            "chain, name, others, share, consistent",
            (
                (chain, *row)
                for place in range(n)
                for row in _presence_rows(place, dictionaries, pairs, settings.shared)
            ),
        ),
        SummaryTable.of(
            "lineages",
            "Features of the last step, followed back",
            BEYOND,
            f"Through mutual best matches of at least {shared}. turned is the sum of the angles from step to step, in "
            "degrees; path has the feature at each step since born.",
            "feature, born, turned, path, words",
            (_lineage_row(row, found, last) for row in np.lexsort((-found.turned, found.born)).tolist()),
        ),
    ]
    graph = chain_graph(dictionaries, pairs, found, settings.shared)
    if graph is not None:
        shown = [(node.feature, dictionaries[node.feature.layer]) for node in graph.nodes]
        made.append(
            SummaryTable.of(
                "compare_nodes",
                "The features of the graph",
                BEYOND,
                "In the graph step n of the chain is the layer n.",
                "node, feature, name, words",
                ((str(at), str(FeatureId(one.site, at.index)), one.name, one.label(at.index)) for at, one in shown),
            )
        )
    return {table.name: table for table in made}, graph


def chain_graph(
    dictionaries: Sequence[ComparedDictionary], pairs: Pairs, found: Lineages, shared: float
) -> FlowGraph | None:
    """The flow of a few features: carried all the way and turned most, born last, or lost at once; None without any."""
    n = len(dictionaries)
    matches = StepMatches(pairs, n, " → ".join(one.name for one in dictionaries))
    last, born = Site(n - 1, Part.RES), found.born
    carried = [row for row in np.argsort(-found.turned, kind="stable").tolist() if born[row] == 0]
    fresh = [row for row in np.argsort(-born, kind="stable").tolist() if born[row] > 0]
    gone = np.flatnonzero(pairs[0, 1].forward.best < shared)
    there = gone[np.isfinite(pairs[0, 1].forward.best[gone])].tolist()
    some = SHOWN // 3
    seeds = [FeatureId(last, row) for row in (*carried[:some], *fresh[:some])]
    seeds += [FeatureId(Site(0, Part.RES), row) for row in there[:some]]
    if not seeds:
        return None
    graph = union([trace(seed, matches, thresholds=Thresholds(res=shared, high=shared)) for seed in seeds])
    # reaching either end of the chain ends no feature, and what came before its first step is unknown
    ends = tuple(end for end in graph.ends if end.reason is Reason.BELOW_THRESHOLD)
    nodes = tuple(replace(node, evolution=None) if not node.feature.layer else node for node in graph.nodes)
    return replace(graph, ends=ends, nodes=nodes, steps=tuple(one.name for one in dictionaries))


def _step_row(
    step: int, dictionaries: Sequence[ComparedDictionary], pairs: Pairs, settings: ComparisonSettings
) -> Sequence[Any]:
    n, line = len(dictionaries), settings.shared
    before = pairs.get((step - 1, step))
    after = pairs.get((step, step + 1))
    carried = born = lost = drift = there = None
    if before is not None:
        best = before.backward.known
        kept = best[best >= line]
        carried, born = len(kept), len(best) - len(kept)
        drift = float(np.degrees(np.arccos(kept.clip(-1, 1))).mean()) if len(kept) else None
    if after is not None:
        lost = int((after.forward.known < line).sum())
    if step < n - 1:
        there = float(np.mean(pairs[step, n - 1].backward.known >= line))
    mcc = (None if before is None else before.pw_mcc, pairs[step, n - 1].pw_mcc if step < n - 1 else None)
    own = dictionaries[step]
    return (step, own.name, own.dictionary.n_features, carried, born, lost, drift, *mcc, there)


def _partners(i: int, j: int, pairs: Pairs, shared: float) -> Int64[np.ndarray, " n"]:
    """The one-to-one partners in dictionary j of the features of dictionary i, by |cosine|; -1 below `shared`."""
    pair = pairs[i, j] if i < j else pairs[j, i].swapped()
    return np.where(pair.absolute.score >= shared, pair.absolute.index, -1)


def _presence_rows(
    place: int, dictionaries: Sequence[ComparedDictionary], pairs: Pairs, shared: float
) -> list[Sequence[Any]]:
    others = [j for j in range(len(dictionaries)) if j != place]
    own = {j: _partners(place, j, pairs, shared) for j in others}
    found = np.stack([own[j] >= 0 for j in others]).sum(axis=0)
    agree = found == len(others)
    for i, j in itertools.combinations(others, 2):
        between = _partners(i, j, pairs, shared)
        agree &= between[np.where(own[i] < 0, 0, own[i])] == own[j]
    first = pairs[min(place, others[0]), max(place, others[0])]
    live = np.isfinite((first.forward if place < others[0] else first.backward).best)
    n = max(int(live.sum()), 1)
    counts = [int((found[live] == many).sum()) for many in range(len(others) + 1)]
    share = float(agree[live].sum()) / n
    return [
        (dictionaries[place].name, many, count / n, share if many == len(others) else None)
        for many, count in enumerate(counts)
    ]


def _lineage_row(row: int, found: Lineages, last: ComparedDictionary) -> Sequence[Any]:
    born = int(found.born[row])
    path = " ".join(map(str, found.index[row, born:].tolist()))
    return (str(FeatureId(last.site, row)), born, float(found.turned[row]), path, last.label(row))
