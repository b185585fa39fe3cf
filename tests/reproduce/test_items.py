"""Figures and tables of the paper as data: whole, in order, and of tables that our experiments write."""

from __future__ import annotations

from saeflow.paper import FIGURES
from saeflow.paper.claims import GRAPH, INPUT, SCHEMA, items
from saeflow.reproduce.recipe import PaperStage, known_recipes, open_recipe


def test_every_figure_and_table_is_there_once() -> None:
    ids = [item.id for item in items().values()]
    assert sorted(ids) == sorted([f"fig{n}" for n in range(1, 25)] + [f"table{n}" for n in range(1, 6)])
    figures = [int(name[3:]) for name in ids if name.startswith("fig")]
    # two tables and a figure of the appendix stand where the text has them
    assert figures == sorted(figures)
    assert items()["table1"].name == "Table 1"
    assert items()["fig5"].name == "Figure 5"


def test_stages_of_items_are_those_that_run_them() -> None:
    for item in items().values():
        assert (item.stage in [*PaperStage]) != (item.kind == SCHEMA), item.id
        for name in known_recipes():
            assert item.kind != SCHEMA or "drawing" in open_recipe(name).unanswered[item.id]


def test_what_is_shown_has_a_figure() -> None:
    for item in items().values():
        assert all(table in FIGURES for table, _ in item.shows), item.id
        assert item.title, item.id
        assert item.states or item.kind == INPUT, item.id
        assert all(other in items() for other in item.also), item.id
        assert not item.shows or item.kind not in (GRAPH, INPUT, SCHEMA), item.id
