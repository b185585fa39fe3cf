"""Figure 13: with what probability a feature of one group is in another group in another context."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import GROUPS, Frame
from saeflow.paper.kinds import Drawing, heat
from saeflow.paper.origins import first_method, short
from saeflow.paper.style import MUTED, Medium, ems, panels
from saeflow.paper.words import count, percent


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """With what probability a feature of group A (row) is in group B (column) in another context (fig. 13)."""
    present = {*frame.distinct("group_a"), *frame.distinct("group_b")}
    groups = tuple(group for group in GROUPS if group in present)
    found = frame.lookup("group_a", "group_b")
    drawn, (axes,) = panels(medium, caption, 1, 2.1 * len(groups), over=2.4)
    rows = [[found.get((a, b)) for b in groups] for a in groups]
    values = [[row.number("probability") if row else None for row in cells] for cells in rows]
    tips = [
        [f"{a} in one context, {b} in another: {percent(v, 1)}" for b, v in zip(groups, cells, strict=True)]
        for a, cells in zip(groups, values, strict=True)
    ]
    heat(axes, values, (groups, [short(group) for group in groups]), tips)
    for i, cells in enumerate(rows):
        n = count(max((row.number("n") or 0.0 for row in cells if row), default=0.0))
        axes.text(len(groups) + 0.1, i + 0.5, f"n = {n}", va="center_baseline", fontsize=ems(0.74), color=MUTED)
    return drawn


def sentence(frame: Frame) -> str:
    """Which group features keep most often and least, and where they go otherwise."""
    frame, method = first_method(frame)
    found = frame.lookup("group_a", "group_b")
    stay = {g: p for g in GROUPS if (row := found.get((g, g))) and (p := row.number("probability")) is not None}
    if not stay:
        return ""
    low, high = min(stay, key=stay.__getitem__), max(stay, key=stay.__getitem__)
    told = (
        f"A feature seen in {high} is in the same group in another context with probability {percent(stay[high])}, "
        f"one seen in {low} with {percent(stay[low])}{method}"
    )
    away = [(p, g) for g in GROUPS if g != high and (row := found.get((high, g))) and (p := row.number("probability"))]
    if away:
        told += f"; out of {high} it most often goes to {max(away)[1]} ({percent(max(away)[0])})"
    return f"{told}."


DRAWING: Final = Drawing(figure, sentence, ("group_a", "group_b", "probability"), each=("method",))
