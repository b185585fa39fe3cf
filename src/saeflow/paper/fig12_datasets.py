"""Figure 12a (and 19a): the shares of the eight groups in each data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.paper.frame import Estimate, Frame, Row, in_order
from saeflow.paper.kinds import Box, Drawing, panels, reach
from saeflow.paper.origins import EVERY, every_of, first_method, largest_of, name_of, panel_title, shares_of
from saeflow.paper.style import INK, PAPER, Canvas, Medium, advance, colour, shares_axis, tidy
from saeflow.paper.words import count, percent, percent_interval


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Groups of every data set (fig. 12a, 19a): bars with intervals and their numbers."""
    datasets, groups = in_order(frame.distinct("dataset"), (EVERY,)), frame.groups()
    names = max(advance(group, 0.82) for group in groups) + 1.0
    across = medium.across(len(datasets), 16, beside=names)
    height = 1.75 * len(groups)
    canvas, places = panels(
        medium,
        caption,
        len(datasets),
        across=across,
        tall=height,
        drop=4.2,
        gap=2.0,
        left=names + 0.4,
        right=1.8,
        head=2.2,
    )
    found = frame.lookup("dataset", "group")
    _, high = reach([row.estimate("share") for row in frame.records])
    for dataset, box in zip(datasets, places, strict=True):
        rows_of = {group: row for group in groups if (row := found.get((dataset, group)))}
        _bar_panel(canvas, box, rows_of, groups, high, names=box.left == places[0].left)
        ns = [n for row in rows_of.values() if (n := row.number("n"))]
        panel_title(canvas, box, name_of(dataset), max(ns) if ns else None)
    return canvas.figure


def _bar_panel(
    canvas: Canvas, box: Box, rows: dict[str, Row], groups: Sequence[str], high: float, *, names: bool
) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em = canvas.medium.text
    # Room at the right for the number beside the longest bar.
    high *= 1 + 3.4 / max(box.width - 3.4, 4)
    for i, group in enumerate(groups):
        found = rows[group].estimate("share") if group in rows else None
        if found is None:
            continue
        axes.barh(i, found.value, height=0.68, color=colour(group), zorder=2)
        _whisker(axes, i, found, em)
        top = found.value + found.reach[1]
        axes.text(
            top + 0.35 * high / box.width, i, percent(found.value), va="center_baseline", fontsize=0.8 * em, zorder=5
        )
    shares_axis(axes, "x", 0, high)
    tidy(axes, values="x", em=em)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_yticks(range(len(groups)), list(groups) if names else [""] * len(groups))
    axes.tick_params(axis="y", labelcolor=INK)


def _whisker(axes: Axes, y: float, found: Estimate, em: float) -> None:
    below, above = found.reach
    if below or above:
        ends = (found.value - below, found.value + above)
        axes.plot(ends, (y, y), color=PAPER, lw=0.2 * em, zorder=3.9)  # seen on the darkest bar too
        axes.plot(ends, (y, y), color=INK, lw=0.1 * em, zorder=4)


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
