"""PromptGraph as data: pruning, pins, groups, JSON and GraphML."""

from __future__ import annotations

import json

import networkx as nx
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from saeflow.errors import BadFile, InvalidArgument
from saeflow.prompt_graph import Fidelity, PromptGraph, Pruning

from .small import EDGES, NODES, small_graph


def nodes_of(graph):
    return list(graph.nodes["node"])


def test_pruning_keeps_what_leads_to_the_target_over_edges_that_pass():
    graph = small_graph().prune(Pruning(effect=0.2))
    assert nodes_of(graph) == ["0/res/3@1", "1/mlp/7@1", "1/res/5@1", "logit/9@1"]
    assert set(graph.edges["parent"] + ">" + graph.edges["child"]) == {
        "0/res/3@1>1/mlp/7@1",
        "0/res/3@1>1/res/5@1",
        "1/mlp/7@1>1/res/5@1",
        "1/res/5@1>logit/9@1",
    }
    assert graph.fidelity is None  # it was that of another graph


def test_an_effect_counts_either_way_and_errors_are_cut_by_effect_alone():
    assert "0/res/error@1" in nodes_of(small_graph().prune(Pruning(effect=0.1, cosine=0.9, share=0.9)))
    assert "0/res/error@1" not in nodes_of(small_graph().prune(Pruning(effect=0.2)))


def test_cosine_and_share_cut_edges_and_features():
    assert nodes_of(small_graph().prune(Pruning(effect=0.01, cosine=0.75)))[:2] == ["0/res/3@1", "0/res/error@1"]
    assert "0/res/4@1" not in nodes_of(small_graph().prune(Pruning(effect=0.01, share=0.5)))


def test_pins_stay_whatever_they_do_and_go_on_with_the_graph():
    graph = small_graph().pin("0/res/4@1").prune(Pruning(effect=0.2, share=0.9, pins=("0/res/3@1",)))
    assert {"0/res/4@1", "0/res/3@1"} <= set(nodes_of(graph))
    assert graph.pins == ("0/res/4@1", "0/res/3@1")
    with pytest.raises(InvalidArgument, match=r"'0/res/9@1' is no node of this graph. Nodes are written '0/res/3@1'"):
        graph.pin("0/res/9@1")
    with pytest.raises(InvalidArgument, match="effect = -1"):
        Pruning(effect=-1)


def test_a_group_holds_nodes_of_no_other_group_and_follows_pruning():
    graph = small_graph().group("cats", ["0/res/3@1", "0/res/4@1"])
    with pytest.raises(InvalidArgument, match="in the group 'cats'"):
        graph.group("dogs", ["0/res/4@1"])
    assert graph.prune(Pruning(effect=0.2)).supernodes == {"cats": ("0/res/3@1",)}
    assert graph.group("cats", ["1/res/5@1"]).supernodes == {"cats": ("1/res/5@1",)}
    assert graph.group("cats", []).supernodes == {}


def test_as_a_table_it_is_an_edge_a_row():
    graph = small_graph()
    assert_frame_equal(graph.to_pandas(), graph.edges)


def test_missed_edges_are_those_of_the_stream_that_matching_did_not_name():
    assert list(small_graph().missed["parent"]) == ["1/mlp/7@1", "0/res/4@1"]


def test_fidelity_is_a_share_of_what_there_is_to_lose():
    measured = small_graph().fidelity
    assert (measured.faithfulness, measured.completeness) == (0.75, 0.75)
    assert (measured.random_faithfulness, measured.random_completeness) == (0.375, 0.375)
    assert pd.isna(Fidelity(1.0, 1.0, 1.0, 1.0).faithfulness)
    assert pd.isna(Fidelity(1.0, 2.0, 1.5, 1.5).completeness)  # the biases alone give more than the model
    assert Fidelity(-3.0, -1.0, -2.0, -1.0).faithfulness == 0.5
    assert pd.isna(Fidelity(1.0, 0.0, 1.0, 1.0).random_completeness)


def test_json_gives_the_same_graph_back():
    graph = small_graph().pin("0/res/3@1").group("cats", ["0/res/4@1"])
    back = PromptGraph.from_json(graph.to_json())
    assert_frame_equal(back.nodes, graph.nodes)
    assert_frame_equal(back.edges, graph.edges)
    for name in (
        "release",
        "model",
        "text",
        "tokens",
        "positions",
        "target",
        "fidelity",
        "pins",
        "supernodes",
        "notes",
    ):
        assert getattr(back, name) == getattr(graph, name)
    assert json.loads(graph.to_json())["fidelity"]["completeness"] == 0.75
    assert PromptGraph.from_json(small_graph(fidelity=None).to_json()).fidelity is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "saeflow-graph"}, "'saeflow-graph' version 1"),
        ({"version": 99}, "version 99"),
        ({"nodes": [{"node": "x"}]}, "KeyError"),
        ({"edges": 3}, "TypeError"),
        ({"fidelity": {"whole": "much"}}, "ValueError|KeyError"),
    ],
)
def test_other_json_is_refused(change, message):
    with pytest.raises(BadFile, match=message):
        PromptGraph.from_json(json.dumps(small_graph().to_dict() | change))


def test_graphml_has_every_node_and_edge_with_its_numbers():
    graph = nx.parse_graphml(small_graph().group("cats", ["0/res/3@1"]).to_graphml())
    assert (len(graph), graph.number_of_edges()) == (len(NODES), len(EDGES))
    edge = graph.edges["0/res/3@1", "1/res/5@1"]
    assert (edge["rank"], edge["cosine"], edge["effect"], edge["control"]) == (0, 0.8, 0.6, 0.05)
    assert "control" not in graph.edges["0/res/3@1", "1/mlp/7@1"]
    assert graph.nodes["0/res/3@1"]["supernode"] == "cats"


def test_the_graph_says_in_a_line_what_it_is():
    assert repr(small_graph()) == ("<PromptGraph of demo at token 1 ' cat': 4 feature, 1 error, 2 logit, 7 edges>")
