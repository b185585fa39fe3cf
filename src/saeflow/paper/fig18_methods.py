"""Figure 18: the groups under each matching method, by data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, Row, in_order
from saeflow.paper.kinds import Box, Drawing, mark, panels, reach
from saeflow.paper.origins import EVERY, every_of, name_of, panel_title
from saeflow.paper.style import INK, RULE, Canvas, Medium, Sign, advance, colour, shares_axis, tidy
from saeflow.paper.words import listed, percent_interval

_SHAPES = ("o", "D", "s", "^")


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Groups under each matching method by data set (fig. 18); data sets new to a method's table are marked."""
    datasets, groups = in_order(frame.distinct("dataset"), (EVERY,)), frame.groups()
    given = frame.distinct("method")
    names = max(advance(group, 0.82) for group in groups) + 1.0
    across = medium.across(len(datasets), 16, beside=names)
    height = (0.62 * len(given) + 0.75) * len(groups)
    out = {r.words("dataset") for r in frame.records if r.words("in_distribution") in {"False", "0"}}
    shapes = {method: _SHAPES[i % len(_SHAPES)] for i, method in enumerate(given)}
    signs = [Sign(method, shape=shape, hollow=i > 0) for i, (method, shape) in enumerate(shapes.items())]
    if out:
        signs.append(Sign("† texts the Pearson tables were not made on", shape=""))
    canvas, places = panels(
        medium,
        caption,
        len(datasets),
        across=across,
        tall=height,
        drop=4.4,
        gap=2.0,
        left=names + 0.4,
        right=1.8,
        signs=signs,
    )
    _, high = reach([row.estimate("share") for row in frame.records])
    found = frame.lookup("dataset", "group", "method")
    for dataset, box in zip(datasets, places, strict=True):
        _methods_panel(canvas, box, dataset, found, groups, shapes, min(1.0, high), names=box.left == places[0].left)
        ns = [n for row in frame.where(dataset=dataset).records if (n := row.number("n"))]
        panel_title(canvas, box, name_of(dataset) + (" †" if dataset in out else ""), max(ns) if ns else None)
    return canvas.figure


def _methods_panel(
    canvas: Canvas,
    box: Box,
    dataset: str,
    found: dict[tuple[str, ...], Row],
    groups: Sequence[str],
    shapes: dict[str, str],
    high: float,
    *,
    names: bool,
) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em = canvas.medium.text
    pitch = 0.7 / max(1, len(shapes))
    for i, group in enumerate(groups):
        for j, (method, shape) in enumerate(shapes.items()):
            row = found.get((dataset, group, method))
            if row is None or (estimate := row.estimate("share")) is None:
                continue
            y = i + (j - (len(shapes) - 1) / 2) * pitch
            mark(axes, y, estimate, f"{method}, {group}", tone=colour(group), em=em, hollow=j > 0, shape=shape)
        if i:
            axes.axhline(i - 0.5, color=RULE, lw=0.045 * em, zorder=1)
    shares_axis(axes, "x", 0, high)
    tidy(axes, values="x", em=em)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_yticks(range(len(groups)), list(groups) if names else [""] * len(groups))
    axes.tick_params(axis="y", labelcolor=INK)


def sentence(frame: Frame) -> str:
    """How large nowhere is under each method, on all data and on data new to Pearson."""
    told = _nowhere_by_method(frame, every_of(frame))
    if not told:
        return ""
    out = [r.words("dataset") for r in frame.records if r.words("in_distribution") == "False"]
    new = "".join(f" On {d}, new to Pearson: {listed(_nowhere_by_method(frame, d))}." for d in dict.fromkeys(out))
    return f"The share from nowhere is {listed(told)}.{new}"


def _nowhere_by_method(frame: Frame, dataset: str) -> list[str]:
    rows = frame.where(dataset=dataset, group="nowhere").records
    return [f"{percent_interval(e)} under {r.words('method')}" for r in rows if (e := r.estimate("share"))]


DRAWING: Final = Drawing(figure, sentence, ("method", "dataset", "group", "share"))
