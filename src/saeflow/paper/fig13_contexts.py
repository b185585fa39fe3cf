"""Figure 13: with what probability a feature of one group is in another group in another context."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import GROUPS, Frame
from saeflow.paper.kinds import Box, Drawing, heat
from saeflow.paper.origins import first_method, short
from saeflow.paper.style import INK, MUTED, Canvas, Medium, advance, foot
from saeflow.paper.words import count, percent


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """With what probability a feature of group A (row) is in group B (column) in another context (fig. 13)."""
    present = {*frame.distinct("group_a"), *frame.distinct("group_b")}
    groups = tuple(group for group in GROUPS if group in present)
    found = frame.lookup("group_a", "group_b")
    left = max(advance(group, 0.82) for group in groups) + 0.8
    height = 2.1 * len(groups)
    canvas = Canvas(medium, 2.6 + height + 0.6 + foot(medium, caption))
    right = 5.6 if medium.wide else 4.4
    box = Box(left, 2.4, min(canvas.width - left - right, 44.0), height)
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    rows = [[found.get((a, b)) for b in groups] for a in groups]
    values = [[row.number("probability") if row else None for row in line] for line in rows]
    tips = [
        [f"{a} in one context, {b} in another: {percent(v, 1)}" for b, v in zip(groups, line, strict=True)]
        for a, line in zip(groups, values, strict=True)
    ]
    heat(axes, values, (groups, [short(group) for group in groups]), em=medium.text, tips=tips)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelcolor=INK)
    for i, line in enumerate(rows):
        n = max((row.number("n") or 0.0 for row in line if row), default=0.0)
        y = box.top + 2.1 * (i + 0.5) + 0.3
        canvas.write(
            box.left + box.width + 0.6, y, f"n = {count(n)}" if medium.wide else count(n), size=0.74, colour=MUTED
        )
    canvas.caption(caption)
    return canvas.figure


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
