"""Figure 7: what rescaling all predecessors by r does to activation, deactivation and loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import GROUPS, Estimate, Frame, Row
from saeflow.paper.kinds import CHANGE, DEACTIVATED, Box, Drawing, Measure, control_signs, line, panels, reach, told
from saeflow.paper.style import MUTED, Canvas, Medium, colour, group_signs, tidy
from saeflow.paper.trials import control_beside, control_change, measure_axis
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
    """What rescaling all predecessors by r does: activation, deactivation and loss (fig. 7). r = 1 is no edit.

    The same edit of other active features is dashed and hollow.
    """
    groups = tuple(group for group in frame.groups() if group in GROUPS)
    canvas, places = panels(
        medium,
        caption,
        len(_DOSES),
        across=len(_DOSES) if medium.wide else 1,
        tall=15.0,
        drop=4.8,
        below=2.8,
        gap=4.6,
        left=3.6,
        right=0.8,
        signs=group_signs(groups) + control_signs("rescaled", dashed=True),
    )
    for dose, box in zip(_DOSES, places, strict=True):
        _dose_panel(canvas, box, frame, groups, *dose)
    return canvas.figure


def _dose_panel(
    canvas: Canvas, box: Box, frame: Frame, groups: Sequence[str], measure: Measure, own: _Columns, control: _Columns
) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em = canvas.medium.text
    doses: set[float] = set()
    everything: list[Estimate | None] = []
    for columns, hollow in ((control, True), (own, False)):  # controls lie under what they control
        for group in groups:
            rows = {r: row for row in frame.where(group=group).records if (r := row.number("r")) is not None}
            at = sorted(rows)
            found = [rows[r].estimate(*columns) for r in at]
            doses.update(at)
            everything += found
            name = f"control of {group}" if hollow else group
            tips = [told(f"{name}, r = {r:g}", e, measure) if e else "" for r, e in zip(at, found, strict=True)]
            line(axes, at, found, name, tone=colour(group), em=em, hollow=hollow, tips=tips)
    low, high = reach(everything, least=0.001 if measure is LOSS else 0.05)
    measure_axis(axes, measure, low, high)
    axes.axvline(1, color=MUTED, lw=0.07 * em, ls=(0, (2, 2)), zorder=1)
    if low < 0:
        axes.axhline(0, color=MUTED, lw=0.07 * em, zorder=1)
    shown = _apart(sorted(doses), 1.9 / box.width)
    axes.set_xticks(shown, [f"{r:g}".replace("-", "\u2212") for r in shown])
    tidy(axes, values="y", em=em)
    canvas.write(box.left, box.top - 0.7, measure.head, size=0.9, weight="bold")
    canvas.write(box.left, box.top + box.height + 2.6, "r; 0 removes, 1 changes nothing", size=0.74, colour=MUTED)


def _apart(doses: Sequence[float], share: float) -> list[float]:
    """Those of `doses` that lie at least this share of their reach apart; 1 and the ends before others."""
    if not doses:
        return []
    room = share * max(doses[-1] - doses[0], 1e-9)
    kept: list[float] = []
    for r in sorted(doses, key=lambda r: (r not in {0.0, 1.0}, r not in {doses[0], doses[-1]})):
        if all(abs(r - other) >= room for other in kept):
            kept.append(r)
    return sorted(kept)


def sentence(frame: Frame) -> str:
    """What the lowest, the removing and the highest r do."""
    groups = frame.distinct("group")
    group = "all" if "all" in groups else (frame.groups() or ("",))[0]
    rows = {
        r: row
        for row in frame.where(group=group).records
        if (r := row.number("r")) is not None and row.number("change") is not None
    }
    if not rows:
        return ""
    whom = "All groups together" if group == "all" else f"In {group}"
    shown = sorted({min(rows), 0.0 if 0.0 in rows else min(rows), max(rows)})
    told = [_dose(r, rows[r]) for r in shown]
    return f"{whom}: {'; '.join(told)}."


def _dose(r: float, row: Row) -> str:
    change = row.estimate("change", "change_low", "change_high")
    told = f"at r = {r:g}".replace("-", "\u2212")
    told += f" the activation change is {decimal_interval(change)}{control_change(row)}" if change else ""
    rate = row.number("deactivated")
    return told if rate is None else f"{told}, {percent(rate)} deactivated{control_beside(row)}"


DRAWING: Final = Drawing(figure, sentence, ("r", "group", "change"))
