"""Graphs cut by calibrated thresholds: each edge significant, each with its p-value, in every format."""

import json

import networkx
import pytest

from saeflow.flow import Evolution, FlowGraph, Reason, Thresholds, trace
from saeflow.ids import Part, Site
from saeflow.matching.build import build_atlas
from saeflow.matching.calibration import calibrate
from saeflow.report import render

from ..matching.planted import N_LAYERS, plant


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def atlas(planted, tmp_path_factory):
    made = build_atlas(planted.dictionaries, out=tmp_path_factory.mktemp("atlas"), k=5, release="planted")
    return calibrate(planted.dictionaries, made, rows=1000, rotations=4)


@pytest.fixture(scope="module")
def thresholds(atlas):
    return Thresholds.calibrated(atlas, 0.02)


def residual(graph):
    return {node.feature.layer: node.feature.index for node in graph.nodes if node.feature.part is Part.RES}


def test_planted_chains_are_recovered_without_a_threshold_by_hand(planted, atlas, thresholds):
    whole = sum(
        residual(trace(planted.feature(number, max(chain)), atlas, thresholds=thresholds)) == chain
        for number, chain in enumerate(planted.chains)
    )
    # 2 % of the kept edges may be false: few chains are longer than planted
    assert whole >= 0.9 * len(planted.chains)


def test_cases_follow_the_line_of_the_layer(planted, atlas, thresholds):
    newborn = sum(
        trace(planted.feature(number, site.layer), atlas, thresholds=thresholds)
        .by_feature[planted.feature(number, site.layer)]
        .evolution
        is Evolution.NEWBORN
        for number, (site, _) in planted.writers.items()
    )
    assert newborn >= 0.9 * len(planted.writers)


def test_every_edge_reaches_its_cut_and_has_its_p_value(planted, atlas, thresholds):
    for number in range(10):
        graph = trace(planted.feature(number, 3), atlas, thresholds=thresholds)
        for edge in graph.edges:
            child, parent = edge.child.site, edge.parent.site
            back, ahead = atlas.null(child, parent), atlas.null(parent, child)
            assert edge.p in (back.p_value(edge.score), ahead.p_value(edge.score))
            assert edge.p >= graph.p_floor == 1 / 4001
            lowest = min(thresholds.of(parent.part, child.layer, ahead=way) for way in (False, True))
            assert edge.score >= lowest
        for node in graph.nodes:
            for part in Part if node.scores else ():
                score = node.scores.of(part)
                other = next((p for p in node.feature.site.predecessors if p.part is part), None)
                expected = None if score is None else atlas.null(node.feature.site, other).p_value(score)
                assert node.p.of(part) == expected


def test_an_end_names_the_cut_of_its_layer(planted, atlas, thresholds):
    number = next(iter(planted.cut_after))
    graph = trace(planted.feature(number, 2), atlas, thresholds=thresholds)
    end = next(e for e in graph.ends if e.reason is Reason.BELOW_THRESHOLD)
    assert end.threshold == thresholds.of(Part.RES, end.feature.layer + 1, ahead=True)


def test_json_keeps_p_values_and_thresholds_by_layer(planted, atlas, thresholds):
    graph = trace(planted.feature(0, 3), atlas, thresholds=thresholds)
    again = FlowGraph.from_json(graph.to_json())
    assert again == graph
    assert again.thresholds.cuts == thresholds.cuts
    json.loads(graph.to_json(), parse_constant=pytest.fail)


def test_json_of_version_1_is_still_read(planted, atlas):
    graph = trace(planted.feature(0, 3), atlas, thresholds=Thresholds(res=0.4, att=0.3))
    old = graph.to_dict()
    del old["p_floor"], old["thresholds"]["layers"], old["thresholds"]["fdr"]
    for row in [*old["nodes"], *old["edges"]]:
        del row["p"]
    read = FlowGraph.from_json(json.dumps(old | {"version": 1}))
    assert read.thresholds == graph.thresholds
    assert [(e.parent, e.child, e.score) for e in read.edges] == [(e.parent, e.child, e.score) for e in graph.edges]
    assert all(e.p is None for e in read.edges)


def test_graphml_has_p_on_its_edges(planted, atlas, thresholds):
    graph = trace(planted.feature(0, 3), atlas, thresholds=thresholds)
    read = networkx.parse_graphml(graph.to_graphml())
    assert {(a, b): d["p"] for a, b, d in read.edges(data=True)} == {
        (str(e.parent), str(e.child)): e.p for e in graph.edges
    }


def test_an_atlas_without_nulls_gives_no_p(planted, tmp_path):
    plain = build_atlas(planted.dictionaries, out=tmp_path / "plain", k=1)
    graph = trace(planted.feature(0, 3), plain)
    assert graph.p_floor is None
    assert all(edge.p is None for edge in graph.edges)
    assert all(node.p is None for node in graph.nodes)
    assert "p " not in [line.split("  ")[0] for line in render(graph).splitlines()]


def test_text_shows_thresholds_by_layer_and_p(planted, atlas, thresholds):
    graph = trace(planted.feature(0, 4), atlas, thresholds=thresholds)
    text = render(graph, width=120)
    assert "Thresholds by layer of the residual feature" in text
    assert "false-discovery rate of 0.02" in text
    rows = [line.split() for line in text.splitlines() if line.split()[:1] == [str(graph.edges[0].parent)]]
    assert any(row[-1] == f"{graph.edges[0].p:.2g}" for row in rows)
    cut = thresholds.cuts[2, Part.RES]
    assert any(line.split()[:2] == ["2", f"{cut:.2f}"] for line in text.splitlines())


def test_a_pair_without_a_significant_match_says_none(planted, atlas):
    none = {(n, p): 1.0 for n in range(N_LAYERS) for p in Part}
    strict = Thresholds(cuts=none, ahead=none, fdr=0.01)
    graph = trace(planted.feature(0, 4), atlas, thresholds=strict)
    assert not graph.edges
    assert "t(R) = none, t(M) = none" in render(graph, width=200)


def test_the_page_and_the_figure_carry_p(planted, atlas, thresholds):
    graph = trace(planted.feature(0, 4), atlas, thresholds=thresholds)
    page, figure = render(graph, to="html"), render(graph, to="svg")
    edge = graph.edges[0]
    assert f"{edge.score:.2f}, match {edge.rank + 1}, p = {edge.p:.2g}" in figure
    assert '"p_floor":' in page
    assert "Thresholds by layer" in page


def test_site_pairs_of_an_atlas_are_all_used(atlas, thresholds):
    pairs = {(a.layer, b.part) for a, b in atlas if b in a.predecessors}
    assert set(thresholds.cuts) == set(thresholds.ahead) == pairs
    assert (3, Part.RES) in pairs
    assert Site(3, Part.RES) in atlas.sites
