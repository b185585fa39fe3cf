"""Scores of the groups and what tells them apart (figures 3, 4, 12b, 13, 14, 19c-d)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.report.figures.frame import GROUPS, Frame, Row, count, decimal, in_order, percent
from saeflow.report.figures.parts import Box, boxes, heat, tip
from saeflow.report.figures.style import INK, MUTED, PAPER, RULE, Canvas, Medium, advance, colour, foot, tidy

SCORES = ("s(R)", "s(M)", "s(A)")
MODULES = ("RES", "MLP", "ATT")
KINDS = {"AO": "active in only one", "AB": "active in both", "IB": "inactive in both"}
_BINS = 40
_SHORT = {"nowhere": "none", "RES": "R", "MLP": "M", "ATT": "A"}


def short(group: str) -> str:
    """A group in few letters, for the head of a narrow column: `RM`."""
    return _SHORT.get(group) or "".join(_SHORT.get(part, part) for part in group.split(" & "))


def chosen_layers(layers: Sequence[int], most: int = 2) -> tuple[int, ...]:
    """Layers at even steps through the depth, as 8 and 18 of the paper's 26."""
    if len(layers) <= most:
        return tuple(layers)
    at = [round((i + 1) * (len(layers) - 1) / (most + 1)) for i in range(most)]
    return tuple(layers[i] for i in dict.fromkeys(at))


def scores(frame: Frame, medium: Medium, caption: str) -> Figure:
    """How the three scores are spread in each group (fig. 3, 12b, 19c): ridges of histograms with medians.

    Rows of panels are all layers and two between; on a narrow medium all layers only. Each ridge is as
    high as its own fullest bin, so that rare groups can be read too: n stands beside the names.
    """
    columns, groups = in_order(frame.distinct("score"), SCORES), frame.groups()
    every = ("all",) if "all" in frame.distinct("layer") else ()
    layers = tuple(str(n) for n in chosen_layers(frame.layers()))
    shown = (every + layers if medium.wide or not every else every) or frame.distinct("layer")[:1]
    found = frame.lookup("layer", "score", "group")
    left = max(advance(group, 0.82) for group in groups) + 4.6
    across = len(columns) if medium.wide else 1
    height = 1.7 * len(groups) + 1.0
    panels = [(layer, score) for layer in shown for score in columns]
    rows = -(-len(panels) // across)
    canvas = Canvas(medium, 2.2 + rows * (height + 4.4) - 1.4 + foot(medium, caption))
    area = Box(left, 2.4, canvas.width - left - 1.0, height)
    limits = (_lowest(frame), 1.0)
    for (layer, score), box in zip(panels, boxes(len(panels), across, area, gap=4.8, drop=4.4), strict=True):
        rows_of = {group: row for group in groups if (row := found.get((layer, score, group)))}
        _ridges(canvas, box, rows_of, groups, limits, names=box.left == area.left)
        where = "all layers" if layer == "all" else f"layer {layer}"
        canvas.write(box.left, box.top - 0.5, score, size=0.9, weight="bold")
        canvas.write(box.left + advance(score, 0.98) + 0.7, box.top - 0.5, where, size=0.8, colour=MUTED)
    canvas.caption(caption)
    return canvas.figure


def _lowest(frame: Frame) -> float:
    """Where the lowest histogram begins: most scores lie above 0, and the axis need not show the rest."""
    filled = [i for row in frame.records for i, n in enumerate(row.numbers("histogram")) if n > 0]
    lowest = min(filled, default=_BINS // 2)
    return min(0.0, round(lowest * 2 / _BINS - 1, 6))


def _ridges(
    canvas: Canvas,
    box: Box,
    rows: dict[str, Row],
    groups: Sequence[str],
    limits: tuple[float, float],
    *,
    names: bool,
) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em = canvas.medium.text
    for i, group in enumerate(groups):
        base = len(groups) - 1 - i
        axes.axhline(base, color=RULE, lw=0.05 * em, zorder=1 + i)
        if group in rows:
            _ridge(axes, base, rows[group], group, em, 2 + i)
        y = box.top + box.height * (1 - (base + 0.08) / (len(groups) + 0.6))
        n = rows[group].number("n") if group in rows else None
        canvas.write(box.left - 0.5, y, count(n), size=0.72, colour=MUTED, align="right")
        if names:
            canvas.write(box.left - 4.4, y, group, size=0.82, align="right")
    canvas.write(box.left - 0.5, box.top + 0.4, "n", size=0.72, colour=MUTED, align="right")
    axes.set_ylim(0, len(groups) + 0.6)
    axes.set_xlim(*limits)
    step = 0.25 if limits[1] - limits[0] <= 1.3 else 0.5
    ticks = [k * step for k in range(-4, 5) if limits[0] - 1e-9 <= k * step <= limits[1]]
    axes.set_xticks(
        ticks, [decimal(tick, 0 if tick in {-1, 0, 1} else 2).rstrip("0") or "0" for tick in ticks]
    )
    axes.set_yticks([])
    tidy(axes, values="x", em=em)


def _ridge(axes: Axes, base: float, row: Row, group: str, em: float, order: int) -> None:
    bins = row.numbers("histogram")
    most = max(bins, default=0.0)
    if len(bins) == _BINS and most > 0:
        edges = [2 * i / _BINS - 1 for i in range(_BINS + 1)]
        heights = [base + 1.3 * n / most for n in (*bins, 0.0)]
        area = axes.fill_between(
            edges, [base] * (_BINS + 1), heights, step="post", color=colour(group), lw=0, zorder=order
        )
        quartiles = f"{decimal(row.number('q25'))} to {decimal(row.number('q75'))}"
        median, n = decimal(row.number("median")), count(row.number("n"))
        tip(area, f"{group}, {row.words('score')}: median {median}, quartiles {quartiles}, n = {n}")
    middle = row.number("median")
    if middle is not None:
        for tone, wide in ((PAPER, 0.34), (INK, 0.16)):  # seen on the darkest ridge too
            axes.plot(
                (middle, middle), (base - 0.16, base + 0.16), color=tone, lw=wide * em, zorder=order + 0.5
            )


def separability(frame: Frame, medium: Medium, caption: str) -> Figure:
    """For each pair of groups the share of tests that tell them apart by a score (fig. 14, 19d)."""
    columns = in_order(frame.distinct("score"), SCORES)
    present = {*frame.distinct("group_a"), *frame.distinct("group_b")}
    groups = tuple(group for group in GROUPS if group in present)
    found = frame.lookup("score", "group_a", "group_b")
    left = max(advance(group, 0.82) for group in groups) + 0.8
    across = len(columns) if medium.wide else 1
    size = len(groups) - 1
    height = 1.9 * size
    rows = -(-len(columns) // across)
    canvas = Canvas(medium, 3.6 + rows * (height + 4.2) - 3.0 + foot(medium, caption))
    area = Box(left, 3.6, canvas.width - left - 0.6, height)
    for score, box in zip(columns, boxes(len(columns), across, area, gap=1.6, drop=4.2), strict=True):
        axes = canvas.axes(box.left, box.top, box.width, box.height)
        values, tips = _pairs(found, score, groups)
        names = [*groups[1:]] if box.left == area.left else [""] * size
        heat(axes, values, (names, [short(group) for group in groups[:-1]]), em=medium.text, tips=tips)
        _head(canvas, axes, box, score, "% of tests passed")
    canvas.caption(caption)
    return canvas.figure


def _head(canvas: Canvas, axes: Axes, box: Box, text: str, more: str = "") -> None:
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelcolor=INK)
    canvas.write(box.left, box.top - 1.9, text, size=0.9, weight="bold")
    canvas.write(box.left + advance(text, 0.98) + 0.6, box.top - 1.9, more, size=0.8, colour=MUTED)


def _pairs(
    found: dict[tuple[str, ...], Row], score: str, groups: Sequence[str]
) -> tuple[list[list[float | None]], list[list[str]]]:
    """The triangle below the diagonal; NaN above it, where no cell is drawn."""
    values: list[list[float | None]] = []
    tips: list[list[str]] = []
    for i, below in enumerate(groups[1:], start=1):
        line: list[float | None] = []
        told: list[str] = []
        for j, beside in enumerate(groups[:-1]):
            row = found.get((score, beside, below)) or found.get((score, below, beside))
            line.append(math.nan if j >= i else _tested(row))
            told.append(f"{beside} against {below}, {score}: {_passed(row)}")
        values.append(line)
        tips.append(told)
    return values, tips


def _tested(row: Row | None) -> float | None:
    """The share of tests that passed; a gap where there was none."""
    return row.number("share") if row is not None and row.count("tests") else None


def _passed(row: Row | None) -> str:
    if row is None or not row.count("tests"):
        return "no test"
    return f"{count(row.number('passed'))} of {count(row.number('tests'))} tests"


def activity_differences(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Share of tests passed by whether a module is active in one, both or neither group (fig. 4)."""
    kinds = in_order(frame.distinct("kind"), tuple(KINDS))
    modules, columns = in_order(frame.distinct("module"), MODULES), in_order(frame.distinct("score"), SCORES)
    found = frame.lookup("kind", "module", "score")
    height = 2.3 * len(modules)
    canvas = Canvas(medium, 6.2 + height + 0.4 + foot(medium, caption))
    area = Box(4.4, 5.8, min(canvas.width - 5.0, 56.0), height)
    for kind, box in zip(kinds, boxes(len(kinds), len(kinds), area, gap=1.4, drop=0), strict=True):
        axes = canvas.axes(box.left, box.top, box.width, box.height)
        rows = [[found.get((kind, module, score)) for score in columns] for module in modules]
        tips = [
            [
                f"{score}, {module} {KINDS.get(kind, '')}: {_passed(row)}"
                for score, row in zip(columns, line, strict=True)
            ]
            for module, line in zip(modules, rows, strict=True)
        ]
        names = list(modules) if box.left == area.left else [""] * len(modules)
        heat(axes, [[_tested(r) for r in line] for line in rows], (names, columns), em=medium.text, tips=tips)
        _head(canvas, axes, Box(box.left, box.top - 1.4, box.width, 0), kind)
        canvas.write(box.left, box.top - 2.0, KINDS.get(kind, ""), size=0.74, colour=MUTED)
    canvas.caption(caption)
    return canvas.figure


def transition(frame: Frame, medium: Medium, caption: str) -> Figure:
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
            box.left + box.width + 0.6,
            y,
            f"n = {count(n)}" if medium.wide else count(n),
            size=0.74,
            colour=MUTED,
        )
    canvas.caption(caption)
    return canvas.figure
