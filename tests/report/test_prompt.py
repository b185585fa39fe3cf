"""The graph of a prompt as a page, as text, and in circuit-tracer's JSON."""

from __future__ import annotations

import json
import re

import pytest

from saeflow.errors import InvalidArgument
from saeflow.flow.graph import MeasuredEdge
from saeflow.prompt_graph import PromptGraph, Pruning
from saeflow.report import render
from saeflow.report.exports import FORMATS
from saeflow.report.prompt import export_prompt, flow_graph, prompt_page

from ..prompt_graph.small import EDGES, NODES, small_graph


@pytest.fixture
def circuit():
    graph = small_graph().pin("0/res/error@1").group("cats", ["0/res/3@1", "0/res/4@1"])
    return json.loads(export_prompt(graph, "circuit-tracer"))


def test_the_page_says_both_numbers_of_every_edge_what_was_not_followed_and_how_much_is_carried():
    text = render(prompt_page(small_graph()), "text", width=200)
    row = next(line for line in text.splitlines() if "0/res/3@1" in line and "stream" in line)
    assert re.findall(r"(?<= )(?:\d\.\d\d|1)(?= )", row + " ")[:4] == ["0.60", "0.05", "0.80", "1"]
    assert "0.75 (random graphs 0.38)" in text
    assert "1/att: left out." in text
    assert "Attention is followed between the traced tokens alone" in text


def test_the_page_escapes_tokens_and_loads_nothing():
    page = render(prompt_page(small_graph()), "html")
    assert "<b>" not in page.replace("<b>A</b>", "")
    assert not re.search(r'(src|href)="(?!#)', page)


def test_missed_edges_are_dashed_and_every_edge_has_both_numbers_in_its_title():
    page = render(prompt_page(small_graph()), "html")
    wires = re.findall(r"<path class=\"wire[^>]*>|<path[^>]*class=\"wire[^>]*>.*?</path>", page)
    titles = re.findall(r"<title>([^<]+ to [^<]+: effect [^<]+)</title>", page)
    assert len(titles) == len(EDGES) == len(wires)
    assert "0/res/3 to 1/res/5: effect 0.60 (control 0.05), cosine 0.80, match 1" in titles
    assert "1/mlp/7 to 1/res/5: effect 0.30, cosine 0.20, not named by matching" in titles
    assert "0/res/3 to 1/mlp/7: effect 0.90, cosine 0.10, through the block" in titles
    assert "0/res/error to 1/res/5: effect -0.15, along the stream" in titles
    assert "1/res/5 to logit/9: effect 0.80, direct path 0.75, onto the logit" in titles
    assert sum("stroke-dasharray" in wire for wire in wires) == 2
    assert "the larger its effect" in page
    assert "the higher its cosine" not in page


def test_every_node_is_drawn_errors_and_logits_too_and_the_strongest_on_the_target_is_ringed():
    drawn, words = flow_graph(small_graph().pin("0/res/4@1").group("cats", ["0/res/3@1"]))
    assert [(str(node.feature), node.kind) for node in drawn.nodes] == [
        ("0/res/3", "feature"),
        ("0/res/4", "feature"),
        ("0/res/error", "error"),
        ("1/mlp/7", "feature"),
        ("1/res/5", "feature"),
        ("logit/9", "logit"),
        ("logit/2", "logit"),
    ]
    assert str(drawn.seed) == "1/res/5"
    assert drawn.layer_name(2) == "output"
    said = {str(node.feature): (node.said, words.get(node.feature)) for node in drawn.nodes}
    assert said["0/res/3"][0] == "activation 2, 75% of its site, cats"
    assert said["0/res/4"][0].endswith("pinned")
    assert said["0/res/error"][1].label == "10% unexplained"
    assert said["logit/9"][1].label == "␣<b> p = 0.6, the target"
    assert all(isinstance(edge, MeasuredEdge) for edge in drawn.edges)
    assert flow_graph(small_graph().prune(Pruning(effect=9))) is None


def test_the_same_feature_at_two_tokens_is_two_nodes_of_the_figure():
    graph = small_graph(positions=(0, 1))
    drawn, _ = flow_graph(graph)
    assert [str(node.feature) for node in drawn.nodes] == list(graph.nodes["node"])


def test_circuit_tracers_json_has_every_node_and_link_with_ids_of_their_own(circuit):
    assert (
        len({node["node_id"] for node in circuit["nodes"]})
        == len({node["jsNodeId"] for node in circuit["nodes"]})
        == len(NODES)
    )
    known = {node["node_id"] for node in circuit["nodes"]}
    assert [link["weight"] for link in circuit["links"]] == [edge[5] for edge in EDGES]
    assert all({link["source"], link["target"]} <= known for link in circuit["links"])
    kinds = [node["feature_type"] for node in circuit["nodes"]]
    assert kinds.count("logit") == 2
    assert kinds.count("mlp reconstruction error") == 1
    assert circuit["metadata"]["prompt_tokens"] == ["<bos>", "␣cat"]
    [target] = [node for node in circuit["nodes"] if node["is_target_logit"]]
    assert target["clerp"] == 'Output "␣<b>" (p=0.600)'
    assert target["layer"] == "3"
    [group] = circuit["qParams"]["supernodes"]
    assert group[0] == "cats"
    assert set(group[1:]) <= known
    assert circuit["qParams"]["clickedId"] == target["node_id"]
    assert len(circuit["qParams"]["pinnedIds"]) == 2
    # without pins the viewer starts with what the target hangs on most
    alone = json.loads(export_prompt(small_graph(), "circuit-tracer"))["qParams"]["pinnedIds"]
    assert alone == [target["node_id"], "1_17_1", "0_11_1", "1_22_1", "0_-3_1", "0_14_1"]


def test_circuit_tracer_itself_reads_it(circuit):
    models = pytest.importorskip("circuit_tracer.frontend.graph_models", reason="circuit-tracer is not installed")
    assert len(models.Model.model_validate(circuit).nodes) == len(NODES)


def test_every_format_is_written_and_json_is_read_back():
    written = {name: export_prompt(small_graph(), name) for name in FORMATS}
    assert len(PromptGraph.from_json(written["json"].decode()).nodes) == len(NODES)
    assert all(written.values())
    assert written["mermaid"].count(b"|") == 2 * len(EDGES)
    with pytest.raises(InvalidArgument, match=r"'pdf'.*circuit-tracer"):
        export_prompt(small_graph(), "pdf")
    with pytest.raises(InvalidArgument, match="there is no edge to draw"):
        export_prompt(small_graph().prune(Pruning(effect=9)), "svg")
