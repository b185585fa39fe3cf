"""Releases that leave layers out: a flow goes to the nearest residual dictionary, and says so."""

from __future__ import annotations

import json

import pytest

from saeflow.flow import Direction, Evolution, FlowGraph, Reason, Thresholds, trace
from saeflow.flow.union import expand
from saeflow.ids import Part, Site
from saeflow.matching.build import build_atlas
from saeflow.matching.calibration import calibrate
from saeflow.matching.direct import DirectMatches
from saeflow.report import render
from saeflow.report.views import graph_data

from ..matching.planted import N_LAYERS, plant

CUT = Thresholds(res=0.5, module=0.5)
LEFT_OUT = 1


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def dictionaries(planted):
    """The planted dictionaries without those of layer 1."""
    return {site: found for site, found in planted.dictionaries.items() if site.layer != LEFT_OUT}


@pytest.fixture(scope="module")
def atlas(dictionaries, tmp_path_factory):
    return build_atlas(dictionaries, out=tmp_path_factory.mktemp("atlas"), k=5, release="planted")


def _across(planted):
    """A chain that passes the layer left out, and its features on both sides."""
    number = next(n for n, chain in enumerate(planted.chains) if {LEFT_OUT - 1, LEFT_OUT + 1} <= set(chain))
    return planted.feature(number, LEFT_OUT - 1), planted.feature(number, LEFT_OUT + 1)


def test_the_atlas_matches_the_nearest_layer_that_is_there(atlas):
    low, high = Site(LEFT_OUT - 1, Part.RES), Site(LEFT_OUT + 1, Part.RES)
    assert atlas.has(high, low)
    assert atlas.has(low, high)
    assert not any(site.layer == LEFT_OUT for site in atlas.sites)


def test_a_flow_crosses_the_gap_in_both_directions_and_names_it(planted, atlas, dictionaries):
    before, after = _across(planted)
    for matches in (atlas, DirectMatches(dictionaries)):
        for seed in (before, after):
            graph = trace(seed, matches, thresholds=CUT)
            assert {(edge.parent, edge.child) for edge in graph.edges} >= {(before, after)}
            node = graph.by_feature[after]
            assert node.below == LEFT_OUT - 1
            assert f"layer {LEFT_OUT - 1} (the nearest below it with a dictionary)" in node.sentence.lower()
            assert all(n.below is None for n in graph.nodes if n.feature.layer != LEFT_OUT + 1)
    text = render(graph, to="text")
    assert f"layer {LEFT_OUT + 1} to {LEFT_OUT - 1} instead of the layer before" in " ".join(text.split())
    again = FlowGraph.from_json(graph.to_json())
    assert again == graph
    rows = {row["feature"]: row for row in json.loads(json.dumps(graph_data(graph)))["nodes"]}
    assert rows[str(after)]["below"] == LEFT_OUT - 1
    assert "below" not in rows[str(before)]


def test_expanding_a_node_crosses_the_gap_too(planted, atlas):
    before, after = _across(planted)
    alone = trace(after, atlas, thresholds=CUT, backward=False, forward=False)
    assert before in expand(alone, [after], atlas, k=1, modules=1).by_feature


def test_a_gap_is_calibrated_like_neighbours(dictionaries, tmp_path):
    atlas = build_atlas(dictionaries, out=tmp_path, k=5, release="planted")
    atlas = calibrate(dictionaries, atlas, rows=80, null="rotation")
    cuts = Thresholds.calibrated(atlas)
    assert (LEFT_OUT + 1, Part.RES) in cuts.cuts
    assert (LEFT_OUT + 1, Part.RES) in cuts.ahead


def test_what_was_not_matched_to_a_layer_below_has_no_case(planted, dictionaries, tmp_path):
    lowest = N_LAYERS - 1
    top = {site: found for site, found in dictionaries.items() if site.layer == lowest}
    atlas = build_atlas(top, out=tmp_path, k=5, release="top")
    number = next(n for n, chain in enumerate(planted.chains) if lowest in chain)
    graph = trace(planted.feature(number, lowest), atlas, thresholds=CUT)
    node = graph.by_feature[graph.seed]
    assert node.evolution is None
    assert node.sentence.startswith("Not matched")
    assert next(e for e in graph.ends if e.direction is Direction.BACKWARD).reason is Reason.NO_TABLE
    assert "not matched" in render(graph, to="text", words={})
    number = next(n for n, chain in enumerate(planted.chains) if 0 in chain)
    first = trace(planted.feature(number, 0), DirectMatches(planted.dictionaries), thresholds=CUT)
    assert first.by_feature[first.seed].evolution in {Evolution.NEWBORN, Evolution.UNEXPLAINED}  # nothing is before it
