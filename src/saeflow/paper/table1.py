"""Table 1: the deactivation methods on the targets they share, with their controls."""

from __future__ import annotations

from typing import Final

import pandas as pd
from matplotlib.figure import Figure

from saeflow.experiments.deactivation_tables import PEARSON, TOP_1
from saeflow.paper.frame import Frame, Interval, in_order
from saeflow.paper.kinds import CHANGE, DEACTIVATED, Drawing, Line, forest
from saeflow.paper.style import ACCENT, Medium
from saeflow.paper.trials import MAIN, SINGLES, both, control_beside, is_control, on_same_targets, per_target
from saeflow.paper.verdicts import ClaimNumber, Rule
from saeflow.paper.words import count, listed, percent_interval


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the deactivation methods on the targets they share, with their controls (table 1).

    If the table has controls, the separate row of the active control adds nothing and is not drawn.
    """
    controls = any(row.number("control_deactivated") is not None for row in frame.records)
    lines = [
        Line(row.words("strategy"), ACCENT, both(row), row.number("n"), hollow=is_control(row))
        for row in frame.records
        if not (controls and is_control(row))
    ]
    return forest(lines, (DEACTIVATED, CHANGE), medium, caption, controls=controls)


def sentence(frame: Frame) -> str:
    """Every strategy on the shared targets with its control; without these, the active control comes last."""
    rows = {row.words("strategy"): e for row in frame.records if (e := row.estimate("deactivated"))}
    if not rows:
        return ""
    beside = {row.words("strategy"): control_beside(row) for row in frame.records}
    order = in_order(rows, (MAIN,))
    named = [name for name in order if name != "active control"]
    phrases = [
        f"{name} {'' if i else 'deactivates '}{percent_interval(rows[name])}{beside[name]}"
        for i, name in enumerate(named)
    ]
    first: Interval = rows[order[0]]
    of = "" if first.n is None else f"On {count(first.n)} shared targets "
    control = (
        f"; the active control {percent_interval(rows['active control'])}"
        if "active control" in rows and not any(beside.values())
        else ""
    )
    return f"{of}{listed(phrases)}{control}."


# --- claims -----------------------------------------------------------------------------------------------------------


def claim_alike(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Cosine and Pearson silence about as many of the targets that either puts into a group of one predecessor.

    The paper says comparable, taken here as a difference of less than five points.
    """
    first, second = (per_target(trials, name)["group"].isin(SINGLES) for name in (TOP_1, PEARSON))
    return [on_same_targets(trials, TOP_1, PEARSON, scope=first | second, rule=Rule("within", 0.05))]


DRAWINGS: Final = {"table_1": Drawing(figure, sentence, ("strategy", "deactivated"))}
