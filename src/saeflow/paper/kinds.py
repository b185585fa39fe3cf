"""The kinds of chart that figures are made of: stacks, strips, heat maps, lines with bands, marks, and forests.

Each draws into a panel it is given. What a reader points at says its numbers: the tips of the SVG. In a forest
filled marks are predecessors, hollow ones controls, and lines 95 % intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from saeflow.paper.frame import Estimate, Frame
from saeflow.paper.saving import TIP
from saeflow.paper.style import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    Canvas,
    Medium,
    Sign,
    advance,
    colour,
    edge,
    foot,
    key_height,
    numbers_axis,
    on,
    shares_axis,
    tidy,
)
from saeflow.paper.words import count, decimal, decimal_interval, percent, percent_interval, points, points_interval

_PITCH = 1.5
CONTROL = "control: random active features of the same sites and norm"
Tone = tuple[str | tuple[str, float], str]
"""The colour of a thing, with its strength where it is not full, and that of a number on it."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of a forest: its head, and how its numbers are written."""

    head: str
    text: Callable[[Estimate], str]
    short: Callable[[float | None], str]
    unit: str = ""  # of the axis; plain numbers where empty
    room: float = 8.4  # for its number with interval, in ems


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a forest: an estimate and its control for each measure. `head` begins a block."""

    label: str
    tone: str
    cells: tuple[tuple[Estimate | None, Estimate | None], ...]
    n: float | None
    head: str = ""
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a table is drawn and told.

    Attributes:
        figure: draws its rows for a medium, with a caption.
        sentence: says what its rows show.
        needs: the columns that the figure cannot do without.
        each: one figure for each value of these columns.
    """

    figure: Callable[[Frame, Medium, str], Figure]
    sentence: Callable[[Frame], str]
    needs: tuple[str, ...]
    each: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on a canvas, in ems from the upper left."""

    left: float
    top: float
    width: float
    height: float


DEACTIVATED = Measure("deactivated", percent_interval, percent, "%")
CHANGE = Measure("activation change", decimal_interval, decimal)
DIFFERENCE = Measure("difference in deactivation rate", points_interval, points, "pp", 13.0)
RATIO = Measure("norm of the control over the norm removed: median and quartiles", decimal_interval, decimal)


def forest(
    lines: Sequence[Line], measures: Sequence[Measure], medium: Medium, caption: str, *, controls: bool
) -> Figure:
    """Lines with marks, intervals and numbers: measures side by side, or under one another where narrow."""
    names = max(max(advance(entry.label, 0.82) + 5.4, advance(entry.head, 0.9) + 1.6) for entry in lines)
    own = not medium.wide and names > 0.4 * medium.ems  # labels on lines of their own
    names = 4.6 if own else names
    places, height = _places(lines, own=own)
    stacked = 1 if medium.wide else len(measures)
    signs = control_signs() if controls else []
    top = key_height(medium, signs) + (1.8 if controls else 3.0)
    block = height + 3.6
    canvas = Canvas(medium, top + stacked * block - 1.2 + foot(medium, caption))
    canvas.key(signs)
    gap = 0.0 if stacked > 1 else 1.4
    room = canvas.width - names - 0.2 - gap * (len(measures) - 1)
    wide = room if stacked > 1 else room / len(measures)
    for i, measure in enumerate(measures):
        left, down = (0.0, i * block) if stacked > 1 else (i * (wide + gap), 0.0)
        at = Box(names + left, top + down, wide, height)
        if stacked > 1 or i == 0:
            _labels(canvas, lines, places, at, own=own)
        _measure(canvas, at, lines, places, i, measure, controls=controls)
    canvas.caption(caption)
    return canvas.figure


def _places(lines: Sequence[Line], *, own: bool) -> tuple[list[float], float]:
    """The height of every line from the top of a block, in ems, and that of the block."""
    places: list[float] = []
    y = 0.0
    for entry in lines:
        if entry.head:
            y += 1.9 if places else 1.4
        y += 1.2 if own else 0.0
        places.append(y + 0.5 * _PITCH)
        y += _PITCH
    return places, y + 0.3


def _labels(canvas: Canvas, lines: Sequence[Line], places: Sequence[float], box: Box, *, own: bool) -> None:
    for entry, place in zip(lines, places, strict=True):
        y = box.top + place + 0.3
        head = y - (2.7 if own else 1.5)
        if entry.head:
            canvas.swatch(0.2, head, entry.tone)
            canvas.write(1.3, head, entry.head, size=0.88, weight="bold")
        if own:
            canvas.write(0.2, y - 1.3, entry.label, size=0.82)
        else:
            canvas.write(box.left - 4.6, y, entry.label, size=0.82, align="right")
        canvas.write(box.left - 0.8, y, count(entry.n), size=0.74, colour=MUTED, align="right")
    canvas.write(box.left - 0.8, box.top - 0.6, "n", size=0.74, colour=MUTED, align="right")


def _measure(
    canvas: Canvas,
    box: Box,
    lines: Sequence[Line],
    places: Sequence[float],
    index: int,
    measure: Measure,
    *,
    controls: bool,
) -> None:
    em = canvas.medium.text
    figures = measure.room + (3.6 if controls else 0.0)
    axes = canvas.axes(box.left, box.top, box.width - figures - 0.6, box.height)
    everything = [e for entry in lines for e in entry.cells[index]]
    low, high = reach(everything)
    high = min(high, 1.0) if measure is DEACTIVATED else high
    for entry, place in zip(lines, places, strict=True):
        found, control = entry.cells[index]
        if control is not None:
            name = f"control of {entry.label}"
            mark(
                axes, place, control, name, tone=entry.tone, em=0.9 * em, hollow=True, text=told(name, control, measure)
            )
        if found is not None:
            text = told(entry.label, found, measure)
            mark(axes, place, found, entry.label, tone=entry.tone, em=em, hollow=entry.hollow, text=text)
        x, y = box.left + box.width, box.top + place + 0.3
        if found is not None:
            canvas.write(x - (3.8 if controls else 0.4), y, measure.text(found), size=0.78, align="right")
        if controls:
            text = measure.short(control.value if control else None)
            canvas.write(x - 0.4, y, text, size=0.78, colour=MUTED, align="right")
    most = max(1.0, (box.width - figures) / 2.6)
    if measure.unit:
        shares_axis(axes, "x", low, high, unit=measure.unit, most=min(5.5, most))
    else:
        numbers_axis(axes, "x", low, high, most=min(5.5, most))
    if low < 0:
        axes.axvline(0, color=MUTED, lw=0.07 * em, zorder=2)
    axes.set_ylim(box.height, 0)
    axes.set_yticks([])
    tidy(axes, values="x", em=em)
    canvas.write(box.left, box.top - 0.6, measure.head, size=0.9, weight="bold")
    if controls:
        canvas.write(box.left + box.width - 0.4, box.top - 0.6, "control", size=0.74, colour=MUTED, align="right")


def told(name: str, found: Estimate, measure: Measure) -> str:
    """A number in a sentence, for tips."""
    n = "" if found.n is None else f", n = {count(found.n)}"
    return f"{name}: {measure.text(found)} {measure.head}{n}"


def chance(p: float) -> str:
    """`= 0.03`, or `< 0.001` where a p value is smaller."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}".rstrip("0").rstrip(".")


def panels(
    medium: Medium,
    caption: str,
    n: int,
    *,
    across: int,
    tall: float,
    drop: float = 4.6,
    below: float = 3.0,
    gap: float = 2.6,
    left: float = 3.2,
    right: float = 1.0,
    head: float = 1.8,
    signs: Sequence[Sign] = (),
) -> tuple[Canvas, list[Box]]:
    """A canvas with a key, a caption and `n` equal panels in rows of `across`; everything in ems.

    Args:
        medium: where it will stand.
        caption: at the foot.
        n: of panels.
        across: how many stand in a row.
        tall: the height of a panel.
        drop: between two rows.
        below: under the last row, for its axis.
        gap: between two columns.
        left, right: beside the panels.
        head: over the first row, for names of panels.
        signs: of the key.
    """
    top = key_height(medium, signs) + head
    rows = -(-n // across)
    canvas = Canvas(medium, top + rows * tall + (rows - 1) * drop + below + foot(medium, caption))
    canvas.key(signs)
    canvas.caption(caption)
    area = Box(left, top, canvas.width - left - right, tall)
    return canvas, boxes(n, across, area, gap=gap, drop=drop)


def control_signs(edited: str = "removed", *, dashed: bool = False) -> list[Sign]:
    """The entries of filled and hollow marks."""
    return [Sign(f"predecessors {edited}"), Sign(f"{CONTROL}{', dashed' if dashed else ''}", hollow=True)]


def boxes(n: int, columns: int, area: Box, *, gap: float, drop: float) -> list[Box]:
    """`n` equal panels in rows of `columns` within the width of `area`, each as high as `area`.

    `gap` stands between columns, `drop` between rows, in ems.
    """
    width = (area.width - gap * (columns - 1)) / columns
    return [
        Box(
            area.left + (i % columns) * (width + gap),
            area.top + (i // columns) * (area.height + drop),
            width,
            area.height,
        )
        for i in range(n)
    ]


def tip(artist: Artist, text: str) -> None:
    """What an artist says when pointed at."""
    artist.set_gid(TIP + text)


def said(name: str, found: Estimate) -> str:
    """`RES, layer 3: 41 % (38–44), n = 512`, for tips."""
    n = "" if found.n is None else f", n = {count(found.n)}"
    return f"{name}: {percent_interval(found)}{n}"


def stack(
    axes: Axes, at: Sequence[float], shares: Mapping[str, Sequence[float | None]], names: Sequence[str], *, width: float
) -> None:
    """Columns that are the sum of their groups. `names` says what each column is."""
    bottoms = [0.0] * len(at)
    for group, column in shares.items():
        heights = [value or 0.0 for value in column]
        bars = axes.bar(
            at, heights, width=width, bottom=bottoms, color=colour(group), edgecolor=PAPER, lw=0.4, zorder=2
        )
        for bar, value, name in zip(bars.patches, column, names, strict=True):
            tip(bar, f"{group}, {name}: {percent(value, 1)}")
        bottoms = [low + more for low, more in zip(bottoms, heights, strict=True)]


def strip(
    axes: Axes,
    y: float,
    shares: Mapping[str, float],
    name: str,
    *,
    em: float,
    room: float,
    height: float = 0.82,
    whole: float = 1.0,
    tones: Mapping[str, Tone] | None = None,
) -> None:
    """A horizontal stack, `whole` long, with the percentages that fit.

    `room` is its length in ems; `tones` are the colours of what is no group, with those of their numbers.
    """
    left = 0.0
    for group, share in shares.items():
        face, ink = (tones or {}).get(group, (colour(group), on(group)))
        bar = axes.barh(y, share, height=height, left=left, color=face, edgecolor=edge(group), lw=0.6, zorder=2)
        tip(bar.patches[0], f"{name}, {group}: {percent(share / whole, 1)}")
        label = percent(share / whole).removesuffix("\u00a0%")
        if share / whole * room > advance(label, 0.78) + 0.5:
            axes.text(
                left + share / 2, y, label, ha="center", va="center_baseline", fontsize=0.78 * em, color=ink, zorder=3
            )
        left += share


def heat(
    axes: Axes,
    values: Sequence[Sequence[float | None]],
    names: tuple[Sequence[str], Sequence[str]],
    *,
    em: float,
    tips: Sequence[Sequence[str]] | None = None,
    blank: str = "–",
) -> None:
    """Shares from 0 to 1 as cells of one colour at different strengths, each with its percentage.

    `names` are those of rows and of columns. A gap has no colour and the sign `blank`; where
    the value is NaN there is no cell.
    """
    rows, columns = len(names[0]), len(names[1])
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is not None and math.isnan(value):
                continue
            strength = 0.0 if value is None else 0.04 + 0.9 * min(max(value, 0.0), 1.0)
            cell = Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, facecolor=(ACCENT, strength), lw=0)
            if tips is not None:
                tip(cell, tips[i][j])
            axes.add_patch(cell)
            text = blank if value is None else percent(value).removesuffix("\u00a0%")
            tone = MUTED if value is None else PAPER if strength > 0.66 else INK
            axes.text(j + 0.5, i + 0.52, text, ha="center", va="center_baseline", fontsize=0.78 * em, color=tone)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_xticks([j + 0.5 for j in range(columns)], list(names[1]))
    axes.set_yticks([i + 0.5 for i in range(rows)], list(names[0]))


def point(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    tone: str,
    size: float,
    shape: str = "o",
    hollow: bool = False,
    order: float = 4,
    alpha: float | None = None,
) -> None:
    """A mark that says `text` when pointed at. `size` is that of a circle, in points; other shapes look as large."""
    (drawn,) = axes.plot(
        [x],
        [y],
        marker=shape,
        ms=size * {"D": 0.8, "s": 0.88, "^": 1.04, "v": 1.04}.get(shape, 1.0),
        mec=tone,
        color=PAPER if hollow else tone,
        mew=0.18 * size,
        ls="none",
        zorder=order,
        clip_on=False,
        alpha=alpha,
    )
    tip(drawn, text)


def mark(
    axes: Axes,
    y: float,
    found: Estimate,
    name: str,
    *,
    tone: str,
    em: float,
    hollow: bool = False,
    shape: str = "o",
    text: str = "",
    upright: bool = False,
    order: float = 3,
) -> None:
    """A value at height `y`, or at `y` along the axis if `upright`, with its interval. Controls are hollow."""
    below, above = found.reach
    if below or above:
        ends, there = (found.value - below, found.value + above), (y, y)
        along = (there, ends) if upright else (ends, there)
        axes.plot(*along, color=tone, lw=(0.07 if hollow else 0.13) * em, zorder=order)
    x, height = (y, found.value) if upright else (found.value, y)
    point(
        axes,
        x,
        height,
        text or said(name, found),
        tone=tone,
        size=0.5 * em,
        shape=shape,
        hollow=hollow,
        order=order + 1,
    )


def line(
    axes: Axes,
    at: Sequence[float],
    found: Sequence[Estimate | None],
    name: str,
    *,
    tone: str,
    em: float,
    hollow: bool = False,
    tips: Sequence[str] | None = None,
    shape: str = "o",
    strength: float = 1.0,
) -> None:
    """Values over `at`, joined where neighbours are there, with their intervals as a band.

    `strength` in (0, 1] fades the whole line, for lines of one colour that have an order.
    """
    alpha = None if strength == 1 else strength
    for run in _runs(found):
        xs = [at[i] for i in run]
        values = [e for i in run if (e := found[i]) is not None]
        lows = [e.value - e.reach[0] for e in values]
        highs = [e.value + e.reach[1] for e in values]
        if len(run) > 1:
            faint = (0.1 if hollow else 0.16) * strength
            axes.fill_between(xs, lows, highs, color=tone, alpha=faint, lw=0, zorder=2)
            style = (0, (1.2, 1.6)) if hollow else "solid"
            axes.plot(xs, [e.value for e in values], color=tone, lw=0.13 * em, ls=style, alpha=alpha, zorder=3)
        elif any(sum(e.reach) for e in values):
            axes.plot(xs * 2, [lows[0], highs[0]], color=tone, lw=0.1 * em, alpha=alpha, zorder=3)
        for i, x, e in zip(run, xs, values, strict=True):
            text = tips[i] if tips is not None else said(name, e)
            size = (0.36 if len(at) < 14 else 0.26) * em
            point(axes, x, e.value, text, tone=tone, size=size, shape=shape, hollow=hollow, alpha=alpha)


def _runs(found: Sequence[Estimate | None]) -> list[list[int]]:
    """Positions without a gap between them."""
    runs: list[list[int]] = []
    for i, value in enumerate(found):
        if value is None:
            continue
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def reach(found: Sequence[Estimate | None], *, zero: bool = True, least: float = 0.05) -> tuple[float, float]:
    """The lowest and highest end of all intervals with a little air; from 0 where `zero`."""
    ends = [end for e in found if e is not None for end in (e.value - e.reach[0], e.value + e.reach[1])]
    if not ends:
        return 0.0, 1.0
    low, high = min(ends), max(ends)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    air = 0.05 * max(high - low, least)
    return (low - air if low < 0 else 0.0 if zero else low - air), max(high + air, low + least)
