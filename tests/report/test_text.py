"""A flow graph in a terminal: nothing that identifies or measures is ever lost."""

from dataclasses import replace

import pytest
from rich.cells import cell_len

from saeflow.flow.graph import Direction, End, Reason
from saeflow.ids import Part
from saeflow.labels.words import FeatureWords
from saeflow.report import render
from saeflow.report.tokens import headline, visible
from saeflow.report.views import flow_table, score_text

from .report_graphs import GRAPHS, HOSTILE, KnownWords, alone, deep, words_for

EVERY_GRAPH = pytest.mark.parametrize("name", GRAPHS)
EVERY_WIDTH = pytest.mark.parametrize("width", [30, 80, 120, 160, 300])


def rows_with(text: str, name: str) -> list[list[str]]:
    """Cells of the rows of the first table in which `name` stands."""
    body = text.split("─\n", 1)[1].split("\n\n", 1)[0]
    return [line.split() for line in body.splitlines() if name in line.split()]


@EVERY_GRAPH
@EVERY_WIDTH
def test_every_id_and_score_is_printed_whole(name, width):
    graph = GRAPHS[name]
    text = render(graph, words=words_for(graph), width=width)
    for node in graph.nodes:
        found = rows_with(text, str(node.feature))
        assert found, node.feature
        if node.scores is not None:
            scores = [score_text(node.scores.of(part)) for part in (Part.RES, Part.MLP, Part.ATT)]
            cells = found[0]
            at = cells.index(str(node.feature))
            assert cells[at + 1 : at + 4] == scores
    for edge in graph.edges:
        if edge.parent.part is not Part.RES:
            assert any(score_text(edge.score) in cells for cells in rows_with(text, str(edge.parent)))


@EVERY_GRAPH
@pytest.mark.parametrize("width", [80, 120, 160])
def test_no_line_is_wider_than_the_terminal(name, width):
    graph = GRAPHS[name]
    text = render(graph, words=words_for(graph), width=width)
    assert max(map(cell_len, text.splitlines())) <= width


@EVERY_GRAPH
def test_the_end_of_every_flow_is_told(name):
    graph = GRAPHS[name]
    text = " ".join(render(graph, width=200).split())
    for end in graph.ends:
        assert end.sentence in text


def test_many_ends_at_modules_are_told_in_one_sentence():
    graph = deep(6)
    modules = [n.feature for n in graph.nodes if n.feature.part is not Part.RES]
    ends = tuple(End(m, Direction.BACKWARD, Reason.MODULE_OUTPUT) for m in modules)
    text = render(replace(graph, ends=ends), width=200)
    lines = [line for line in text.splitlines() if "Written by a module" in line]
    assert len(lines) == 1
    assert all(str(m) in lines[0] for m in modules)


@EVERY_GRAPH
def test_the_table_holds_every_node_in_both_forms(name):
    graph = GRAPHS[name]
    table = flow_table(graph)
    for form in (table, table.narrow):
        cells = {cell for row in form.rows for cell in row.cells}
        assert {str(n.feature) for n in graph.nodes} <= cells


def test_the_seed_and_circuits_are_marked_and_nothing_else():
    graph = GRAPHS["six"]
    text = render(graph, width=160)
    for node in graph.nodes:
        for cells in rows_with(text, str(node.feature)):
            before = "".join(cells[: cells.index(str(node.feature))])
            if node.feature.part is Part.RES:
                assert ("▶" in before) == (node.feature == graph.seed)
                assert ("⊕" in before) == bool(node.joins)


def test_a_seed_at_a_module_is_marked_in_its_own_lane():
    line = next(
        line for line in render(GRAPHS["module"], width=160).splitlines() if "2/att/77 " in line and "2/res" in line
    )
    assert line.index("2/res/400") < line.index("▶") < line.index("2/att/77")


def test_span_release_and_thresholds_stand_below_the_table():
    text = render(GRAPHS["six"], width=120)
    foot = text[text.index("Where the flow ends") :]
    assert "layers 0 to 5" in foot
    assert "planted" in foot
    assert "t(R) = 0, t(M) = 0.25, t(A) = 0.25; high from 0.5" in foot


def test_a_branching_graph_lists_its_residual_edges():
    graph = GRAPHS["branching"]
    text = render(graph, width=100)
    for edge in graph.edges:
        if edge.parent.part is Part.RES:
            expected = [str(edge.parent), str(edge.child), score_text(edge.score), str(edge.rank + 1)]
            assert expected in [line.split() for line in text.splitlines()]
    assert "Residual edges" not in render(GRAPHS["deep"], width=100)


def test_colour_is_off_unless_asked_for():
    assert "\x1b" not in render(GRAPHS["six"], width=100)
    assert "\x1b[" in render(GRAPHS["six"], width=100, colour=True)


def test_no_control_character_of_a_label_reaches_the_terminal():
    graph = alone()
    words = KnownWords({graph.seed: FeatureWords(HOSTILE)})
    text = render(graph, words=words, width=160)
    assert not {c for c in text if ord(c) < 32 and c != "\n"}
    assert "\u202e" not in text
    assert "[31m" in text  # the label's text stays, without its force


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "␣the"),
        ("\n", "⏎"),
        ("\t\tx", "⇥⇥x"),
        ("\u00a0", "⍽"),
        ("\x1b[0m", "␛[0m"),
        ("\u202e", "⟨202E⟩"),
        ("\ud83d", "⟨D83D⟩"),
        ("naïve", "naïve"),
        ("粒子", "粒子"),
    ],
)
def test_tokens_show_what_cannot_be_seen(token, shown):
    assert visible(token) == shown


def test_a_feature_without_a_label_is_named_by_its_tokens():
    assert headline(FeatureWords("", (" the", "\n"))) == "␣the ⏎"
    assert headline(FeatureWords("a  label\nof two lines")) == "a label of two lines"
    assert headline(None) == ""
