"""Appendix C.1: how many features of each layer have which group most often."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.fig17_counts import counted
from saeflow.paper.frame import GROUPS, Frame
from saeflow.paper.kinds import Drawing
from saeflow.paper.origins import first_method
from saeflow.paper.style import Medium
from saeflow.paper.words import count, percent


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """How many features of each layer have which group most often (C.1)."""
    return counted(frame, medium, caption)


def sentence(frame: Frame) -> str:
    """The group that most features have most often, each feature counted once."""
    frame, method = first_method(frame)
    totals = {g: sum(r.number("features") or 0 for r in frame.where(group=g).records) for g in GROUPS}
    whole = sum(totals.values())
    if not whole:
        return ""
    first, second = sorted(totals, key=lambda g: -totals[g])[:2]
    return (
        f"Of {count(whole)} features, each counted once{method}, {percent(totals[first] / whole)} are "
        f"mostly from {first} and {percent(totals[second] / whole)} mostly from {second}."
    )


DRAWING: Final = Drawing(figure, sentence, ("layer", "group", "features"), each=("method",))
