"""`saeflow trace` on the demo pack: what it prints, what it writes, how it refuses."""

from __future__ import annotations

import json

import pytest

from saeflow.prompt_graph import PromptGraph

TEXT = "Once upon a time there was a little girl who liked to play in the garden with her"
ASKED = ("trace", "demo", "--text", TEXT, "--effect", "0.2", "--random-graphs", "2")


@pytest.fixture
def run(monkeypatch, saeflow_here, tmp_path):
    """Run `saeflow ...` in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return saeflow_here


def test_the_graph_is_printed_and_nothing_is_written_that_was_not_asked_for(run, tmp_path):
    code, out, err = run(*ASKED)
    assert (code, err) == (0, "")
    for word in ("What happened at token 18", "effect", "control", "cosine", "completeness", "random graphs"):
        assert word in out
    assert list(tmp_path.iterdir()) == []


def test_files_are_written_by_their_endings_and_json_reads_back(run, tmp_path):
    names = ["a.html", "a.json", "a.graphml", "a.circuit-tracer.json", "a.svg", "a.png", "a.dot", "a.mmd"]
    code, _, err = run(*ASKED, *(word for name in names for word in ("-o", name)))
    assert (code, err) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert json.loads((tmp_path / "a.circuit-tracer.json").read_text())["metadata"]["schema_version"] == 1
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    graph = PromptGraph.from_json((tmp_path / "a.json").read_text())
    assert graph.edges["effect"].abs().min() >= 0.2
    assert set(graph.edges["child"]) <= set(graph.nodes["node"])
    assert len(graph.fidelity.random) == 2


def test_the_words_of_the_last_release_still_work(run, tmp_path):
    code, _, err = run(*ASKED, "--formats", "json,graphml", "--out", "here")
    assert (code, err) == (0, "")
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "demo-token-18.graph.json",
        "demo-token-18.graph.graphml",
    }
    assert run(*ASKED, "--no-files", "--formats", "json")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_range_a_difference_and_a_pin_are_taken(run):
    more = ("--token", "-2", "--before", "1", "--target", " the", "--against", " a", "--json")
    code, out, err = run(*ASKED, *more)
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["positions"] == [16, 17]
    [target] = [node for node in data["nodes"] if node["node"] == data["target"]]
    assert target["token"].split(" - ") == [" the", " a"]
    pin = next(node["node"] for node in data["nodes"] if node["kind"] == "feature")
    code, out, err = run(*ASKED, *more, "--effect", "9", "--pins", pin)
    assert [node["node"] for node in json.loads(out)["nodes"]] == [pin, data["target"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--token", "99"), "token 99 with 0 before it is not in the text, which has 19 tokens"),
        (("--target", "garden with"), "tokens:"),
        (("--pins", "0/res/1@3"), "'0/res/1@3' is no node of this graph"),
        (("--formats", "pdf"), "not exported to 'pdf'"),
        (("-o", "a.pdf"), "a.pdf cannot be written: end its name in .html"),
        (("--effect", "-1"), "effect = -1"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_a_sentence(run, options, message):
    code, out, err = run(*ASKED, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
