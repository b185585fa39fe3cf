"""Graphs joined, expanded and cut to layers: nothing is invented, nothing of what was asked for is lost."""

from dataclasses import replace

import pytest

from saeflow.errors import InvalidArgument
from saeflow.flow import Direction, FlowGraph, Reason, Thresholds, trace
from saeflow.flow.union import expand, union, within
from saeflow.ids import Part, Site
from saeflow.report import render


def pairs(graph):
    return {(edge.parent, edge.child) for edge in graph.edges}


def features(graph):
    return {node.feature for node in graph.nodes}


def test_a_union_has_every_node_and_edge_of_its_graphs_once(planted, atlas):
    one, other = (trace(planted.feature(c, 3), atlas, k=3) for c in (0, 4))
    whole = union([one, other])
    assert features(whole) == features(one) | features(other)
    assert len(whole.nodes) == len(features(whole))
    assert pairs(whole) == pairs(one) | pairs(other)
    assert len(whole.edges) == len(pairs(whole))
    assert whole.seed == one.seed
    assert list(whole.nodes) == sorted(whole.nodes, key=lambda node: node.feature)


def test_a_graph_joined_with_itself_or_alone_is_itself(planted, atlas):
    graph = trace(planted.feature(0, 3), atlas, k=2)
    assert union([graph]) == graph
    assert union([graph, graph]) == graph


def test_the_union_of_two_halves_is_the_whole(planted, atlas):
    seed = planted.feature(4, 3)
    back, ahead = (
        trace(seed, atlas, backward=way is Direction.BACKWARD, forward=way is Direction.FORWARD) for way in Direction
    )
    assert union([back, ahead]) == trace(seed, atlas)


def test_an_edge_that_both_hold_keeps_the_better_rank(planted, atlas):
    graph = trace(planted.feature(0, 3), atlas, k=3)
    worse = FlowGraph.from_json(graph.to_json().replace('"rank": 0', '"rank": 4'))
    assert {e.rank for e in worse.edges} != {e.rank for e in graph.edges}
    assert union([worse, graph]).edges == graph.edges == union([graph, worse]).edges


def test_what_ends_in_one_graph_and_goes_on_in_another_is_no_end(planted, atlas):
    number, chain = next((c, chain) for c, chain in enumerate(planted.chains) if {2, 3, 4, 5} <= chain.keys())
    short = within(trace(planted.feature(number, 3), atlas), 2, 3)
    stopped = expand(short, [], atlas, k=1)
    assert stopped == short
    low = trace(planted.feature(number, 2), atlas, thresholds=Thresholds(res=0.99))
    assert any(end.reason is Reason.BELOW_THRESHOLD for end in low.ends)
    followed = expand(low, [low.seed], atlas, k=1)
    gone = {(end.feature, end.direction) for end in low.ends} - {(end.feature, end.direction) for end in followed.ends}
    assert (low.seed, Direction.FORWARD) in gone
    assert chain[3] in {f.index for f in features(followed) if f.site == Site(3, Part.RES)}


def test_graphs_of_other_thresholds_are_refused(planted, atlas):
    one = trace(planted.feature(0, 3), atlas)
    other = trace(planted.feature(0, 3), atlas, thresholds=Thresholds(res=0.4))
    with pytest.raises(InvalidArgument, match="different releases or thresholds"):
        union([one, other])
    with pytest.raises(InvalidArgument, match="no graph"):
        union([])


def test_an_expanded_node_shows_its_best_matches_at_every_site_whatever_they_score(planted, atlas):
    graph = trace(planted.feature(0, 3), atlas, thresholds=Thresholds(res=0.99, module=0.99))
    assert len(graph.nodes) == 1
    wide = expand(graph, [graph.seed], atlas, k=3)
    for site in (*graph.seed.site.predecessors, graph.seed.site.successor):
        expected = {match.feature for match in atlas.best(graph.seed, site, 3)}
        assert {f for f in features(wide) if f.site == site} >= expected
    scores = {(e.parent, e.child): e.score for e in wide.edges}
    for match in atlas.best(graph.seed, Site(2, Part.RES), 3):
        assert scores[match.feature, graph.seed] == match.score
    assert {e.rank for e in wide.edges} == {0, 1, 2}


def test_nodes_of_an_expansion_are_those_of_graphs_of_their_own(planted, atlas):
    graph = trace(planted.feature(0, 3), atlas)
    wide = expand(graph, [graph.seed], atlas, k=4)
    for node in wide.nodes:
        alone = trace(node.feature, atlas, thresholds=graph.thresholds)
        assert node == alone.by_feature[node.feature]


def test_what_is_added_brings_its_modules_above_the_threshold_only(planted, atlas):
    graph = trace(planted.feature(0, 3), atlas)
    wide = expand(graph, [graph.seed], atlas, k=4, modules=2)
    added = features(wide) - features(graph)
    assert any(feature.part is Part.RES for feature in added)
    for feature in (f for f in added if f.part is Part.RES):
        for site in (Site(feature.layer, Part.MLP), Site(feature.layer, Part.ATT)):
            cut = graph.thresholds.of(site.part, feature.layer)
            expected = {m.feature for m in atlas.best(feature, site, 2) if m.score >= cut}
            assert {p for p, c in pairs(wide) if c == feature and p.site == site} >= expected


def test_an_expansion_keeps_the_graph_it_grew_from(planted, atlas):
    graph = trace(planted.feature(0, 3), atlas, k=2)
    wide = expand(graph, [graph.seed], atlas, k=4)
    assert features(graph) <= features(wide)
    kept = {(e.parent, e.child): e for e in wide.edges}
    assert all(kept[e.parent, e.child] == e for e in graph.edges)
    assert FlowGraph.from_json(wide.to_json()) == wide
    assert str(graph.seed) in render(wide)


def test_expanding_what_is_no_node_is_refused(planted, atlas):
    graph = trace(planted.feature(0, 3), atlas)
    strange = planted.feature(4, 3)
    with pytest.raises(InvalidArgument, match=str(strange)):
        expand(graph, [strange], atlas, k=2)
    with pytest.raises(InvalidArgument, match="k=0"):
        expand(graph, [graph.seed], atlas, k=0)
    with pytest.raises(InvalidArgument, match="keeps 5"):
        expand(graph, [graph.seed], atlas, k=6)


def test_layers_cut_off_take_their_edges_and_ends_with_them(planted, atlas):
    graph = trace(planted.feature(0, 3), atlas)
    part = within(graph, 2, 4)
    assert features(part) == {f for f in features(graph) if 2 <= f.layer <= 4}
    assert pairs(part) == {(p, c) for p, c in pairs(graph) if p.layer >= 2 and c.layer <= 4}
    assert part.span == (2, 4)
    assert {end.feature for end in part.ends} <= features(part)
    assert within(graph, None, None) is graph
    assert within(graph, 0, None) == graph == within(graph, None, 5)


def test_names_of_steps_outlive_joining_expanding_and_cutting(planted, atlas):
    steps = tuple(f"checkpoint {n}" for n in range(6))
    graph = replace(trace(planted.feature(0, 3), atlas), steps=steps)
    for made in (union([graph]), expand(graph, [graph.seed], atlas, k=1), within(graph, 2, 4)):
        assert made.layer_name(3) == "checkpoint 3"


def test_layers_without_the_seed_are_refused(planted, atlas):
    graph = trace(planted.feature(0, 3), atlas)
    for first, last in ((4, 5), (0, 2), (5, 1)):
        with pytest.raises(InvalidArgument, match="leave out the seed"):
            within(graph, first, last)
