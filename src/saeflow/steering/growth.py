"""From starting features to a plan: grow their flow graphs, join them, choose, give each feature its value. No torch.

1. `grow` follows each start backward and forward, cut at t(R) and at t(M), t(A) (appendix B.2).
2. `targets` joins the graphs: each feature once, with how well it hangs together with the starts.
3. `pick` leaves out what a person or a score rules out ("we manually choose some of the subgraphs based on
   semantic considerations and threshold values", C.3).
4. `activation_plan` spreads a coefficient over the layers of what is left, `suppression_plan` gives each feature
   the same r; both for one layer, for all layers up to one, or for the whole span (sections 4.2 and 5.3).
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from saeflow.errors import InvalidArgument
from saeflow.flow.graph import FlowGraph
from saeflow.flow.scores import Thresholds
from saeflow.flow.trace import Matches, trace
from saeflow.ids import FeatureId, Part
from saeflow.steering.plan import Dropped, SteeringDirection, SteeringPlan, Step
from saeflow.steering.schedule import Schedule


class Reach(enum.StrEnum):
    """Which layers of the targets a plan changes."""

    SINGLE = "single"
    """Layer l alone."""
    CUMULATIVE = "cumulative"
    """Layers 0 to l."""
    SPAN = "span"
    """All."""

    def covers(self, layer: int, upto: int | None) -> bool:
        """Whether a target of `layer` is changed, with l = `upto`."""
        if upto is None:
            return True
        return layer == upto if self is Reach.SINGLE else layer <= upto


@dataclass(frozen=True, slots=True)
class Target:
    """A feature of the joined graphs.

    Attributes:
        feature: the feature.
        start: whether a graph was grown from it.
        score: the weakest edge on the best path to a start, a cosine where matching was by cosine; the path runs
            within one graph, up and down, and the best path is the one whose weakest edge is strongest. None for
            a start, which needs no path.
        seeds: the starts whose graphs hold it, sorted.
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
        told = str(self.seeds[0]) if len(self.seeds) == 1 else f"{len(self.seeds)} starts"
        return f"path {self.score:.2f} from {told}"


def grow(
    starts: Iterable[FeatureId], matches: Matches, *, thresholds: Thresholds | None = None, k: int = 1
) -> tuple[FlowGraph, ...]:
    """The flow graph of each start, backward and forward: one graph for each start, in the order given.

    Args:
        starts: features of any part; one named twice counts once.
        matches: where matches come from: an Atlas, or anything with `has` and `best`.
        thresholds: where graphs are cut; t(R) = 0.5 and t(M) = t(A) = 0.15 by default (B.2).
        k: matches of each site that are followed.

    Raises:
        InvalidArgument: for no start, or a `k` below 1 or above what `matches` keeps.
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
        parts: features of other parts are left out, after paths have been followed through them.
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
    """For each feature that hangs together with the seed, the weakest edge of the path where it is strongest."""
    near: dict[FeatureId, list[tuple[float, FeatureId]]] = {}
    for edge in graph.edges:
        near.setdefault(edge.parent, []).append((edge.score, edge.child))
        near.setdefault(edge.child, []).append((edge.score, edge.parent))
    found: dict[FeatureId, float] = {}
    front = [(-float("inf"), graph.seed)]
    while front:  # Dijkstra's, with the weakest edge in the place of the length
        negative, feature = heapq.heappop(front)
        if feature in found:
            continue
        found[feature] = -negative
        for score, other in near.get(feature, ()):
            if other not in found:
                heapq.heappush(front, (-min(score, -negative), other))
    return found


def pick(
    targets: Iterable[Target],
    *,
    drop: Mapping[FeatureId, str] = {},
    keep: Collection[FeatureId] | None = None,
    min_score: float | None = None,
) -> tuple[tuple[Target, ...], tuple[Dropped, ...]]:
    """The targets to change, and those left out with the reason.

    Args:
        targets: what `targets` returned.
        drop: features to leave out, with the reason; one that is no target is passed over.
        keep: where given, the only features to keep; `drop` and `min_score` still leave some of them out.
        min_score: leave out what hangs together with no start at this score. A start needs no path and stays.
    """
    kept: list[Target] = []
    dropped: list[Dropped] = []
    for target in targets:
        why = _against(target, drop, keep, min_score)
        if why is None:
            kept.append(target)
        else:
            dropped.append(Dropped(target.feature, why))
    return tuple(kept), tuple(dropped)


def _against(
    target: Target, drop: Mapping[FeatureId, str], keep: Collection[FeatureId] | None, min_score: float | None
) -> str | None:
    """Why a target is left out, None where nothing is against it."""
    if target.feature in drop:
        return drop[target.feature]
    if keep is not None and target.feature not in keep:
        return "not among those kept"
    if min_score is not None and target.score is not None and target.score < min_score:
        return f"path {target.score:.3f}, below {min_score:g}"
    return None


def schedule_span(targets: Iterable[Target]) -> tuple[int, int]:
    """l_start and l_end: the first and last layer of the residual targets, of all where none is residual.

    Raises:
        InvalidArgument: without targets.
    """
    found = tuple(targets)
    layers = [target.feature.layer for target in found if target.feature.part is Part.RES]
    layers = layers or [target.feature.layer for target in found]
    if not layers:
        raise InvalidArgument(
            "no target is left to steer with. Drop fewer features, or lower the thresholds and scores asked for."
        )
    return min(layers), max(layers)


def activation_plan(
    targets: Iterable[Target],
    schedule: Schedule,
    *,
    reach: Reach = Reach.SPAN,
    upto: int | None = None,
    scales: Mapping[FeatureId, float] | None = None,
    span: tuple[int, int] | None = None,
    labels: Mapping[FeatureId, str] | None = None,
) -> SteeringPlan:
    """A plan that adds each target at the coefficient its layer has in the schedule (appendix B.2).

    `made_by` notes the schedule, its span and the reach; `dataclasses.replace` names the release, the model, the theme.
    The schedule's span is that of all targets, whatever `reach` leaves of them: a feature has the same strength
    in the plan of its own layer, in the cumulative ones and in the whole.

    Args:
        targets: what `pick` kept.
        schedule: coefficients over layers.
        reach: layer `upto` alone, all layers up to it, or all.
        upto: l of the first two, None for the third.
        scales: what a coefficient of 1 means for each feature in reach, in units of the hidden state; `fold_scales`
            gives them. None: a coefficient is the length of what is added.
        span: l_start and l_end of the schedule; those of the targets where not given.
        labels: what features stand for.

    Raises:
        InvalidArgument: when no target lies in reach, `upto` and `reach` do not go together, a target has no
            scale, or a strength is not finite.
    """
    chosen = tuple(targets)
    own = schedule_span(chosen)
    span = own if span is None else span
    reached = targets_within(chosen, reach, upto)
    if scales is not None and (bare := [str(t.feature) for t in reached if t.feature not in scales]):
        raise InvalidArgument(
            f"there is no scale for {', '.join(bare)}. Get scales for all targets in reach with fold_scales."
        )
    steps = [
        Step(
            target.feature,
            schedule.at(target.feature.layer, span) * (1.0 if scales is None else scales[target.feature]),
            (labels or {}).get(target.feature, ""),
            target.why,
        )
        for target in reached
    ]
    how = {"schedule": schedule.to_dict(), "span": span, "folded": scales is not None}
    return SteeringPlan(SteeringDirection.ACTIVATE, tuple(steps), made_by={**how, **_reach_told(reach, upto)})


def suppression_plan(
    targets: Iterable[Target],
    r: float,
    *,
    reach: Reach = Reach.SPAN,
    upto: int | None = None,
    labels: Mapping[FeatureId, str] | None = None,
) -> SteeringPlan:
    """A plan that multiplies each target's share of the hidden state by `r` (sections 4.2 and 5.3).

    `made_by` notes r and the reach; `dataclasses.replace` names the release, the model, the theme.

    Args:
        targets: what `pick` kept.
        r: 0 removes, 1 changes nothing, below 0 turns round; the same for every target.
        reach: layer `upto` alone, all layers up to it, or all.
        upto: l of the first two, None for the third.
        labels: what features stand for.

    Raises:
        InvalidArgument: when no target lies in reach, `upto` and `reach` do not go together, or `r` is not finite.
    """
    chosen = tuple(targets)
    schedule_span(chosen)  # refuses an empty choice with the reason
    steps = tuple(
        Step(target.feature, r, (labels or {}).get(target.feature, ""), target.why)
        for target in targets_within(chosen, reach, upto)
    )
    return SteeringPlan(SteeringDirection.SUPPRESS, steps, made_by={"r": r, **_reach_told(reach, upto)})


def targets_within(targets: Iterable[Target], reach: Reach, upto: int | None) -> list[Target]:
    """The targets whose layer a plan of that reach changes.

    Raises:
        InvalidArgument: when there is none, or `upto` and `reach` do not go together.
    """
    targets = tuple(targets)
    if reach is Reach.SPAN and upto is not None:
        raise InvalidArgument(
            f"upto = {upto} has no meaning for the whole span. Leave it out, or give reach single or cumulative."
        )
    if reach is not Reach.SPAN and upto is None:
        raise InvalidArgument(f"reach {reach.value} needs a layer. Give upto, such as upto = 4.")
    found = [target for target in targets if reach.covers(target.feature.layer, upto)]
    if not found:
        there = sorted({target.feature.layer for target in targets})
        where = f"at layer {upto}" if reach is Reach.SINGLE else f"at layers 0 to {upto}"
        raise InvalidArgument(
            f"no target lies {where}. There are targets at layers {', '.join(map(str, there))}: give one of these."
        )
    return found


def _reach_told(reach: Reach, upto: int | None) -> dict[str, Any]:
    return {"reach": reach.value} if upto is None else {"reach": reach.value, "upto": upto}
