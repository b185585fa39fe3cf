"""The figure as SVG, and a graph as JSON: well formed, complete, and deaf to what labels say."""

import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from saeflow.errors import InvalidArgument
from saeflow.flow.graph import FlowGraph
from saeflow.labels.words import FeatureWords
from saeflow.report import Notes, Page, Table, graph_svg, render
from saeflow.report.blocks import BlockRow, Column, ColumnRole

from .report_graphs import GRAPHS, HOSTILE, KnownWords, words_for

EVERY_GRAPH = pytest.mark.parametrize("name", GRAPHS)
SVG = "{http://www.w3.org/2000/svg}"


@EVERY_GRAPH
def test_the_svg_is_well_formed_and_draws_every_node_and_edge(name):
    graph = GRAPHS[name]
    root = ET.fromstring(graph_svg(graph, words_for(graph)))  # noqa: S314 - our own text
    groups = [g for g in root.iter(f"{SVG}g") if "node" in g.get("class", "").split()]
    assert [g.get("data-id") for g in groups] == [str(n.feature) for n in graph.nodes]
    wires = [(p.get("data-parent"), p.get("data-child")) for p in root.iter(f"{SVG}path") if p.get("data-parent")]
    assert sorted(wires) == sorted((str(e.parent), str(e.child)) for e in graph.edges)
    text = {t.text for t in root.iter(f"{SVG}text")}
    assert {str(n.feature) for n in graph.nodes} <= text
    seeds = [g.get("data-id") for g in groups if "seed" in g.get("class", "").split()]
    assert seeds == [str(graph.seed)]
    circuits = sum(len(n.joins) for n in graph.nodes)
    legend = 1
    assert sum(g.get("class") == "circuit module" for g in root.iter(f"{SVG}g")) == circuits + legend


def test_a_stronger_edge_is_drawn_wider():
    root = ET.fromstring(graph_svg(GRAPHS["deep"]))  # noqa: S314
    width = {
        (p.get("data-parent"), p.get("data-child")): float(p.get("stroke-width", 0)) for p in root.iter(f"{SVG}path")
    }
    edges = sorted(GRAPHS["deep"].edges, key=lambda e: e.score)
    widths = [width[str(e.parent), str(e.child)] for e in edges]
    assert widths == sorted(widths)


@pytest.mark.parametrize("label", [HOSTILE, "\x00\x0b\ufffe\ud800", "<g>&amp;]]>", "'\"><svg onload=x>"])
def test_a_hostile_label_stays_text_in_the_svg(label):
    graph = GRAPHS["alone"]
    words = KnownWords({graph.seed: FeatureWords(label, (label,), (label,))})
    text = graph_svg(graph, words)
    root = ET.fromstring(text.encode("utf-8"))  # noqa: S314
    assert not any(element.tag.endswith(("img", "script")) for element in root.iter())
    assert not any(key.startswith("on") for element in root.iter() for key in element.attrib)


@EVERY_GRAPH
def test_the_json_is_the_graph_with_the_words_of_every_node(name):
    graph = GRAPHS[name]
    words = words_for(graph)
    text = render(graph, "json", words)
    assert FlowGraph.from_json(text) == graph
    for node, row in zip(graph.nodes, json.loads(text)["nodes"], strict=True):
        known = words.get(node.feature)
        assert row["feature"] == str(node.feature)
        if known is None:
            assert row["words"] is None
        else:
            assert row["words"]["label"] == known.label
            assert tuple(row["words"]["tokens"]) == known.tokens
            assert tuple(row["words"]["contexts"][0]["values"]) == known.contexts[0].values


@pytest.mark.parametrize("to", ["pdf", ""])
def test_an_unknown_target_is_refused_with_the_known_ones(to):
    with pytest.raises(InvalidArgument, match=r"FlowGraph cannot be rendered to .*text, html, json, graphml, svg, png"):
        render(GRAPHS["alone"], to)


@pytest.fixture
def page() -> Page:
    columns = (Column("id", ColumnRole.ID), Column("rate", ColumnRole.NUMBER))
    table = Table("Rates", columns, (BlockRow(("1/res/2", "0.25")),))
    blocks = (table, Notes("Notes <b>here</b>", ("first", "second")))
    return Page("A report", "of nothing", (("seed", "1/res/2"),), blocks)


@pytest.mark.parametrize("to", ["text", "html"])
def test_every_kind_of_block_is_shown(page, to):
    text = render(page, to)
    for said in ("A report", "of nothing", "Rates", "1/res/2", "0.25", "first", "second"):
        assert said in text
    assert ("<b>here</b>" in text) == (to == "text")


def test_a_page_has_no_json(page):
    with pytest.raises(InvalidArgument, match="Page cannot be rendered to 'json'"):
        render(page, "json")


def test_a_table_refuses_a_row_of_another_length():
    with pytest.raises(InvalidArgument, match="1 cells for 2 columns"):
        Table("t", (Column("a", ColumnRole.ID), Column("b", ColumnRole.ID)), (BlockRow(("x",)),))


def test_a_graph_without_nodes_of_a_part_says_whether_any_was_matched():
    graph = GRAPHS["alone"]
    assert "no mlp feature of any layer reaches 0.15" in graph_svg(graph)
    bare = replace(graph, nodes=(replace(graph.nodes[0], scores=None, evolution=None),))
    assert "no mlp feature of any layer was matched" in graph_svg(bare)
