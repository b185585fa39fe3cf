"""Figure 18: the groups under each matching method, by data set."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, in_order
from saeflow.paper.kinds import DotPanel, DotRow, Drawing, Mark, dots, said
from saeflow.paper.origins import EVERY, every_of, name_of
from saeflow.paper.style import Medium, Sign, colour
from saeflow.paper.words import count, listed, percent_interval

_SHAPES = ("o", "D", "s", "^")


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Groups under each matching method by data set (fig. 18); data sets new to a method's table are marked."""
    datasets, groups = in_order(frame.distinct("dataset"), (EVERY,)), frame.groups()
    out = {r.words("dataset") for r in frame.records if r.words("in_distribution") in {"False", "0"}}
    shapes = {method: _SHAPES[i % len(_SHAPES)] for i, method in enumerate(frame.distinct("method"))}
    found = frame.lookup("dataset", "group", "method")
    close = 0.45  # of the rows of the methods of one group
    shown: list[DotPanel] = []
    for dataset in datasets:
        rows: list[DotRow] = []
        for group in groups:
            known = [(j, name, row) for j, name in enumerate(shapes) if (row := found.get((dataset, group, name)))]
            marks = [
                Mark(e, said(f"{m}, {group}", e), colour(group), shapes[m], j > 0, close * (j - (len(shapes) - 1) / 2))
                for j, m, row in known
                if (e := row.estimate("share"))
            ]
            rows.append(DotRow(group, marks, height=close * len(shapes) + 0.5))
        ns = [n for row in frame.where(dataset=dataset).records if (n := row.number("n"))]
        name = name_of(dataset) + (" †" if dataset in out else "")
        more = f"n = {count(max(ns))}" if ns else ""
        shown.append(DotPanel(name, rows, more=more, unit="%", within=(0.0, 1.0)))
    signs = [Sign(method, shape=shape, hollow=i > 0) for i, (method, shape) in enumerate(shapes.items())]
    if out:
        signs.append(Sign("† texts the Pearson tables were not made on", shape=""))
    return dots(shown, medium, caption, signs=signs, least=16.0)


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
