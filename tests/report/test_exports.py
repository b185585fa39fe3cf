"""Graphs in the formats of other tools: complete, well-formed whatever the words hold, and readable there."""

import io
import itertools
import json
import math
import re
from collections import Counter
from html import unescape

import networkx as nx
import numpy as np
import pytest
from matplotlib import image

from saeflow.errors import InvalidArgument
from saeflow.flow.graph import Edge, FlowGraph, Node
from saeflow.flow.scores import Thresholds
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.words import FeatureWords
from saeflow.report import render
from saeflow.report.exports import COLUMNS, FORMATS, export, feature_number, png

NASTY = 'say "yes" \\ no\n<script>alert(1)</script> ]--> #35; end\u202e'
"""Quotes, a backslash, a line break, markup, what ends a Mermaid node, an entity, a change of direction."""


class Nasty:
    """Words that try to leave their quotes."""

    def get(self, feature):
        return FeatureWords(label=NASTY)

    def site(self, site):
        return []


def feature(text):
    return FeatureId.parse(text)


@pytest.fixture
def graph():
    """Two features of one layer and row in two parts, and a later one that both flow into."""
    ids = [feature(t) for t in ("3/mlp/7", "3/res/7", "4/att/7", "4/res/2")]
    edges = (Edge(ids[0], ids[1], 0.31), Edge(ids[1], ids[3], 0.92, mutual=True), Edge(ids[2], ids[3], -0.05))
    return FlowGraph(ids[3], tuple(Node(i) for i in ids), edges, (), Thresholds(), (3, 4), "tiny")


@pytest.fixture
def circuit(graph):
    return json.loads(export(graph, "circuit-tracer", Nasty()))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_takes_any_words(graph, name):
    assert export(graph, name, Nasty())


def test_no_two_formats_share_an_ending():
    assert len({f.suffix for f in FORMATS.values()}) == len(FORMATS)


def test_an_unknown_format_is_refused_with_those_there_are(graph):
    with pytest.raises(InvalidArgument, match=r"'pdf'.*circuit-tracer"):
        export(graph, "pdf")


# DOT and Mermaid


def strings(line):
    """The quoted strings of a line of DOT, with its escapes; what is left must hold no quote."""
    found = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
    assert '"' not in re.sub(r'"(?:[^"\\]|\\.)*"', "", line), line
    return found


def test_dot_has_every_node_and_edge_each_on_a_line_of_its_own(graph):
    lines = export(graph, "dot", Nasty()).decode().splitlines()
    assert (lines[0], lines[-1]) == ("digraph flow {", "}")
    named = [strings(line) for line in lines[1:-1] if re.match(r'  "', line)]
    edges = [tuple(found[:2]) for found in named if re.fullmatch(r"\d+/\w+/\d+", found[1])]
    assert edges == [(str(e.parent), str(e.child)) for e in graph.edges]
    assert len(named) == len(graph.nodes) + len(graph.edges)
    assert [found[0] for found in named[: len(graph.nodes)]] == [str(node.feature) for node in graph.nodes]


def test_mermaid_has_every_node_and_edge_and_words_cannot_end_a_node(graph):
    lines = export(graph, "mermaid", Nasty()).decode().splitlines()
    nodes = [re.fullmatch(r'  f\d+_\w+_\d+(?:\[|\(\[)"([^"]*)"(?:\]|\]\)):::\w+', line) for line in lines]
    texts = [found[1] for found in nodes if found]
    assert len(texts) == len(graph.nodes)
    assert sum(bool(re.match(r"  f\S+ (-->|-\.->)\|", line)) for line in lines) == len(graph.edges)
    assert all(set(re.sub(r"#\d+;", "", text.replace("<br/>", " "))) <= set(map(chr, range(32, 127))) for text in texts)
    said = unescape(re.sub(r"#(\d+);", r"&#\1;", texts[0].partition("<br/>")[2]))
    assert said.startswith('say "yes" \\ no <script>')


# circuit-tracer


def test_the_required_fields_of_the_published_schema_are_there(circuit):
    """Neuronpedia's graph-schema.json (draft 7): required fields and their types."""
    assert set(circuit) >= {"metadata", "qParams", "nodes", "links"}
    for name in ("slug", "scan", "prompt"):
        assert isinstance(circuit["metadata"][name], str)
    assert all(isinstance(token, str) for token in circuit["metadata"]["prompt_tokens"])
    kinds = {
        "node_id": str,
        "feature": int,
        "layer": str,
        "ctx_idx": int,
        "feature_type": str,
        "jsNodeId": str,
        "clerp": str,
    }
    for node in circuit["nodes"]:
        assert {name: type(node[name]) for name in kinds} == kinds
    for link in circuit["links"]:
        assert (type(link["source"]), type(link["target"]), type(link["weight"])) == (str, str, float)


def test_no_feature_is_in_more_than_two_thirds_of_the_tokens(circuit):
    """The viewer throws such away; it tells features apart by layer, number and token."""
    seen = Counter((n["layer"], n["feature"], n["ctx_idx"]) for n in circuit["nodes"])
    assert max(seen.values()) == 1 <= 2 / 3 * len(circuit["metadata"]["prompt_tokens"])
    assert len({n["node_id"] for n in circuit["nodes"]}) == len({n["jsNodeId"] for n in circuit["nodes"]}) == 5


def test_links_join_nodes_with_their_cosines(circuit, graph):
    known = {n["node_id"]: n["clerp"].split()[0] for n in circuit["nodes"]}
    assert [(known[k["source"]], known[k["target"]], k["weight"]) for k in circuit["links"]] == [
        (str(e.parent), str(e.child), e.score) for e in graph.edges
    ]


def test_there_is_one_output_above_all_layers_with_a_probability_that_the_viewer_can_read(circuit):
    (output,) = [n for n in circuit["nodes"] if n["feature_type"] == "logit"]
    assert output["layer"] == "5"
    assert float(output["clerp"].split("(p=")[1].split(")")[0]) == 0
    assert not any(output["node_id"] in (k["source"], k["target"]) for k in circuit["links"])


def test_the_seed_is_clicked_and_pinned_first(circuit):
    assert circuit["qParams"]["clickedId"] == circuit["qParams"]["pinnedIds"][0] == "4_2_2"
    assert set(circuit["qParams"]["pinnedIds"]) <= {n["node_id"] for n in circuit["nodes"]}


def test_no_two_features_share_a_number_and_each_can_be_read_back():
    """Labels edited in the viewer are kept by the number: 3/res/7 and 3/mlp/7 must not be one."""
    ids = [
        FeatureId(Site(layer, part), index)
        for layer in (0, 1, 3, 25)
        for part in Part
        for index in (0, 1, 2, 7, 1_048_575)
    ]
    numbers = {feature_number(i): i for i in ids}
    assert len(numbers) == len(ids)
    for number, i in numbers.items():
        w = (math.isqrt(8 * number + 1) - 1) // 2
        paired = number - w * (w + 1) // 2
        assert (w - paired, *divmod(paired, 3)) == (i.layer, i.index, COLUMNS[i.part])


def test_the_output_shares_no_number_with_a_feature(circuit):
    assert len({n["feature"] for n in circuit["nodes"]}) == len(circuit["nodes"])


def test_circuit_tracer_itself_reads_it(circuit):
    models = pytest.importorskip("circuit_tracer.frontend.graph_models", reason="circuit-tracer is not installed")
    assert len(models.Model.model_validate(circuit).nodes) == 5


# Pictures and pages


@pytest.mark.parametrize("scale", [1, 2])
def test_a_png_is_the_figure_at_its_scale(graph, scale):
    found = image.imread(io.BytesIO(png(graph, Nasty(), scale=scale)))
    svg = render(graph, "svg", Nasty())
    width, height = (float(re.search(rf'{name}="([\d.]+)"', svg)[1]) for name in ("width", "height"))
    assert found.shape[:2] == pytest.approx((height * scale, width * scale), abs=1)
    assert len(np.unique(found.reshape(-1, found.shape[2]), axis=0)) > 20  # lanes, boxes, edges, letters


def test_a_long_graph_has_a_picture_of_bounded_size():
    ids = [feature(f"{layer}/res/1") for layer in range(120)]
    edges = tuple(Edge(a, b, 0.9) for a, b in itertools.pairwise(ids))
    long = FlowGraph(ids[0], tuple(Node(i) for i in ids), edges, (), Thresholds(), (0, 119), "long")
    assert image.imread(io.BytesIO(png(long))).shape[1] <= 16_000


def test_the_words_are_drawn_where_no_font_of_the_system_is_named(graph):
    """The face that comes with matplotlib stands in: a figure with words has more ink than one without."""
    ink = [(image.imread(io.BytesIO(png(graph, words)))[..., 0] < 0.4).sum() for words in (Nasty(), _Silent())]
    assert ink[0] > ink[1] + 100


class _Silent:
    def get(self, feature):
        return None

    def site(self, site):
        return []


def test_graphml_opens_in_networkx(graph):
    read = nx.parse_graphml(export(graph, "graphml").decode())
    assert (read.number_of_nodes(), read.number_of_edges()) == (4, 3)


def test_a_notebook_shows_the_page_in_a_frame_that_reaches_nothing(graph):
    shown = graph._repr_html_()
    assert 'sandbox="allow-scripts"' in shown
    source = re.search(r'srcdoc="([^"]*)"', shown)[1]
    assert unescape(source) == graph.to_html()
    assert "default-src 'none'" in graph.to_html()


def test_the_page_of_a_demo_graph_knows_its_words():
    from saeflow.flow import trace
    from saeflow.matching.atlas import open_atlas

    atlas = open_atlas("demo")
    grown = trace(feature("5/res/194"), atlas)
    assert "They, Ben, Mia" in grown.to_html()
