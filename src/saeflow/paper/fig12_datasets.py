"""Figure 12a (and 19a): the shares of the eight groups in each data set."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, in_order
from saeflow.paper.kinds import Drawing, reach
from saeflow.paper.origins import EVERY, every_of, first_method, largest_of, name_of, shares_of
from saeflow.paper.style import INK, PAPER, Medium, advance, colour, ems, panels, title, value_axis
from saeflow.paper.words import count, percent, percent_interval


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Groups of every data set (fig. 12a, 19a): bars with intervals and their numbers."""
    datasets, groups = in_order(frame.distinct("dataset"), (EVERY,)), frame.groups()
    across = medium.across(len(datasets), 16, beside=max(advance(group, 0.82) for group in groups) + 1.0)
    drawn, places = panels(medium, caption, len(datasets), 1.75 * len(groups), across=across, over=3.6)
    found = frame.lookup("dataset", "group")
    high = 1.25 * reach(row.estimate("share") for row in frame.records)[1]  # with room for numbers at the right
    for i, (dataset, axes) in enumerate(zip(datasets, places, strict=True)):
        rows = [found.get((dataset, group)) for group in groups]
        for y, (group, row) in enumerate(zip(groups, rows, strict=True)):
            share = row.estimate("share") if row else None
            if share is None:
                continue
            axes.barh(y, share.value, height=0.68, color=colour(group), zorder=2)
            if share.ends[0] < share.ends[1]:
                axes.plot(share.ends, (y, y), color=PAPER, lw=ems(0.2), zorder=3.9)  # seen on the darkest bar too
                axes.plot(share.ends, (y, y), color=INK, lw=ems(0.1), zorder=4)
            text = f" {percent(share.value)}"
            axes.text(share.ends[1], y, text, va="center_baseline", fontsize=ems(0.8), zorder=5)
        value_axis(axes, "x", 0, high, unit="%", most=5)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_yticks(range(len(groups)), list(groups) if i % across == 0 else [""] * len(groups))
        axes.tick_params(axis="y", labelcolor=INK)
        ns = [n for row in rows if row and (n := row.number("n"))]
        title(axes, name_of(dataset), f"n = {count(max(ns))}" if ns else "")
    return drawn


def sentence(frame: Frame) -> str:
    """Nowhere and the largest group, and between which data sets nowhere varies."""
    frame, method = first_method(frame)
    every = shares_of(frame, dataset=every_of(frame))
    if "nowhere" not in every:
        return ""
    of = f"Of {count(every['nowhere'].n)} active features" if every["nowhere"].n else "Of the active features"
    told = f"{of}, {percent_interval(every['nowhere'])} have no active predecessor{method}"
    others = {group: share for group, share in every.items() if group != "nowhere"}
    if others:
        told += f"; the largest other group is {largest_of(others)} with {percent_interval(others[largest_of(others)])}"
    sets = {
        d: s["nowhere"].value
        for d in frame.distinct("dataset")
        if d != "all" and "nowhere" in (s := shares_of(frame, dataset=d))
    }
    if len(sets) > 1:
        low, high = min(sets, key=sets.__getitem__), max(sets, key=sets.__getitem__)
        told += f". Nowhere runs from {percent(sets[low])} ({low}) to {percent(sets[high])} ({high})"
    return f"{told}."


DRAWING: Final = Drawing(figure, sentence, ("dataset", "group", "share"), each=("method",))
