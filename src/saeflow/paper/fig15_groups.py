"""Figure 15a: the groups that each matching strategy finds among the same features."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame
from saeflow.paper.kinds import Drawing, panels, strip
from saeflow.paper.style import INK, MUTED, Medium, advance, group_signs, shares_axis
from saeflow.paper.words import count, listed, percent


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Which groups each matching strategy finds among the same features (fig. 15a)."""
    strategies, groups = frame.distinct("strategy"), frame.groups()
    names = max(advance(strategy, 0.82) for strategy in strategies) + 1.0
    canvas, (box,) = panels(
        medium,
        caption,
        1,
        across=1,
        tall=2.1 * len(strategies),
        head=0.8,
        below=2.2,
        left=names,
        right=7.2,
        signs=group_signs(groups),
    )
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    for i, strategy in enumerate(strategies):
        rows = {row.words("group"): row for row in frame.where(strategy=strategy).records}
        shares = {group: rows[group].number("share") or 0.0 for group in groups if group in rows}
        strip(axes, i, shares, strategy, em=medium.text, room=box.width)
        n = sum(row.count("features") for row in rows.values())
        y = box.top + 2.1 * i + 1.35
        canvas.write(box.left + box.width + 0.6, y, f"n = {count(n)}", size=0.8, colour=MUTED)
    shares_axis(axes, "x", 0, 1)
    axes.set_ylim(len(strategies) - 0.5, -0.5)
    axes.set_yticks(range(len(strategies)), list(strategies))
    axes.tick_params(axis="y", labelcolor=INK)
    return canvas.figure


def sentence(frame: Frame) -> str:
    """For how many of the same features each strategy names no active predecessor."""
    rows = frame.where(group="nowhere").records
    told = [
        f"{percent(share)} under {row.words('strategy')}" for row in rows if (share := row.number("share")) is not None
    ]
    return f"The share from nowhere is {listed(told)} of the same features." if told else ""


DRAWING: Final = Drawing(figure, sentence, ("strategy", "group", "share"))
