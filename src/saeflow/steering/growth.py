"""From starting features to targets: grow their flow graphs, join them and choose. No torch.

1. `grow` traces each start backward and forward, with cuts at t(R) and at t(M), t(A) (appendix B.2).
2. `targets` joins the graphs: each feature once, with the strength of its connection to the starts.
3. `pick` leaves out what a person or a score rules out ("we manually choose some of the subgraphs based on
   semantic considerations and threshold values", C.3).

`build` gives each target its value. A plan covers one layer, all layers up to one, or the whole span (`Reach`,
sections 4.2 and 5.3).
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from saeflow.errors import InvalidArgument
from saeflow.flow.graph import FlowGraph
from saeflow.flow.scores import Thresholds
from saeflow.flow.trace import Matches, trace
from saeflow.ids import FeatureId, Part
from saeflow.steering.plan import Dropped


class Reach(enum.StrEnum):
    """Which layers of the targets a plan changes."""

    SINGLE = "single"
    """Layer l only."""
    CUMULATIVE = "cumulative"
    """Layers 0 to l."""
    SPAN = "span"
    """All layers."""


@dataclass(frozen=True, slots=True)
class Target:
    """A feature of the joined graphs.

    Attributes:
        feature: the feature.
        start: whether a graph was grown from it.
        score: the weakest edge on the best path to a start, a cosine where matching was by cosine. Paths follow
            edges of one graph in either direction, and the best path is the one whose weakest edge is strongest.
            None for a start, which needs no path.
        seeds: the starts whose graphs contain it, sorted.
    """

    feature: FeatureId
    start: bool
    score: float | None
    seeds: tuple[FeatureId, ...]

    @property
    def why(self) -> str:
        """Why it is a target, for a reader: `path 0.71 from 2/res/114`."""
        if self.score is None:
            return "start"
        whence = str(self.seeds[0]) if len(self.seeds) == 1 else f"{len(self.seeds)} starts"
        return f"path {self.score:.2f} from {whence}"


def grow(
    starts: Iterable[FeatureId], matches: Matches, *, thresholds: Thresholds | None = None, k: int = 1
) -> tuple[FlowGraph, ...]:
    """Trace the flow graph of each start backward and forward; one graph per start, in the order given.

    Args:
        starts: features of any part; repeats are ignored.
        matches: where matches come from: an Atlas, or anything with `has` and `best`.
        thresholds: where graphs are cut; t(R) = 0.5 and t(M) = t(A) = 0.15 by default (B.2).
        k: how many matches to follow at each site.

    Raises:
        InvalidArgument: without starts, or for a `k` below 1 or above what `matches` keeps.
        UnknownSite: when there are no matches at a start's site.
        UnknownFeature: when a start's index lies outside its dictionary.
    """
    chosen = tuple(dict.fromkeys(starts))
    if not chosen:
        raise InvalidArgument("no feature to start from. Name one or more, such as 4/res/123.")
    return tuple(trace(start, matches, thresholds=thresholds, k=k) for start in chosen)


def targets(graphs: Iterable[FlowGraph], *, parts: Collection[Part] = tuple(Part)) -> tuple[Target, ...]:
    """Every feature of some graphs, each once, sorted; the order of the graphs does not matter.

    Args:
        graphs: one or more, of the same release.
        parts: the parts whose features are returned; paths may still run through features of other parts.
    """
    best: dict[FeatureId, float] = {}
    seeds: dict[FeatureId, set[FeatureId]] = {}
    for graph in graphs:
        for feature, score in _paths(graph).items():
            best[feature] = max(score, best.get(feature, score))
            seeds.setdefault(feature, set()).add(graph.seed)
    starts = {seed for found in seeds.values() for seed in found}
    return tuple(
        Target(feature, feature in starts, None if feature in starts else best[feature], tuple(sorted(seeds[feature])))
        for feature in sorted(best)
        if feature.part in parts
    )


def _paths(graph: FlowGraph) -> dict[FeatureId, float]:
    """For each feature connected to the seed, the weakest edge of its best path; infinite for the seed itself."""
    near: dict[FeatureId, list[tuple[float, FeatureId]]] = {}
    for edge in graph.edges:
        near.setdefault(edge.parent, []).append((edge.score, edge.child))
        near.setdefault(edge.child, []).append((edge.score, edge.parent))
    found: dict[FeatureId, float] = {}
    front = [(-float("inf"), graph.seed)]
    while front:  # Dijkstra's algorithm, with the weakest edge in place of the path length
        negative, feature = heapq.heappop(front)
        if feature in found:
            continue
        found[feature] = -negative
        for score, other in near.get(feature, ()):
            if other not in found:
                heapq.heappush(front, (-min(score, -negative), other))
    return found


class Chosen(NamedTuple):
    """The targets to steer with, and the features left out with the reason; both sorted by feature."""

    kept: tuple[Target, ...]
    dropped: tuple[Dropped, ...] = ()

    @property
    def features(self) -> list[FeatureId]:
        """The features kept."""
        return [target.feature for target in self.kept]

    def without(self, why: Mapping[FeatureId, str]) -> Chosen:
        """The same choice without the features of `why`, each with the reason to drop it."""
        kept, more = pick(self.kept, drop=why)
        return Chosen(kept, tuple(sorted((*self.dropped, *more), key=lambda gone: gone.feature)))


def pick(
    targets: Iterable[Target],
    *,
    drop: Mapping[FeatureId, str] = {},
    keep: Collection[FeatureId] | None = None,
    min_score: float | None = None,
) -> Chosen:
    """Split targets into those to change and those left out, with the reason.

    Args:
        targets: what `targets` returned.
        drop: features to leave out, with the reason; features that are not targets are ignored.
        keep: if given, the only features to keep; `drop` and `min_score` still apply to them.
        min_score: leave out features whose score is lower. Starts have no score and stay.
    """
    kept: list[Target] = []
    dropped: list[Dropped] = []
    for target in targets:
        feature, score = target.feature, target.score
        if feature in drop:
            dropped.append(Dropped(feature, drop[feature]))
        elif keep is not None and feature not in keep:
            dropped.append(Dropped(feature, "not among those kept"))
        elif min_score is not None and score is not None and score < min_score:
            dropped.append(Dropped(feature, f"path {score:.3f}, below {min_score:g}"))
        else:
            kept.append(target)
    return Chosen(tuple(kept), tuple(dropped))


def schedule_span(targets: Collection[Target]) -> tuple[int, int]:
    """l_start and l_end: the first and last layer of the residual targets, or of all targets if none is residual.

    Raises:
        InvalidArgument: without targets.
    """
    layers = [target.feature.layer for target in targets if target.feature.part is Part.RES]
    layers = layers or [target.feature.layer for target in targets]
    if not layers:
        raise InvalidArgument(
            "no target is left to steer with. Drop fewer features, or lower the thresholds and scores asked for."
        )
    return min(layers), max(layers)


def targets_within(targets: Collection[Target], reach: Reach, upto: int | None) -> list[Target]:
    """The targets that a plan of this reach changes, with l = `upto`, which is None for the whole span.

    Raises:
        InvalidArgument: when no target lies there, or `upto` and `reach` do not go together.
    """
    if reach is Reach.SPAN and upto is not None:
        raise InvalidArgument(
            f"--upto {upto} has no meaning for the whole span. Leave it out, or give --reach single or cumulative."
        )
    if reach is not Reach.SPAN and upto is None:
        raise InvalidArgument(f"--reach {reach.value} needs a layer. Give --upto, such as --upto 4.")
    if upto is None:
        return list(targets)
    first = upto if reach is Reach.SINGLE else 0
    found = [target for target in targets if first <= target.feature.layer <= upto]
    if not found:
        there = sorted({target.feature.layer for target in targets})
        where = f"at layer {upto}" if reach is Reach.SINGLE else f"at layers 0 to {upto}"
        raise InvalidArgument(
            f"no target lies {where}. There are targets at layers {', '.join(map(str, there))}: give one of these."
        )
    return found
