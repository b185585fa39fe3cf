"""Grow a flow graph from a seed (sections 3.3 and 3.4, appendix B.2). No torch.

1. Backward: for each residual feature, look up its best matches at the three predecessor sites. Matches at R_{L-1}
   that reach t(R) are followed further; matches at M_L and A_L that reach t(M) and t(A) are kept but not
   followed, since matching rows does not look inside a module.
2. Forward: for each feature, look up its best matches at the next residual site and follow those that reach t(R)
   (from a module feature, its part's t(M) or t(A)). The residual features found get their module features too.
3. Every residual feature carries s(R), s(M), s(A), the resulting case A-D, and the modules that join with a high
   score.
4. Where a flow stops, the graph says why.

Calibrated thresholds are taken from the layer of the residual feature on the child side. If the matches come with
nulls, every edge and every score carries a p-value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from saeflow.errors import InvalidArgument
from saeflow.flow.graph import Direction, Edge, End, FlowGraph, Node, Reason
from saeflow.flow.scores import Scores, Thresholds, evolution
from saeflow.ids import FeatureId, FeatureLike, Part, Site
from saeflow.plain_types import Match


@runtime_checkable
class Matches(Protocol):
    """What `trace` needs from a MatchTable or an Atlas."""

    def has(self, source: Site, target: Site) -> bool:
        """Whether features of `source` were matched to those of `target`."""
        ...

    def best(self, feature: FeatureId, target: Site, k: int | None = None) -> tuple[Match, ...]:
        """The best `k` matches of `feature` at `target`, best first."""
        ...


@runtime_checkable
class Null(Protocol):
    """The scores that best matches between two sites reach by chance."""

    @property
    def floor(self) -> float:
        """The smallest possible p-value."""
        ...

    def p_value(self, score: float) -> float:
        """The share of null scores that reach `score`, but at least `floor`."""
        ...


@runtime_checkable
class WithNulls(Protocol):
    """Matches that come with null distributions: an Atlas."""

    def null(self, source: Site, target: Site) -> Null | None:
        """The null for matches of `source` at `target`; None if it was not drawn."""
        ...


def trace(
    seed: FeatureLike,
    matches: Matches,
    *,
    thresholds: Thresholds | None = None,
    k: int = 1,
    backward: bool = True,
    forward: bool = True,
) -> FlowGraph:
    """The flow graph of `seed`.

    Args:
        seed: A feature at any part, or its name: `"4/res/72"`.
        matches: The source of matches: an Atlas, or anything with `has` and `best`.
        thresholds: Where to cut; t(R) = 0.5 and t(M) = t(A) = 0.15 by default (B.2), or
            `Thresholds.calibrated(atlas)`.
        k: How many matches per site are considered; 1 gives the paper's many-to-one graph.
        backward: Trace where the feature comes from.
        forward: Trace where it goes.

    Raises:
        InvalidId: when `seed` is not a valid feature name.
        UnknownSite: when there is no dictionary at the seed's site.
        UnknownFeature: when the seed's index lies outside that dictionary.
        InvalidArgument: when `k` is below 1 or above the number of matches that `matches` keeps.
    """
    if k < 1:
        raise InvalidArgument(f"k={k} matches were asked for. Give k of at least 1.")
    seed = FeatureId.of(seed)
    growth = _Growth(matches, thresholds or Thresholds(), k)
    # `best` raises for an unknown seed, before anything is grown
    matches.best(seed, next(iter(neighbours(seed.site, matches)), seed.site.successor), 1)
    if backward:
        growth.grow(seed, growth.step_back)
    if forward:
        growth.grow(seed, growth.step_forward)
    growth.nodes.setdefault(seed, None)
    return growth.finish(seed, getattr(matches, "release", ""))


def previous(site: Site, matches: Matches) -> Site | None:
    """The nearest residual site below `site` that it was matched to: the previous layer, if no layer is left out.

    None if it was matched to none, and for module sites.
    """
    if site.part is not Part.RES:
        return None
    below = (Site(layer, Part.RES) for layer in range(site.layer - 1, -1, -1))
    return next((target for target in below if matches.has(site, target)), None)


def following(site: Site, matches: Matches) -> Site | None:
    """The nearest residual site that `site` writes into and was matched to; None if there is none.

    For a module, that is the residual site of the same layer; for a residual site, that of the next layer, if no layer
    is left out.
    """
    if site.part is not Part.RES:
        return site.successor if matches.has(site, site.successor) else None
    last = max((known.layer for known in getattr(matches, "sites", ())), default=site.layer + 1)
    above = (Site(layer, Part.RES) for layer in range(site.layer + 1, last + 1))
    return next((target for target in above if matches.has(site, target)), None)


def neighbours(site: Site, matches: Matches) -> tuple[Site, ...]:
    """Every site adjacent to `site` in a flow that it was matched to: the previous site, its modules, the next site."""
    modules = (near for near in site.modules if matches.has(site, near))
    found = (previous(site, matches), *modules, following(site, matches))
    return tuple(near for near in found if near is not None)


def edge_to(feature: FeatureId, match: Match, rank: int, matches: Matches, p: float | None) -> Edge:
    """The edge between a feature and one of its matches at an earlier or later site.

    Args:
        feature: the feature whose matches were looked up.
        match: one of its matches.
        rank: the rank of the match; 0 is the best.
        matches: the source of the match, used to check whether each feature is the other's best match.
        p: the p-value of the match.
    """

    def is_best(one: FeatureId, other: FeatureId) -> bool | None:
        if not matches.has(one.site, other.site):
            return None  # this direction was not matched
        best = matches.best(one, other.site, 1)
        return bool(best) and best[0].feature == other

    back = match.feature.site < feature.site
    parent, child = (match.feature, feature) if back else (feature, match.feature)
    mutual = is_best(parent, child) and is_best(child, parent)
    return Edge(parent, child, match.score, rank, p, mutual)


def null_of(matches: Matches, source: Site, target: Site) -> Null | None:
    """The null for matches of `source` at `target`; None if it was not drawn."""
    return matches.null(source, target) if isinstance(matches, WithNulls) else None


def keep_better(edges: dict[tuple[FeatureId, FeatureId], Edge], edge: Edge) -> None:
    """Keep one edge per pair of features: if found from both sides or in several graphs, the one of better rank."""
    known = edges.get((edge.parent, edge.child))
    if known is None or edge.rank < known.rank:
        edges[edge.parent, edge.child] = edge


class _Growth:
    """A graph while it grows; edges are keyed by (parent, child)."""

    def __init__(self, matches: Matches, thresholds: Thresholds, k: int) -> None:
        self.matches = matches
        self.thresholds = thresholds
        self.k = k
        self.nodes: dict[FeatureId, None] = {}
        self.edges: dict[tuple[FeatureId, FeatureId], Edge] = {}
        self.ends: dict[tuple[FeatureId, Direction], End] = {}
        self.floor = 0.0

    def grow(self, seed: FeatureId, step: Callable[[FeatureId], list[FeatureId]]) -> None:
        """Apply `step` to the seed and to every feature it returns, each feature once."""
        seen = {seed}
        front = [seed]
        while front:
            found = dict.fromkeys(nxt for feature in front for nxt in step(feature))
            front = [feature for feature in found if feature not in seen]
            seen |= set(front)

    def step_back(self, child: FeatureId) -> list[FeatureId]:
        """Add the predecessors of `child`; return those to follow."""
        self.nodes[child] = None
        if child.part is not Part.RES:
            self._end(child, Direction.BACKWARD, Reason.MODULE_OUTPUT)
            return []
        self._add_modules(child)
        if child.layer == 0:
            self._end(child, Direction.BACKWARD, Reason.FIRST_LAYER)
            return []
        return self._follow(child, previous(child.site, self.matches), Direction.BACKWARD)

    def step_forward(self, parent: FeatureId) -> list[FeatureId]:
        """Add the successors of `parent`; return those to follow."""
        self.nodes[parent] = None
        if parent.part is Part.RES:
            self._add_modules(parent)
        return self._follow(parent, following(parent.site, self.matches), Direction.FORWARD)

    def _add_modules(self, child: FeatureId) -> None:
        """Add the module features that reach t(M) and t(A)."""
        for part in (Part.MLP, Part.ATT):
            for rank, match in enumerate(self._best(child, Site(child.layer, part))):
                if match.score >= self.thresholds.of(part, child.layer):
                    self.nodes[match.feature] = None
                    self._keep(child, match, rank)

    def _follow(self, feature: FeatureId, target: Site | None, direction: Direction) -> list[FeatureId]:
        """Add edges to the matches at `target` that reach the cut, else an end; return the features to follow."""
        if target is None:
            sites: tuple[Site, ...] = getattr(self.matches, "sites", ())
            last = max((site.layer for site in sites if site.part is Part.RES), default=-1)
            beyond = direction is Direction.FORWARD and feature.site.successor.layer > last >= 0
            self._end(feature, direction, Reason.LAST_LAYER if beyond else Reason.NO_TABLE)
            return []
        # A module feature enters the stream if its match reaches the cut of its own part, t(M) or t(A).
        back = direction is Direction.BACKWARD
        child = feature.site if back else target
        cut = self.thresholds.of(feature.part, child.layer, ahead=not back)
        found = self._best(feature, target)
        kept = [match for match in found if match.score >= cut]
        for rank, match in enumerate(kept):
            self._keep(feature, match, rank)
        if not found:
            method = str(getattr(self.matches, "method", ""))
            paired = method.startswith("permutation")
            self._end(feature, direction, Reason.NO_PARTNER if paired else Reason.NO_DIRECTION)
        elif not kept:
            self._end(feature, direction, Reason.BELOW_THRESHOLD, found[0].score, cut)
        return [match.feature for match in kept]

    def _best(self, feature: FeatureId, target: Site) -> tuple[Match, ...]:
        if not self.matches.has(feature.site, target):
            return ()
        return self.matches.best(feature, target, self.k)

    def _p(self, source: Site, match: Match) -> float | None:
        """The p-value of a match of a feature at `source`; None without a null."""
        null = null_of(self.matches, source, match.feature.site)
        if null is None:
            return None
        self.floor = max(self.floor, null.floor)
        return null.p_value(match.score)

    def _keep(self, feature: FeatureId, match: Match, rank: int) -> None:
        """Add the edge of a match."""
        keep_better(self.edges, edge_to(feature, match, rank, self.matches, self._p(feature.site, match)))

    def _end(
        self,
        feature: FeatureId,
        direction: Direction,
        reason: Reason,
        score: float | None = None,
        threshold: float | None = None,
    ) -> None:
        self.ends[feature, direction] = End(feature, direction, reason, score, threshold)

    def _node(self, feature: FeatureId) -> Node:
        """The node of a feature, with its scores, its case and the modules that join."""
        if feature.part is not Part.RES:
            return Node(feature)
        below = previous(feature.site, self.matches)
        sites = (below, *feature.site.modules)
        found = {site.part: self._best(feature, site)[:1] for site in sites if site is not None}
        top = {part: best[0] for part, best in found.items() if best}
        scores = Scores(**{part.value: match.score for part, match in top.items()})
        p = Scores(**{part.value: self._p(feature.site, match) for part, match in top.items()})
        cuts, layer = self.thresholds, feature.layer
        high = {part: cuts.line(part, layer) for part in Part}
        joins = tuple(
            part
            for part in (Part.ATT, Part.MLP)
            if part in top and top[part].score >= max(high[part], cuts.of(part, layer))
        )
        case = None if below is None and layer > 0 else evolution(scores, high)
        gap = None if below is None or below.layer == layer - 1 else below.layer
        return Node(feature, scores, case, joins, None if p == Scores() else p, gap)

    def finish(self, seed: FeatureId, release: str) -> FlowGraph:
        """Build the graph, with the scores and the case of every node."""
        nodes, edges, ends = map(self._node, self.nodes), self.edges.values(), self.ends.values()
        return FlowGraph.of(seed, list(nodes), edges, ends, self.thresholds, release, self.floor or None)
