"""Trace recovers a planted chain exactly, stops where it was cut, and says why."""

import itertools
from dataclasses import replace

import pytest

from saeflow.errors import BadFile, InvalidArgument, UnknownFeature, UnknownSite
from saeflow.flow import Direction, End, Evolution, FlowGraph, Reason, Thresholds, trace
from saeflow.ids import FeatureId, Part, Site

from ..matching.planted import N_LAYERS


def residual(graph):
    return {node.feature.layer: node.feature.index for node in graph.nodes if node.feature.part is Part.RES}


# Unrelated random rows of width 96 reach about 0.3 among 80: modules are cut above that.
CUT = Thresholds(res=0.5, module=0.5)


def test_every_planted_chain_is_recovered_from_its_ends_and_its_middle(planted, atlas):
    for number, chain in enumerate(planted.chains):
        for layer in {min(chain), (min(chain) + max(chain)) // 2, max(chain)}:
            graph = trace(planted.feature(number, layer), atlas, thresholds=CUT)
            assert residual(graph) == chain, f"chain {number} from layer {layer}"
            assert graph.span == (min(chain), max(chain))


def test_a_newborn_feature_is_traced_to_the_module_that_wrote_it(planted, atlas):
    for number, (site, index) in planted.writers.items():
        born = planted.feature(number, site.layer)
        graph = trace(born, atlas, thresholds=CUT)
        node = graph.by_feature[born]
        assert node.evolution is Evolution.NEWBORN
        assert node.joins == (site.part,)
        assert [edge.parent for edge in graph.parents(born)] == [FeatureId(site, index)]
        written = trace(FeatureId(site, index), atlas, thresholds=CUT)
        assert residual(written) == planted.chains[number]


def test_ends_say_where_and_why(planted, atlas):
    for number, chain in enumerate(planted.chains):
        graph = trace(planted.feature(number, max(chain)), atlas, thresholds=CUT)
        ends = {(e.direction, e.feature.part): e for e in graph.ends if e.feature.part is Part.RES}
        first, last = ends[Direction.BACKWARD, Part.RES], ends[Direction.FORWARD, Part.RES]
        assert first.reason is (Reason.BELOW_THRESHOLD if min(chain) else Reason.FIRST_LAYER)
        cut = number in planted.cut_after
        assert last.reason is (Reason.BELOW_THRESHOLD if cut else Reason.LAST_LAYER)
        assert last.feature.layer == planted.cut_after.get(number, N_LAYERS - 1)
        if cut:
            assert last.score is not None
            assert last.score < 0.5
            assert f"{last.score:.2f}" in last.sentence
            assert "t(R) = 0.50" in last.sentence


def test_a_score_just_below_its_cut_is_told_apart_from_it():
    seed = FeatureId.parse("2/res/1")
    end = End(seed, Direction.BACKWARD, Reason.BELOW_THRESHOLD, 0.3996, 0.4)
    assert "scores 0.3996, below t(R) = 0.40" in end.sentence
    module = End(FeatureId.parse("2/mlp/1"), Direction.FORWARD, Reason.BELOW_THRESHOLD, 0.1, 0.15)
    assert "scores 0.10, below t(M) = 0.15" in module.sentence


def test_a_threshold_of_zero_follows_the_whole_depth(planted, atlas):
    graph = trace(planted.feature(0, 3), atlas, thresholds=Thresholds(res=0.0, module=1.0))
    assert graph.span == (0, N_LAYERS - 1)
    assert len(residual(graph)) == N_LAYERS


def test_scores_are_those_of_the_best_matches(planted, atlas):
    graph = trace(planted.feature(2, 4), atlas, thresholds=CUT)
    for node in graph.nodes:
        if node.scores is None:
            continue
        for target in node.feature.site.predecessors:
            assert node.scores.of(target.part) == atlas.best(node.feature, target, 1)[0].score
        if node.feature.layer == 0:
            assert node.scores.res is None


def test_forward_and_backward_alone_are_the_two_halves(planted, atlas):
    seed = planted.feature(2, 2)
    back = trace(seed, atlas, thresholds=CUT, forward=False)
    ahead = trace(seed, atlas, thresholds=CUT, backward=False)
    both = trace(seed, atlas, thresholds=CUT)
    assert set(back.by_feature) | set(ahead.by_feature) == set(both.by_feature)
    assert max(residual(back)) == 2
    assert min(residual(ahead)) == 2


def test_more_matches_only_add(planted, atlas):
    seed = planted.feature(2, 4)
    loose = Thresholds(res=0.2, module=0.2)
    graphs = [trace(seed, atlas, thresholds=loose, k=k) for k in (1, 2, 5)]
    for small, large in itertools.pairwise(graphs):
        assert set(small.by_feature) <= set(large.by_feature)
        assert {(e.parent, e.child) for e in small.edges} <= {(e.parent, e.child) for e in large.edges}
    assert len(graphs[-1].edges) > len(graphs[0].edges)


def test_edges_join_nodes_and_reach_their_cut(planted, atlas):
    graph = trace(planted.feature(2, 4), atlas, thresholds=Thresholds(res=0.3, mlp=0.2, att=0.4), k=5)
    for edge in graph.edges:
        assert {edge.parent, edge.child} <= set(graph.by_feature)
        assert edge.score >= graph.thresholds.of(edge.parent.part)
        assert edge.parent.site in edge.child.site.predecessors


def test_json_gives_the_same_graph_back(planted, atlas):
    graph = trace(planted.feature(3, 4), atlas, thresholds=CUT, k=2)
    assert FlowGraph.from_json(graph.to_json()) == graph


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other", "version": 1}', "null"])
def test_json_of_another_kind_is_refused(text):
    with pytest.raises(BadFile, match="saeflow graph"):
        FlowGraph.from_json(text)


def test_graphml_holds_every_node_and_edge(planted, atlas):
    networkx = pytest.importorskip("networkx")
    graph = trace(planted.feature(3, 4), atlas, thresholds=CUT)
    read = networkx.parse_graphml(graph.to_graphml())
    assert set(read.nodes) == {str(node.feature) for node in graph.nodes}
    assert {(a, b): d["score"] for a, b, d in read.edges(data=True)} == {
        (str(e.parent), str(e.child)): e.score for e in graph.edges
    }


def test_the_edges_are_a_data_frame_too(planted, atlas):
    graph = trace(planted.feature(3, 4), atlas, thresholds=CUT)
    frame = graph.to_pandas()
    assert list(zip(frame["parent"], frame["child"], frame["score"], strict=True)) == [
        (str(edge.parent), str(edge.child), edge.score) for edge in graph.edges
    ]
    alone = replace(graph, nodes=(), edges=(), ends=()).to_pandas()
    assert (len(alone), alone.columns.to_list()) == (0, frame.columns.to_list())


def test_a_single_table_is_enough_for_one_step(planted, atlas):
    table = atlas[Site(3, Part.RES), Site(2, Part.RES)]
    graph = trace(planted.feature(2, 3), table, thresholds=CUT)
    assert residual(graph) == {3: planted.chains[2][3], 2: planted.chains[2][2]}


def test_an_unknown_seed_is_refused(atlas):
    with pytest.raises(UnknownFeature, match="0 to 79"):
        trace(FeatureId.parse("3/res/80"), atlas)
    with pytest.raises(UnknownSite, match="layers 0 to 5"):
        trace(FeatureId.parse("17/res/0"), atlas)
    with pytest.raises(InvalidArgument, match="k=0"):
        trace(FeatureId.parse("3/res/0"), atlas, k=0)
    with pytest.raises(InvalidArgument, match="keeps 5"):
        trace(FeatureId.parse("3/res/0"), atlas, k=6)


def test_mutual_best_matches_are_marked(planted, atlas):
    graph = trace(planted.feature(4, 3), atlas, k=3, thresholds=Thresholds(res=0.0, module=-1.0))
    assert {edge.mutual for edge in graph.edges} == {True, False}
    for edge in graph.edges:
        there = atlas.best(edge.parent, edge.child.site, 1)[0].feature == edge.child
        back = atlas.best(edge.child, edge.parent.site, 1)[0].feature == edge.parent
        assert edge.mutual == (there and back)


def test_a_match_known_from_one_side_alone_is_not_called_mutual(planted, atlas):
    class OneWay:
        def has(self, source, target):
            return source > target and atlas.has(source, target)

        def best(self, feature, target, k=None):
            return atlas.best(feature, target, k)

    graph = trace(planted.feature(4, 3), OneWay(), forward=False)
    assert graph.edges
    assert all(edge.mutual is None for edge in graph.edges)
