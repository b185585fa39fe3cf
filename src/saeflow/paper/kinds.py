"""The chart types of the figures: lines with bands, dots in named rows, stacks, strips and heat maps.

Tooltips of the SVG give the numbers. Filled marks are predecessors, or methods that use flow graphs; hollow marks are
controls and baselines; lines through marks are 95 % intervals.

    line, point, mark, stack, heat    draw into a panel of `style.panels`
    dots, forest, strips              draw whole figures, one row for each name
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Transform, offset_copy

from saeflow.paper.frame import Frame, Interval
from saeflow.paper.saving import TIP
from saeflow.paper.style import (
    ACCENT,
    DASHES,
    DOTS,
    FAINT,
    INK,
    MUTED,
    PAPER,
    Medium,
    Sign,
    advance,
    colour,
    ems,
    nothing,
    on,
    panels,
    title,
    value_axis,
)
from saeflow.paper.words import count, decimal, decimal_interval, percent, percent_interval, points, points_interval

CONTROL = "control: random active features of the same sites and norm"
_ROW: Final = 1.5
"""Height of a row of dots, in ems."""
Tone = tuple[str | tuple[str, float], str]
"""The colour of a thing, with its opacity if below 1, and the colour of a number on it."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a table is drawn and put into a sentence.

    Attributes:
        figure: draws its rows for a medium, with a caption.
        sentence: says what its rows show.
        needs: the columns that the figure cannot do without.
        each: columns; there is one figure for each of their values.
    """

    figure: Callable[[Frame, Medium, str], Figure]
    sentence: Callable[[Frame], str]
    needs: tuple[str, ...]
    each: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measure:
    """What an axis shows, and how its numbers are written."""

    head: str
    text: Callable[[Interval], str]
    short: Callable[[float | None], str]
    unit: str = ""  # of the axis; empty for plain numbers


DEACTIVATED = Measure("deactivated", percent_interval, percent, "%")
CHANGE = Measure("activation change", decimal_interval, decimal)
DIFFERENCE = Measure("difference in deactivation rate", points_interval, points, "pp")
RATIO = Measure("norm of the control over the norm removed: median and quartiles", decimal_interval, decimal)


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with its interval and its tooltip.

    `down` moves it below the middle of its row, in rows; `ends` are the ends of a thin line behind it.
    """

    found: Interval
    tip: str
    tone: str = INK
    shape: str = "o"
    hollow: bool = False
    down: float = 0.0
    ends: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class DotRow:
    """A named row of one panel. `head` starts a block with a name and a colour; `notes` are numbers at the right."""

    name: str
    marks: Sequence[Mark] = ()
    notes: Sequence[str] = ()
    head: tuple[str, str] = ("", INK)
    height: float = 1.0


@dataclass(frozen=True, slots=True)
class DotPanel:
    """One panel of named rows; all panels of a figure have the same names.

    Attributes:
        name: its title.
        rows: from top to bottom.
        axis: what its values are; panels with the same axis share its limits.
        more: muted words at the right of its title.
        unit: "%" or "pp" for hundredths.
        heads: column heads of the notes.
        default: a dashed line across, with its tooltip.
        within: outer limits of the axis; a value beyond them is a triangle at the edge, with its number.
    """

    name: str
    rows: Sequence[DotRow]
    axis: str = ""
    more: str = ""
    unit: str = ""
    heads: Sequence[str] = ()
    default: tuple[float, str] | None = None
    within: tuple[float, float] = (-math.inf, math.inf)


def dots(
    shown: Sequence[DotPanel], medium: Medium, caption: str, *, signs: Sequence[Sign] = (), least: float = 14.0
) -> Figure:
    """Draw marks in named rows, with panels side by side where each is at least `least` ems wide.

    Names stand at the left of the first panel in each row of panels, or above their marks if there is no room.
    """
    if not shown or not shown[0].rows:
        return nothing(medium, caption)
    # 1. positions of names and rows
    names = max(advance(part, 0.82) for row in shown[0].rows for part in row.name.split("\n")) + 1.2
    own = not medium.wide and names > 0.42 * medium.ems
    across = medium.across(len(shown), least, beside=0.0 if own else names)
    height, middles = 0.0, list[float]()
    for row in shown[0].rows:
        above = 0.75 * len(row.name.split("\n")) if own and row.name else 0.0
        height += (1.1 if row.head[0] else 0.0) + above
        middles.append(height + row.height / 2)
        height += row.height
    axis = any(panel.axis for panel in shown)
    figure, drawn = panels(
        medium, caption, len(shown), _ROW * height, across=across, signs=signs, over=4.4 if axis else 3.0
    )
    room = (medium.ems - (0.0 if own else names)) / across - 1.5
    widths = [
        max(advance(row.notes[i], 0.78) for panel in shown for row in panel.rows if len(row.notes) > i) + 0.7
        for i in range(max(len(row.notes) for panel in shown for row in panel.rows))
    ]
    for number, (axes, panel) in enumerate(zip(drawn, shown, strict=True)):
        # 2. the axis: one for all panels of the same measure
        alike = [one for one in shown if one.axis == panel.axis and one.unit == panel.unit]
        marks = [mark for one in alike for row in one.rows for mark in row.marks]
        ends = [end for mark in marks for end in (*mark.found.ends, *(mark.ends or ()))]
        ends += [one.default[0] for one in alike if one.default]
        low, high = reach(Interval(min(max(end, panel.within[0]), panel.within[1])) for end in ends)
        low, high = max(low, panel.within[0]), min(high, panel.within[1])
        if panel.default is not None:
            tip(axes.axvline(panel.default[0], color=INK, lw=ems(0.08), ls=DASHES, zorder=2.5), panel.default[1])
        if low < 0:
            axes.axvline(0, color=MUTED, lw=ems(0.07), zorder=2)
        first = number % across == 0
        # 3. names, marks and numbers of each row
        for row, middle in zip(panel.rows, middles, strict=True):
            lines = row.name.split("\n") if own and row.name else []
            top = middle - row.height / 2 - 0.75 * len(lines)
            if row.head[0] and first:
                _beside(axes, 0.0, top - 0.42, row.head[0], 1.3, ha="left", fontsize=ems(0.88), fontweight="bold")
                _square(axes, axes.get_yaxis_transform(), top - 0.42, (0.6, 0.0), row.head[1])
            ground = {"fc": PAPER, "ec": "none", "pad": 0.5}  # keeps names readable over the grid
            for i, part in enumerate(lines):
                _beside(axes, 0.0, top + 0.4 + 0.75 * i, part, 0.2, ha="left", fontsize=ems(0.82), bbox=ground)
            for mark in reversed(row.marks):  # controls are drawn beneath what they control
                _dot(axes, middle, mark, (low, high), room)
            right = 0.0
            for note, wide in zip(row.notes, widths, strict=False):
                right += wide
                tone = INK if right == widths[0] and len(panel.heads) > 1 else MUTED
                _beside(axes, 1.0, middle, note, right, ha="right", fontsize=ems(0.78), color=tone)
        for i, head in enumerate(panel.heads):
            _beside(axes, 1.0, -0.35, head, sum(widths[: i + 1]), ha="right", fontsize=ems(0.74), color=MUTED)
        # 4. axes, names and titles
        value_axis(axes, "x", low, high, unit=panel.unit, most=max(2, min(9, int((room - sum(widths)) / 3))))
        axes.set_ylim(height + 0.1, -0.1)
        parts = [(y, row.name.split("\n")) for y, row in zip(middles, panel.rows, strict=True) if first and not own]
        named = [(y + 0.75 * (i - (len(lines) - 1) / 2), name) for y, lines in parts for i, name in enumerate(lines)]
        axes.set_yticks([y for y, _ in named], [name for _, name in named])
        axes.tick_params(axis="y", labelcolor=INK, pad=ems(0.7))
        title(axes, panel.name, panel.more, room=room)
        if first and panel.axis:
            axes.set_xlabel(panel.axis)
    return figure


def _beside(axes: Axes, x: float, y: float, text: str, right: float, **how: object) -> Artist:
    """Write text at height `y`, `right` ems to the right of the panel's left edge (`x` = 0) or right edge (`x` = 1)."""
    return axes.annotate(
        text,
        (x, y),
        xycoords=("axes fraction", "data"),
        xytext=(ems(right), 0),
        textcoords="offset points",
        va="center_baseline",
        annotation_clip=False,
        **how,  # pyright: ignore[reportArgumentType]
    )


def _square(axes: Axes, transform: Transform, y: float, by: tuple[float, float], tone: str) -> None:
    """Draw the square before a head at height `y`, `by` ems off the left edge of the panel."""
    figure = axes.get_figure()
    at = offset_copy(transform, figure, ems(by[0]), ems(by[1]), units="points")  # pyright: ignore[reportArgumentType]
    axes.plot([0], [y], marker="s", ms=ems(0.7), mew=0, color=tone, transform=at, clip_on=False, scalex=False)


def _dot(axes: Axes, middle: float, shown: Mark, ends: tuple[float, float], room: float) -> None:
    """Draw a mark of a row; a value beyond an end of the axis becomes a triangle there."""
    (low, high), y, found = ends, middle + shown.down, shown.found
    if shown.ends is not None:
        axes.plot(shown.ends, (y, y), color=shown.tone, lw=ems(0.05), zorder=2.5)
        for end in shown.ends:
            axes.plot((end, end), (y - 0.15, y + 0.15), color=shown.tone, lw=ems(0.08), zorder=2.5)
    if low <= found.value <= high:
        bounds = (None if end is None else min(max(end, low), high) for end in (found.low, found.high))
        mark(
            axes, y, Interval(found.value, *bounds), shown.tip, tone=shown.tone, hollow=shown.hollow, shape=shown.shape
        )
        return
    over = found.value > high
    point(axes, high if over else low, y, shown.tip, tone=shown.tone, shape=">" if over else "<", hollow=True)
    inside = 0.7 / room * (high - low) * (-1 if over else 1)
    axes.text(
        (high if over else low) + inside,
        y,
        decimal(found.value, 1),
        ha="right" if over else "left",
        va="center",
        fontsize=ems(0.7),
        color=MUTED,
    )


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a forest: an estimate and its control for each measure. Lines with the same `head` form a block."""

    label: str
    tone: str
    cells: tuple[tuple[Interval | None, Interval | None], ...]
    n: float | None
    head: str = ""
    hollow: bool = False


def forest(
    lines: Sequence[Line], measures: Sequence[Measure], medium: Medium, caption: str, *, controls: bool
) -> Figure:
    """Draw lines with marks, intervals and numbers; measures stand side by side, or stacked on a narrow medium."""
    shown: list[DotPanel] = []
    for i, measure in enumerate(measures):
        rows: list[DotRow] = []
        for line, before in zip(lines, (None, *lines), strict=False):
            found, control = line.cells[i]
            named = ((found, line.label, line.hollow), (control, f"control of {line.label}", True))
            marks = [Mark(e, measure_tip(name, e, measure), line.tone, "o", hollow) for e, name, hollow in named if e]
            notes = [measure.text(found) if found else ""]
            notes += [measure.short(control.value if control else None)] if controls else []
            notes += [count(line.n)]
            begins = before is None or before.head != line.head
            rows.append(DotRow(line.label, marks, notes, (line.head if begins else "", line.tone)))
        heads = ("", "control", "n") if controls else ("", "n")
        within = (-math.inf, 1.0) if measure is DEACTIVATED else (-math.inf, math.inf)
        shown.append(DotPanel(measure.head, rows, unit=measure.unit, heads=heads, within=within))
    signs = control_signs() if controls else []
    return dots(shown, medium, caption, signs=signs, least=20.0)


def measure_axis(axes: Axes, measure: Measure, low: float, high: float) -> None:
    """Set the vertical axis of a measure; shares end a little above 100 %."""
    value_axis(axes, "y", low, min(high, 1.02) if measure is DEACTIVATED else high, unit=measure.unit)


def measure_tip(name: str, found: Interval, measure: Measure) -> str:
    """The tooltip of a number."""
    return f"{name}: {measure.text(found)} {measure.head}" + ("" if found.n is None else f", n = {count(found.n)}")


def said(name: str, found: Interval) -> str:
    """`RES, layer 3: 41 % (38–44), n = 512`, for tooltips."""
    return f"{name}: {percent_interval(found)}" + ("" if found.n is None else f", n = {count(found.n)}")


def chance(p: float) -> str:
    """`= 0.03`, or `< 0.001` where a p value is smaller."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}".rstrip("0").rstrip(".")


def control_signs(edited: str = "removed", *, dashed: bool = False) -> list[Sign]:
    """Key entries for filled and hollow marks."""
    return [Sign(f"predecessors {edited}"), Sign(f"{CONTROL}{', dashed' if dashed else ''}", hollow=True)]


def tip(artist: Artist, text: str) -> None:
    """Give an artist a tooltip."""
    artist.set_gid(TIP + text)


@dataclass(frozen=True, slots=True)
class Strip:
    """A horizontal stacked bar.

    Attributes:
        name: text at its left.
        shares: the length of each part, together `whole`.
        tip: how the tooltips of its parts begin.
        note: text at its right.
        whole: its length.
        control: the parts of a thin strip under it.
        mark: a mark on it.
    """

    name: str
    shares: Mapping[str, float]
    tip: str
    note: str
    whole: float = 1.0
    control: Mapping[str, float] | None = None
    mark: Mark | None = None


def strips(
    shown: Mapping[str, Sequence[Strip]],
    medium: Medium,
    caption: str,
    *,
    signs: Sequence[Sign] = (),
    across: int = 1,
    tones: Mapping[str, Tone] | None = None,
    heads: Mapping[str, str] | None = None,
    axis: bool = True,
) -> Figure:
    """Draw rows that are the sum of their parts, with the percentages that fit, in panels.

    Args:
        shown: the rows of each panel, by its name.
        medium: the medium to lay it out for.
        caption: the text at the foot.
        signs: the entries of the key.
        across: the number of panels in a row.
        tones: the tones of parts that are not groups.
        heads: the colour of the square before the name of each panel.
        axis: whether lengths have an axis.
    """
    pitch = 2.4 if any(row.control for rows in shown.values() for row in rows) else 1.8
    names, notes = (
        max(advance(word, 0.82) for rows in shown.values() for row in rows for word in [getattr(row, what)])
        for what in ("name", "note")
    )
    room = medium.ems / across - names - notes - 3.0
    most = [
        max(len(rows) for rows in list(shown.values())[i : i + across]) * pitch for i in range(0, len(shown), across)
    ]
    over = (1.6 if axis else 0.4) + (1.9 if any(shown) else 0.0)
    mosaic = [
        [f"{j:03d}" if j < len(shown) else "." for j in range(i, i + across)] for i in range(0, len(shown), across)
    ]
    figure, drawn = panels(medium, caption, mosaic, most, signs=signs, over=over)
    for i, (axes, (name, rows)) in enumerate(zip(drawn, shown.items(), strict=True)):
        for y, row in enumerate(rows):
            shift = -0.15 if row.control else 0.0
            _strip(axes, y + shift, row.shares, row, room, 1.46 / pitch, tones or {})
            if row.control:
                _strip(axes, y + 0.3, row.control, row, 0.0, 0.28 / pitch, tones or {})
            if row.mark is not None:
                mark(axes, y, row.mark.found, row.mark.tip, tone=row.mark.tone, hollow=row.mark.hollow)
            left = row.whole if row.whole < 1 else 1.0
            axes.annotate(
                row.note,
                (left, y + shift),
                xytext=(ems(0.5), 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=ems(0.76),
                color=MUTED,
                annotation_clip=False,
            )
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        if axis:
            value_axis(axes, "x", 0, 1, unit="%")
        # panels in a row share their scale, so a shorter one leaves room at its foot
        axes.set_ylim(most[i // across] / pitch - 0.5, -0.5)
        shifted = [y - (0.15 if row.control else 0.0) for y, row in enumerate(rows)]
        axes.set_yticks(shifted, [row.name for row in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        if name:
            axes.set_title(f"   {name}" if heads else name)
        if heads and name:
            _square(axes, axes.transAxes, 1.0, (0.35, 0.9), heads[name])
    return figure


def _strip(
    axes: Axes, y: float, shares: Mapping[str, float], row: Strip, room: float, height: float, tones: Mapping[str, Tone]
) -> None:
    left, control = 0.0, "control of " if shares is row.control else ""
    for group, share in shares.items():
        face, ink = tones.get(group, (colour(group), on(group)))
        edge = MUTED if face == FAINT else PAPER
        bar = axes.barh(y, share, height=height, left=left, color=face, edgecolor=edge, lw=0.6, zorder=2)
        tip(bar.patches[0], f"{control}{row.tip}, {group}: {percent(share / row.whole, 1)}")
        label = percent(share / row.whole).removesuffix("\u00a0%")
        if share * room > advance(label, 0.78) + 0.5:
            middle = left + share / 2
            axes.text(middle, y, label, ha="center", va="center_baseline", fontsize=ems(0.78), color=ink, zorder=3)
        left += share


def stack(
    axes: Axes,
    at: Sequence[float],
    parts: Mapping[str, tuple[str, Sequence[float | None], Sequence[str]]],
    *,
    width: float = 0.94,
) -> None:
    """Draw columns that are the sum of their parts, each part with its colour, heights and tooltips."""
    bottoms = [0.0] * len(at)
    for tone, heights, tips in parts.values():
        known = [value or 0.0 for value in heights]
        bars = axes.bar(at, known, width=width, bottom=bottoms, color=tone, edgecolor=PAPER, lw=0.4, zorder=2)
        for bar, text in zip(bars.patches, tips, strict=True):
            tip(bar, text)
        bottoms = [low + more for low, more in zip(bottoms, known, strict=True)]


def heat(
    axes: Axes,
    values: Sequence[Sequence[float | None]],
    names: tuple[Sequence[str], Sequence[str]],
    tips: Sequence[Sequence[str]],
) -> None:
    """Draw shares in [0, 1] as cells of one colour at different strengths, each with its percentage.

    `names` are the names of rows and of columns, which stand on top. None gives a dash without colour, NaN no cell.
    """
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is not None and math.isnan(value):
                continue
            strength = 0.0 if value is None else 0.04 + 0.9 * min(max(value, 0.0), 1.0)
            cell = Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, facecolor=(ACCENT, strength), lw=0)
            tip(cell, tips[i][j])
            axes.add_patch(cell)
            text = "–" if value is None else percent(value).removesuffix("\u00a0%")
            tone = MUTED if value is None else PAPER if strength > 0.66 else INK
            axes.text(j + 0.5, i + 0.52, text, ha="center", va="center_baseline", fontsize=ems(0.78), color=tone)
    axes.set_xlim(0, len(names[1]))
    axes.set_ylim(len(names[0]), 0)
    axes.set_xticks([j + 0.5 for j in range(len(names[1]))], list(names[1]))
    axes.set_yticks([i + 0.5 for i in range(len(names[0]))], list(names[0]))
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelcolor=INK)


def point(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    tone: str,
    size: float = 0.5,
    shape: str = "o",
    hollow: bool = False,
    order: float = 4,
    alpha: float | None = None,
) -> None:
    """Draw a mark with the tooltip `text`. `size` is the diameter of a circle, in ems; other shapes look as large."""
    wide = ems(size)
    (drawn,) = axes.plot(
        [x],
        [y],
        marker=shape,
        ms=wide * {"D": 0.8, "s": 0.88, "^": 1.04, "v": 1.04}.get(shape, 1.0),
        mec=tone,
        color=PAPER if hollow else tone,
        mew=0.18 * wide,
        ls="none",
        zorder=order,
        clip_on=False,
        alpha=alpha,
    )
    tip(drawn, text)


def mark(
    axes: Axes,
    y: float,
    found: Interval,
    text: str,
    *,
    tone: str,
    hollow: bool = False,
    shape: str = "o",
    upright: bool = False,
    order: float = 3,
) -> None:
    """Draw a value and its interval at height `y`, or vertically at position `y` if `upright`. Controls are hollow."""
    low, high = found.ends
    if low < high:
        along = ((y, y), (low, high)) if upright else ((low, high), (y, y))
        axes.plot(*along, color=tone, lw=ems(0.07 if hollow else 0.13), zorder=order)
    x, height = (y, found.value) if upright else (found.value, y)
    point(axes, x, height, text, tone=tone, shape=shape, hollow=hollow, order=order + 1)


def line(
    axes: Axes,
    at: Sequence[float],
    found: Sequence[Interval | None],
    tips: Sequence[str],
    *,
    tone: str,
    hollow: bool = False,
    shape: str = "o",
    strength: float = 1.0,
) -> None:
    """Draw values over `at`, joined where neighbours exist, with their intervals as a band.

    `strength` in (0, 1] fades the whole line, for lines of one colour that have an order.
    """
    alpha = None if strength == 1 else strength
    runs: list[list[int]] = []  # positions without a gap between them
    for i, value in enumerate(found):
        if value is not None and runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        elif value is not None:
            runs.append([i])
    for run in runs:
        xs, values = [at[i] for i in run], [e for i in run if (e := found[i]) is not None]
        lows, highs = zip(*(e.ends for e in values), strict=True)
        if len(run) > 1:
            faint = (0.1 if hollow else 0.16) * strength
            axes.fill_between(xs, lows, highs, color=tone, alpha=faint, lw=0, zorder=2)
            style = DOTS if hollow else "solid"
            axes.plot(xs, [e.value for e in values], color=tone, lw=ems(0.13), ls=style, alpha=alpha, zorder=3)
        elif lows < highs:
            axes.plot(xs * 2, [lows[0], highs[0]], color=tone, lw=ems(0.1), alpha=alpha, zorder=3)
        size = 0.36 if len(at) < 14 else 0.26
        for i, x, e in zip(run, xs, values, strict=True):
            point(axes, x, e.value, tips[i], tone=tone, size=size, shape=shape, hollow=hollow, alpha=alpha)


def reach(found: Iterable[Interval | None], *, least: float = 0.05) -> tuple[float, float]:
    """Axis limits that hold all intervals with a little room; they start at 0 if nothing lies below."""
    ends = [end for e in found if e is not None for end in e.ends]
    if not ends:
        return 0.0, 1.0
    low, high = min(*ends, 0.0), max(*ends, 0.0)
    air = 0.05 * max(high - low, least)
    return (low - air if low < 0 else 0.0), max(high + air, low + least)
