"""Where things are drawn: boxes never overlap, a band holds its layer, edges run between the boxes."""

import re
from itertools import combinations, pairwise

import pytest

from saeflow.flow.graph import FlowGraph, Node
from saeflow.flow.scores import Thresholds
from saeflow.ids import FeatureId, Part
from saeflow.report.layout import BOX_WIDTH, TEXT_SIZE, NodeBox, lay_out, text_width, wrap

from .report_graphs import GRAPHS, words_for

EVERY_GRAPH = pytest.mark.parametrize("name", GRAPHS)


def apart(a: NodeBox, b: NodeBox) -> bool:
    beside = a.right <= b.x or b.right <= a.x
    return beside or a.y + a.height <= b.y or b.y + b.height <= a.y


@EVERY_GRAPH
@pytest.mark.parametrize("known", [True, False])
def test_no_two_boxes_overlap_and_all_lie_in_the_figure(name, known):
    graph = GRAPHS[name]
    layout = lay_out(graph, words_for(graph)) if known else lay_out(graph)
    assert [p.node for p in layout.boxes] == list(graph.nodes)
    assert all(apart(a, b) for a, b in combinations(layout.boxes, 2))
    for box in layout.boxes:
        assert 0 <= box.x < box.right <= layout.width
        assert 0 <= box.y < box.y + box.height <= layout.height


@EVERY_GRAPH
def test_every_box_lies_in_the_lane_of_its_part(name):
    layout = lay_out(GRAPHS[name])
    lanes = {lane.part: lane for lane in layout.lanes}
    assert set(lanes) == set(Part)
    for box in layout.boxes:
        lane = lanes[box.node.feature.part]
        assert lane.y <= box.y
        assert box.y + box.height <= lane.y + lane.height


@EVERY_GRAPH
def test_no_edge_crosses_a_box(name):
    layout = lay_out(GRAPHS[name], words_for(GRAPHS[name]))
    assert len(layout.wires) == len(GRAPHS[name].edges)
    for wire in layout.wires:
        for x, y in points(wire.path):
            for box in layout.boxes:
                inside = box.x + 0.1 < x < box.right - 0.1 and box.y + 0.1 < y < box.y + box.height - 0.1
                assert not inside, (wire.edge, box.node.feature)


def points(path: str) -> list[tuple[float, float]]:
    """Points along a cubic Bézier curve written `Mx yC...`."""
    n = [float(found) for found in re.findall(r"-?[\d.]+", path)]
    (x0, y0), *rest = zip(n[::2], n[1::2], strict=True)
    (x1, y1), (x2, y2), (x3, y3) = rest
    ts = [i / 60 for i in range(61)]
    weights = [((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3) for t in ts]
    return [(a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3) for a, b, c, d in weights]


@EVERY_GRAPH
def test_layers_run_left_to_right_and_a_band_holds_all_of_its_layer_and_nothing_else(name):
    layout = lay_out(GRAPHS[name])
    layers = [band.layer for band in layout.bands]
    assert layers == sorted({node.feature.layer for node in GRAPHS[name].nodes})
    assert all(a.x + a.width < b.x for a, b in pairwise(layout.bands))
    bands = {band.layer: band for band in layout.bands}
    for box in layout.boxes:
        band = bands[box.node.feature.layer]
        assert band.x < box.x < box.right < band.x + band.width
    for wire in layout.wires:
        parent, child = wire.edge.parent, wire.edge.child
        xs = [x for x, _ in points(wire.path)]
        assert bands[parent.layer].x < min(xs) <= max(xs) < bands[child.layer].x + bands[child.layer].width


def test_many_features_of_a_site_take_several_columns_that_fill_a_screen():
    features = [FeatureId.parse(f"{layer}/{part}/{i}") for layer in (0, 1) for part in Part for i in range(60)]
    graph = FlowGraph(features[0], tuple(map(Node, features)), (), (), Thresholds(), None)
    layout = lay_out(graph)
    assert all(apart(a, b) for a, b in combinations(layout.boxes, 2))
    assert 1.2 < layout.width / layout.height < 2.2


def test_layers_without_nodes_take_no_room():
    graph = GRAPHS["alone"]
    far = FeatureId.parse("9000/res/1")
    wide = FlowGraph(far, (*graph.nodes, Node(far)), (), (), Thresholds(), None)
    assert lay_out(wide).width < 3 * BOX_WIDTH + 200


@pytest.mark.parametrize(
    "text",
    ["short", "a label that is far too long to stand on two lines of a box", "W" * 80, "粒子物理学" * 12, "", "a b"],
)
def test_wrapped_words_fit_and_end_in_an_ellipsis_only_where_cut(text):
    lines = wrap(text)
    assert len(lines) <= 2
    assert all(text_width(line, TEXT_SIZE) <= BOX_WIDTH - 20 for line in lines)
    joined = "".join(lines).replace(" ", "")
    if joined.endswith("…"):
        assert text.replace(" ", "").startswith(joined[:-1])
    else:
        assert joined == text.replace(" ", "")
