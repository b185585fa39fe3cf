"""Figure 7: what rescaling all predecessors by r does to activation, deactivation and loss."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saeflow.experiments.groups import LABELS
from saeflow.paper.frame import GROUPS, Frame, Interval
from saeflow.paper.kinds import (
    CHANGE,
    DEACTIVATED,
    Drawing,
    Measure,
    control_signs,
    line,
    measure_axis,
    measure_tip,
    reach,
)
from saeflow.paper.style import MUTED, Medium, apart, colour, ems, group_signs, panels
from saeflow.paper.trials import (
    SINGLES,
    WITH_RES,
    all_named,
    control_beside,
    control_change,
    less,
    of_strategy,
    removing,
    swept,
)
from saeflow.paper.verdicts import ClaimNumber, NotMeasured, Rule
from saeflow.paper.words import decimal_interval, percent

LOSS = Measure("relative loss change", lambda e: percent(e.value, 2), percent, "%")
_Columns = tuple[str, str, str, str]

_DOSES: tuple[tuple[Measure, _Columns, _Columns], ...] = (
    (
        CHANGE,
        ("change", "change_low", "change_high", "n"),
        ("control_change", "control_change_low", "control_change_high", "control_n"),
    ),
    (
        DEACTIVATED,
        ("deactivated", "low", "high", "n"),
        ("control_deactivated", "control_low", "control_high", "control_n"),
    ),
    (
        LOSS,
        ("loss_change", "loss_low", "loss_high", "loss_n"),
        ("control_loss_change", "control_loss_low", "control_loss_high", "control_loss_n"),
    ),
)


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw activation, deactivation and loss after rescaling all predecessors by r (fig. 7). r = 1 is no edit.

    The same edit of other active features is dashed and hollow.
    """
    groups = tuple(group for group in frame.groups() if group in GROUPS)
    signs = group_signs(groups) + control_signs("rescaled", dashed=True)
    across = len(_DOSES) if medium.wide else 1
    drawn, places = panels(medium, caption, len(_DOSES), 15.0, across=across, signs=signs)
    for axes, (measure, own, control) in zip(places, _DOSES, strict=True):
        doses: set[float] = set()
        everything: list[Interval | None] = []
        for columns, hollow in ((control, True), (own, False)):  # controls beneath what they control
            for group in groups:
                rows = frame.where(group=group).by_number("r")
                found = [row.estimate(*columns) for row in rows.values()]
                name = f"control of {group}" if hollow else group
                tips = [
                    measure_tip(f"{name}, r = {r:g}", e, measure) if e else "" for r, e in zip(rows, found, strict=True)
                ]
                line(axes, list(rows), found, tips, tone=colour(group), hollow=hollow)
                doses.update(rows)
                everything += found
        low, high = reach(everything, least=0.001 if measure is LOSS else 0.05)
        measure_axis(axes, measure, low, high)
        axes.axvline(1, color=MUTED, lw=ems(0.07), ls=(0, (2, 2)), zorder=1)
        if low < 0:
            axes.axhline(0, color=MUTED, lw=ems(0.07), zorder=1)
        if doses:
            ticks = apart(sorted(doses), 1.9 * across / medium.ems, first=(0.0, 1.0))
            axes.set_xticks(ticks, [f"{r:g}".replace("-", "\u2212") for r in ticks])
        axes.set_title(measure.head)
        axes.set_xlabel("r; 0 removes, 1 changes nothing")
    return drawn


def sentence(frame: Frame) -> str:
    """The effect of the lowest r, of removal (r = 0) and of the highest r."""
    groups = frame.distinct("group")
    group = "all" if "all" in groups else (frame.groups() or ("",))[0]
    rows = {r: row for r, row in frame.where(group=group).by_number("r").items() if row.number("change") is not None}
    if not rows:
        return ""
    said: list[str] = []
    for r in sorted({min(rows), 0.0 if 0.0 in rows else min(rows), max(rows)}):
        row = rows[r]
        change, rate = row.estimate("change", "change_low", "change_high"), row.number("deactivated")
        text = f"at r = {r:g}".replace("-", "\u2212")
        text += f" the activation change is {decimal_interval(change)}{control_change(row)}" if change else ""
        said.append(text if rate is None else f"{text}, {percent(rate)} deactivated{control_beside(row)}")
    whom = "All groups together" if group == "all" else f"In {group}"
    return f"{whom}: {'; '.join(said)}."


# --- claims -----------------------------------------------------------------------------------------------------------


def claim_positive(trials: pd.DataFrame) -> list[ClaimNumber]:
    """r > 1 makes targets grow more where RES occurs together with a module than in groups of one predecessor."""
    where = swept(trials, 1, np.inf)
    a, b = (where & trials["group"].isin(groups) for groups in (WITH_RES, SINGLES))
    words = "growth of the target at r > 1 where RES stands with a module, less that in groups of one predecessor"
    return [less(trials, -trials["change"], a, b, words)]


def claim_negative(trials: pd.DataFrame) -> list[ClaimNumber]:
    """r < 1 changes From RES more than any other group."""
    where, group = swept(trials, -np.inf, 1), trials["group"]
    others = [g for g in LABELS[1:] if g != "RES" and (where & (group == g)).any()]
    words = "change at r < 1 in From RES less that in From {}"
    return [
        less(trials, trials["change"], where & (group == "RES"), where & (group == g), words.format(g)) for g in others
    ]


def claim_loss(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Removing RES & MLP, or all three, raises the loss more than removing RES alone."""
    loss = (trials["loss_new"] - trials["loss_old"]) / trials["loss_old"]
    if not np.isfinite(loss).any():
        raise NotMeasured("No loss was measured.")
    words = "relative loss change at r = 0 in From {} less that in From RES"
    return [
        less(trials, loss, removing(trials, [g]), removing(trials, ["RES"]), words.format(g), unit="number")
        for g in ("RES & MLP", "RES & MLP & ATT")
    ]


def claim_bent(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Removing half of a predecessor does not change the target by half as much as removing all of it."""
    half = of_strategy(trials) & all_named(trials) & (trials["r"] == 0.5)
    if not half.any():
        raise NotMeasured("r = 0.5 was not tried.")
    change = trials["change"].where(trials["r"] != 0.5, 2 * trials["change"])
    every, words = removing(trials, GROUPS[1:]), "change at r = 0 less twice that at r = 0.5"
    return [less(trials, change, every, half, words, rule=Rule("apart", 0.02), unit="number")]


DRAWINGS: Final = {"by_rescale": Drawing(figure, sentence, ("r", "group", "change"))}
