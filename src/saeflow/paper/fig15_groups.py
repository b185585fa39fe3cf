"""Figure 15a: the groups that each matching strategy finds among the same features."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame
from saeflow.paper.kinds import Drawing, Strip, strips
from saeflow.paper.style import Medium, group_signs
from saeflow.paper.words import count, listed, percent


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Which groups each matching strategy finds among the same features (fig. 15a)."""
    rows: list[Strip] = []
    for strategy in frame.distinct("strategy"):
        found = {row.words("group"): row for row in frame.where(strategy=strategy).records}
        shares = {group: found[group].number("share") or 0.0 for group in frame.groups() if group in found}
        n = sum(row.count("features") for row in found.values())
        rows.append(Strip(strategy, shares, strategy, f"n = {count(n)}"))
    return strips({"": rows}, medium, caption, signs=group_signs(frame.groups()))


def sentence(frame: Frame) -> str:
    """For how many of the same features each strategy names no active predecessor."""
    rows = frame.where(group="nowhere").records
    told = [
        f"{percent(share)} under {row.words('strategy')}" for row in rows if (share := row.number("share")) is not None
    ]
    return f"The share from nowhere is {listed(told)} of the same features." if told else ""


DRAWING: Final = Drawing(figure, sentence, ("strategy", "group", "share"))
