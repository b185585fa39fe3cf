"""Targets are the union of graphs in any order, scored by the widest path; plans give each the value of its layer."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite
from saeflow.flow import Edge, FlowGraph, Node, Thresholds, trace
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.words import FeatureWords
from saeflow.matching.build import build_atlas
from saeflow.steering.build import PlanRequest, plan_of
from saeflow.steering.growth import Chosen, Reach, Target, grow, pick, schedule_span, targets
from saeflow.steering.plan import Dropped, SteeringDirection
from saeflow.steering.schedule import Constant, Exponential, Linear

from ..matching.planted import plant
from .plans import feature

CUT = Thresholds(res=0.5, module=0.5)


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def atlas(planted, tmp_path_factory):
    return build_atlas(planted.dictionaries, out=tmp_path_factory.mktemp("atlas"), k=5, release="planted")


def target(name, score=None, *, start=False, seeds=("0/res/0",)):
    return Target(feature(name), start, score, tuple(map(feature, seeds)))


def graph_of(seed, edges):
    """A graph from `{("0/res/1", "1/res/2"): 0.7}`."""
    made = tuple(Edge(feature(a), feature(b), score) for (a, b), score in edges.items())
    features = sorted({feature(seed), *(f for edge in made for f in (edge.parent, edge.child))})
    layers = [f.layer for f in features if f.part is Part.RES]
    span = (min(layers), max(layers)) if layers else None
    return FlowGraph(feature(seed), tuple(map(Node, features)), made, (), Thresholds(), span)


def test_every_start_has_its_graph_once_in_the_order_given(planted, atlas):
    starts = [planted.feature(2, 4), planted.feature(7, 1), planted.feature(2, 4)]
    grown = grow(starts, atlas, thresholds=CUT, k=2)
    assert grown == tuple(trace(start, atlas, thresholds=CUT, k=2) for start in starts[:2])


def test_a_planted_chain_is_what_is_steered(planted, atlas):
    for number in (2, 3, 5):
        chain = planted.chains[number]
        found = targets(grow([planted.feature(number, max(chain))], atlas, thresholds=CUT), parts=[Part.RES])
        assert {t.feature.layer: t.feature.index for t in found} == chain
        assert [t.start for t in found] == [t.feature.layer == max(chain) for t in found]
        assert all(t.seeds == (planted.feature(number, max(chain)),) for t in found)


def test_graphs_need_a_start_that_is_known(atlas):
    with pytest.raises(InvalidArgument, match="no feature to start from"):
        grow([], atlas)
    with pytest.raises(UnknownFeature):
        grow([feature("3/res/80")], atlas)
    with pytest.raises(UnknownSite):
        grow([feature("17/res/0")], atlas)


def test_a_score_is_the_weakest_edge_of_the_best_path():
    edges = {("0/res/1", "1/res/1"): 0.9, ("1/res/1", "2/res/1"): 0.6, ("2/mlp/5", "2/res/1"): 0.8}
    found = {str(t.feature): t.score for t in targets([graph_of("0/res/1", edges)])}
    assert found == {"0/res/1": None, "1/res/1": 0.9, "2/res/1": 0.6, "2/mlp/5": 0.6}
    edges[("0/res/1", "2/res/1")] = 0.7  # another way round
    found = {str(t.feature): t.score for t in targets([graph_of("0/res/1", edges)])}
    assert found["2/res/1"] == found["2/mlp/5"] == 0.7
    assert found["1/res/1"] == 0.9


@st.composite
def edge_tables(draw):
    names = [f"{layer}/res/{index}" for layer in range(4) for index in range(2)]
    pairs = [(a, b) for a in names for b in names if a < b]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=12))
    return {pair: draw(st.integers(-100, 100)) / 100 for pair in chosen}


@given(edge_tables())
def test_scores_agree_with_trying_every_path(edges):
    graph = graph_of("1/res/0", edges)
    found = {str(t.feature): t.score for t in targets([graph])}
    net = nx.Graph()
    net.add_node("1/res/0")
    for (a, b), score in edges.items():
        net.add_edge(a, b, score=score)
    reached = nx.node_connected_component(net, "1/res/0")
    assert set(found) == reached
    for other in reached - {"1/res/0"}:
        paths = nx.all_simple_paths(net, "1/res/0", other)
        assert found[other] == max(min(net.edges[e]["score"] for e in nx.utils.pairwise(p)) for p in paths)


@given(st.lists(st.tuples(st.sampled_from(["0/res/0", "1/res/1", "2/res/0"]), edge_tables()), max_size=4), st.data())
def test_the_union_does_not_depend_on_the_order_of_the_graphs(drawn, data):
    graphs = [graph_of(seed, edges) for seed, edges in drawn]
    found = targets(graphs)
    assert targets(data.draw(st.permutations(graphs))) == found
    assert [t.feature for t in found] == sorted({t.feature for graph in graphs for t in targets([graph])})
    for one in found:
        alone = [t for graph in graphs for t in targets([graph]) if t.feature == one.feature]
        assert one.seeds == tuple(sorted({seed for t in alone for seed in t.seeds}))
        assert one.start == any(t.start for t in alone)
        scores = [t.score for t in alone]
        assert one.score == (None if one.start else max(scores))


def test_parts_are_left_out_after_paths_went_through_them():
    edges = {("1/mlp/3", "1/res/1"): 0.4, ("1/res/1", "2/res/1"): 0.9}
    found = targets([graph_of("1/mlp/3", edges)], parts=[Part.RES])
    assert [(str(t.feature), t.score) for t in found] == [("1/res/1", 0.4), ("2/res/1", 0.4)]


def test_a_target_says_why_it_is_one():
    assert target("0/res/0", start=True).why == "start"
    assert target("1/res/0", 0.713).why == "path 0.71 from 0/res/0"
    assert target("1/res/0", 0.713, seeds=("0/res/0", "4/res/1")).why == "path 0.71 from 2 starts"


TARGETS = (
    target("0/att/4", 0.6),
    target("1/res/1", 0.8),
    target("2/mlp/2", 0.5),
    target("2/res/9", start=True),
    target("4/res/3", 0.4),
)


def test_what_is_picked_and_what_is_dropped_make_up_the_targets():
    kept, dropped = pick(TARGETS, drop={feature("1/res/1"): "about sports"}, min_score=0.45)
    assert [str(t.feature) for t in kept] == ["0/att/4", "2/mlp/2", "2/res/9"]
    assert dropped == (
        Dropped(feature("1/res/1"), "about sports"),
        Dropped(feature("4/res/3"), "path 0.400, below 0.45"),
    )
    assert pick(TARGETS) == (TARGETS, ())
    assert pick(TARGETS, drop={feature("9/res/9"): ""}) == (TARGETS, ())
    assert [t.start for t in pick(TARGETS, min_score=1.0)[0]] == [True]
    only, rest = pick(TARGETS, keep=[feature("2/mlp/2"), feature("4/res/3")], min_score=0.45)
    assert [str(t.feature) for t in only] == ["2/mlp/2"]
    assert {d.why for d in rest} == {"not among those kept", "path 0.400, below 0.45"}


def test_the_span_is_that_of_residual_targets():
    assert schedule_span(TARGETS) == (1, 4)
    assert schedule_span(TARGETS[:1]) == (0, 0)
    with pytest.raises(InvalidArgument, match="no target is left"):
        schedule_span(())


START = feature("2/res/9")
SUPPRESS = SteeringDirection.SUPPRESS


def planned(kept=TARGETS, scales=None, **how):
    return plan_of(Chosen(tuple(kept)), PlanRequest(starts=(START,), **how), scales=scales)


SCHEDULES = [Constant(3.0), Linear(8.0, 1.0), Exponential(3.0, -0.25)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_target_gets_the_coefficient_of_its_layer_times_its_scale(schedule):
    scales = {t.feature: 1.0 + t.feature.index for t in TARGETS}
    plain = planned(schedule=schedule)
    folded = planned(schedule=schedule, scales=scales)
    for bare, scaled in zip(plain.steps, folded.steps, strict=True):
        assert bare.value == schedule.at(bare.feature.layer, (1, 4))
        assert scaled.value == bare.value * scales[bare.feature]
    assert plain.features == tuple(t.feature for t in TARGETS)
    assert plain.made_by == {"schedule": schedule.to_dict(), "span": [1, 4], "folded": False, "reach": "span"}


def plans_of(**how):
    return [planned(schedule=schedule, **how) for schedule in SCHEDULES] + [planned(direction=SUPPRESS, r=-2.0, **how)]


def test_single_is_cumulative_at_the_first_layer():
    first = min(t.feature.layer for t in TARGETS)
    single, cumulative = (plans_of(reach=Reach.SINGLE, upto=first), plans_of(reach=Reach.CUMULATIVE, upto=first))
    assert [plan.steps for plan in single] == [plan.steps for plan in cumulative]


def test_cumulative_at_the_last_layer_is_the_whole_span_and_singles_make_it_up():
    whole = plans_of()
    assert [plan.steps for plan in plans_of(reach=Reach.CUMULATIVE, upto=4)] == [p.steps for p in whole]
    alone = [plans_of(reach=Reach.SINGLE, upto=layer) for layer in (0, 1, 2, 4)]
    for plan, singles in zip(whole, zip(*alone, strict=True), strict=True):
        assert tuple(step for single in singles for step in single.steps) == plan.steps


def test_a_plan_says_what_it_was_made_of():
    chosen = Chosen(TARGETS, (Dropped(feature("9/res/9"), "no"),))

    class Known:
        def get(self, one):
            return FeatureWords("tides") if one == feature("1/res/1") else None

        def site(self, site):
            return []

    for direction in SteeringDirection:
        request = PlanRequest("r", direction, "t", reach=Reach.CUMULATIVE, upto=2)
        plan = plan_of(chosen, request, words=Known(), made_by={"k": 2})
        assert plan.direction is direction
        assert (plan.release, plan.theme) == ("r", "t")
        assert plan.dropped == chosen.dropped
        assert [step.label for step in plan.steps] == ["", "tides", "", ""]
        assert [step.why for step in plan.steps][2:] == ["path 0.50 from 0/res/0", "start"]
        assert (plan.made_by["reach"], plan.made_by["upto"], plan.made_by["k"]) == ("cumulative", 2, 2)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"reach": Reach.SINGLE, "upto": 3}, "at layer 3. There are targets at layers 0, 1, 2, 4"),
        ({"reach": Reach.CUMULATIVE, "upto": -1}, "at layers 0 to -1. There are targets at layers 0, 1, 2, 4"),
        ({"reach": Reach.SINGLE}, "reach single needs a layer"),
        ({"reach": Reach.CUMULATIVE}, "reach cumulative needs a layer"),
        ({"upto": 3}, "--upto 3 has no meaning"),
    ],
)
def test_a_plan_without_a_step_says_where_there_are_targets(how, said):
    for direction in SteeringDirection:
        with pytest.raises(InvalidArgument, match=said):
            planned(direction=direction, **how)


def test_no_target_or_no_scale_is_refused():
    for direction in SteeringDirection:
        with pytest.raises(InvalidArgument, match="no target is left"):
            planned((), direction=direction)
    with pytest.raises(InvalidArgument, match="no scale for 1/res/1, 2/mlp/2"):
        planned(scales={TARGETS[i].feature: 1.0 for i in (0, 3, 4)})


def test_sites_and_ids_are_the_real_ones(planted, atlas):
    """A plan of a planted chain names the site of every layer of the chain."""
    found = targets(grow([planted.feature(2, 3)], atlas, thresholds=CUT), parts=[Part.RES])
    plan = planned(found, direction=SUPPRESS)
    assert plan.sites == tuple(Site(layer, Part.RES) for layer in sorted(planted.chains[2]))
    assert all(isinstance(f, FeatureId) for f in plan.features)
