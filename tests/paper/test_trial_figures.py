"""Figures of trials draw every rate beside that of its control."""

from dataclasses import replace

import pytest

from saeflow.paper import PAGE, PHONE
from saeflow.paper.frame import GROUPS, Frame
from saeflow.paper.words import percent, percent_interval

from .sample_results import remaining_table
from .test_figures import SMALL, first, texts, tips


@pytest.mark.parametrize("medium", [PAGE, PHONE], ids=["page", "phone"])
@pytest.mark.parametrize("name", ["by_strategy", "by_strategy_layer", "by_rescale", "one_predecessor", "table_1"])
def test_every_rate_of_a_trial_is_drawn_beside_its_control(name, medium):
    told = tips(first(SMALL[name], medium))
    rows = len(SMALL[name].rows) - (name == "table_1")  # the control as a row of its own is not drawn twice
    for measure in ("deactivated", "activation change"):
        assert sum("control of" in t and measure in t for t in told) == rows
        assert sum("control of" not in t and measure in t for t in told) == rows


def test_a_rescaling_and_its_control_tell_their_numbers():
    told = tips(first(SMALL["by_rescale"]))
    row = Frame.read(SMALL["by_rescale"]).lookup("r", "group")["0", "RES"]
    rate = row.estimate("control_deactivated", "control_low", "control_high")
    assert f"control of RES, r = 0: {percent_interval(rate)} deactivated, n = 140" in told
    loss = row.number("control_loss_change")
    assert f"control of RES, r = 0: {percent(loss, 2)} relative loss change, n = 140" in told


def test_rescaling_without_controls_draws_none():
    table = SMALL["by_rescale"]
    kept = [i for i, name in enumerate(table.columns) if not name.startswith("control")]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    told = tips(first(replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows)))
    assert told
    assert not any("control of" in t for t in told)


def test_a_new_group_has_a_strip_for_its_control():
    table = SMALL["new_group"]
    told = tips(first(table))
    for row in Frame.read(table).records:
        name = f"{row.words('removed')} removed, {row.words('new_group')}"
        assert f"{name}: {percent(row.number('probability'), 1)}" in told
        assert f"control of {name}: {percent(row.number('control_probability'), 1)}" in told
    assert len(told) == 2 * len(table.rows)


@pytest.mark.parametrize("medium", [PAGE, PHONE], ids=["page", "phone"])
def test_what_predecessors_silence_is_marked_with_what_their_control_does(medium):
    table = remaining_table()
    told = [t for t in tips(first(table, medium)) if "control of" in t]
    assert len(told) == len(GROUPS)  # all and seven groups; from nowhere nothing is removed
    assert "control of RES: 6\u00a0% (4–8) deactivated, n = 280" in told
    bare = replace(table, columns=table.columns[:6], rows=tuple(row[:6] for row in table.rows))
    assert not any("control" in t for t in (*tips(first(bare, medium)), *texts(first(bare, medium))))
