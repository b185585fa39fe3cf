"""What is known against a feature or an edge stands beside it: dead features, and matches no better than chance."""

import json

import pytest

from saeflow.flow.graph import Edge, FlowGraph, Node
from saeflow.flow.scores import Scores, Thresholds
from saeflow.ids import FeatureId, Site
from saeflow.labels.words import FeatureWords, WordsFolder, silent, write_words
from saeflow.report.render import render

DEAD, ALIVE, UNKNOWN = (FeatureId.parse(name) for name in ("1/att/1", "1/mlp/0", "1/res/0"))


@pytest.fixture
def words(tmp_path):
    """Of attention rows the second never fired; of the MLP's all did; residual ones were not counted."""
    write_words(tmp_path, DEAD.site, [FeatureWords("fires", frequency=0.1), None])
    write_words(tmp_path, ALIVE.site, [FeatureWords("fires", frequency=0.2), FeatureWords("never", frequency=0.0)])
    write_words(tmp_path, UNKNOWN.site, [FeatureWords("explained"), None])
    return WordsFolder(tmp_path)


@pytest.fixture
def graph():
    edges = (Edge(DEAD, UNKNOWN, 0.9, p=0.001), Edge(ALIVE, UNKNOWN, 0.2, p=0.4))
    nodes = (Node(DEAD), Node(ALIVE), Node(UNKNOWN, Scores(0.8, 0.2, 0.9)))
    return FlowGraph(UNKNOWN, nodes, edges, (), Thresholds(), (1, 1), p_floor=0.0001)


def test_a_feature_that_never_fired_is_silent_and_one_that_nobody_counted_is_not_known_to_be(words):
    assert [silent(words, feature) for feature in (DEAD, ALIVE, UNKNOWN)] == [True, False, None]
    assert silent(words, FeatureId(ALIVE.site, 1)) is True
    assert silent(words, FeatureId(UNKNOWN.site, 1)) is None
    assert silent(words, FeatureId(Site.parse("7/res"), 0)) is None


def test_both_are_marked_in_text_page_picture_and_data(words, graph):
    text = render(graph, "text", words)
    [row] = [line for line in text.splitlines() if "1/att/1" in line]
    assert "† 1/att/1" in " ".join(row.split())
    assert "≈ 1/mlp/0" in " ".join(text.split())
    for told in (text, render(graph, "html", words)):
        assert "† silent: it fired on none" in told
        assert "≈ no better than chance" in told
    picture = render(graph, "svg", words)
    assert picture.count('class="wire module chance"') == picture.count('stroke-dasharray="2 4"') == 1
    assert picture.count("node module silent") == 1
    data = json.loads(render(graph, "json", words))
    assert {row["feature"]: row["silent"] for row in data["nodes"]} == {
        "1/att/1": True,
        "1/mlp/0": False,
        "1/res/0": None,
    }
    assert [row["by_chance"] for row in data["edges"]] == [False, True]
    assert FlowGraph.from_json(json.dumps(data)) == graph


def test_without_nulls_and_words_nothing_is_marked(graph):
    bare = FlowGraph(
        graph.seed, graph.nodes, tuple(Edge(e.parent, e.child, e.score) for e in graph.edges), (), Thresholds(), (1, 1)
    )
    text = render(bare, "text")
    assert "†" not in text
    assert "≈" not in text
    assert {edge.by_chance for edge in bare.edges} == {None}
