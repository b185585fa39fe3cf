"""Tables of the terminal: names stay whole at any width, lines are folded between words, a pipe gets a row a line."""

from __future__ import annotations

import pytest

from saeflow.report.tables import as_text, duration

NAME = "gemma-scope-2-12b-it-transcoders"
PROSE = "the manners of nineteenth-century novels: visits, balls, letters"
ROWS = [
    {"release": NAME, "model": "gemma-3-12b-it", "subject": PROSE, "layers": "0-47", "score": 0.5, "n": 131072},
    {"release": "demo", "model": "demo", "subject": "", "layers": "0-5", "score": None, "n": 768},
]


@pytest.mark.parametrize("width", [20, 80, 100, 120, 200])
def test_every_word_is_on_one_line_whatever_the_width(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    told = as_text("what there is", ROWS).split()
    for row in ROWS:
        for value in row.values():
            cell = {0.5: "0.500", None: "-"}.get(value, str(value))
            assert set(cell.split()) <= set(told)


def test_prose_is_folded_to_the_width_where_names_leave_room(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    lines = as_text("", ROWS).splitlines()
    assert max(map(len, lines)) <= 120
    assert not any(PROSE in line for line in lines)
    monkeypatch.setenv("COLUMNS", "200")
    assert any(PROSE in line for line in as_text("", ROWS).splitlines())


def test_without_a_terminal_a_row_is_one_line(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    heading, rule, first, second = as_text("", ROWS).strip("\n").splitlines()
    assert NAME in first
    assert PROSE in first
    assert second.split() == ["demo", "demo", "0-5", "-", "768"]
    assert heading.split() == list(ROWS[0])
    assert set(rule.strip()) == {"─"}


def test_a_duration_is_in_the_unit_that_people_would_choose():
    told = [duration(seconds) for seconds in (8, 89, 91, 5300, 5500, 7200, 200_000)]
    assert told == ["8 s", "89 s", "91 s", "88 min", "92 min", "2.0 h", "2.3 days"]
