"""Figure 8: removing one predecessor at a time, alone and beside others."""

from __future__ import annotations

from typing import Final

import pandas as pd
from matplotlib.figure import Figure

from saeflow.paper.frame import GROUPS, Frame, in_order, only
from saeflow.paper.kinds import CHANGE, DEACTIVATED, Drawing, Line, forest
from saeflow.paper.style import Medium, colour
from saeflow.paper.trials import COMBINED, SINGLES, control_change, less, removing
from saeflow.paper.verdicts import ClaimNumber
from saeflow.paper.words import decimal


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the removal of one predecessor at a time: does it matter as much beside others as alone? (fig. 8)

    Rates are drawn only if the table has their controls.
    """
    rated = "control_deactivated" in frame.columns
    lines: list[Line] = []
    for removed in in_order(frame.distinct("removed"), SINGLES):
        rows = frame.where(removed=removed)
        found = rows.lookup("group")
        for group in rows.groups():
            row = found[group]
            change = row.estimate("change")
            rate = row.estimate("deactivated", "deactivated_low", "deactivated_high")
            cells = ((change, row.estimate("control_change", "control_low", "control_high", "control_n")),)
            cells += (
                (rate, row.estimate("control_deactivated", "control_deactivated_low", "control_deactivated_high")),
            )
            lines.append(Line(group, colour(group), cells, row.number("n"), f"{removed} removed"))
    return forest(lines, (CHANGE, DEACTIVATED) if rated else (CHANGE,), medium, caption, controls=True)


def sentence(frame: Frame) -> str:
    """The effect of removing a part where it is alone, and in the largest group it shares with others."""
    phrases: list[str] = []
    for part in SINGLES:
        each = {group: only(frame, group=group, removed=part) for group in GROUPS}
        rows = {group: row for group, row in each.items() if row.number("change") is not None}
        company = [group for group in rows if group != part]
        if part in rows and company:
            last = company[-1]
            alone, joined = (f"{decimal(rows[g].number('change'))}{control_change(rows[g])}" for g in (part, last))
            phrases.append(f"{alone} alone and {joined} in {last} for {part}")
    return f"Activation change when one predecessor is removed: {'; '.join(phrases)}." if phrases else ""


# --- claims -----------------------------------------------------------------------------------------------------------


def claim_alone(trials: pd.DataFrame) -> list[ClaimNumber]:
    """A predecessor matters more alone than beside others."""
    words = "change by {} where it is alone less that where others are active"
    return [
        less(
            trials,
            trials["change"],
            removing(trials, [part], [part]),
            removing(trials, [group for group in COMBINED if part in group], [part]),
            words.format(part),
        )
        for part in SINGLES
    ]


DRAWINGS: Final = {"one_predecessor": Drawing(figure, sentence, ("group", "removed", "change"))}
