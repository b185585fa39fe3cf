"""Figures and tables of the paper as data: whole, in order, and of tables that our experiments write."""

from __future__ import annotations

from saeflow.paper import FIGURES
from saeflow.reproduce.items import GRAPH, INPUT, SCHEMA, by_id, items
from saeflow.reproduce.stages import ITEMS, SCHEMAS


def test_every_figure_and_table_is_there_once() -> None:
    ids = [item.id for item in items()]
    assert sorted(ids) == sorted([f"fig{n}" for n in range(1, 25)] + [f"table{n}" for n in range(1, 6)])
    figures = [int(name[3:]) for name in ids if name.startswith("fig")]
    # two tables and a figure of the appendix stand where the text has them
    assert figures == sorted(figures)
    assert by_id()["table1"].name == "Table 1"
    assert by_id()["fig5"].name == "Figure 5"


def test_stages_of_items_are_those_that_run_them() -> None:
    stage_of = {item: stage.value for stage, names in ITEMS.items() for item in names}
    for item in items():
        assert item.stage == stage_of.get(item.id, ""), item.id
        assert (item.kind == SCHEMA) == (item.id in SCHEMAS), item.id


def test_what_is_shown_has_a_figure() -> None:
    for item in items():
        assert all(shown.table in FIGURES for shown in item.shows), item.id
        assert item.title, item.id
        assert item.states or item.kind == INPUT, item.id
        assert all(other in by_id() for other in item.also), item.id
        assert not item.shows or item.kind not in (GRAPH, INPUT, SCHEMA), item.id
