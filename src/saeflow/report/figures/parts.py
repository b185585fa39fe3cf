"""What figures are put together from: stacks, heat maps, marks with intervals, lines with bands.

Each draws into a panel it is given. What a reader points at says its numbers: the tips of the SVG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from saeflow.report.figures.frame import Estimate, count, percent, percent_interval
from saeflow.report.figures.saving import TIP
from saeflow.report.figures.style import ACCENT, INK, MUTED, PAPER, advance, colour, edge, on

Tone = tuple[str | tuple[str, float], str]
"""The colour of a thing, with its strength where it is not full, and that of a number on it."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on a canvas, in ems from the upper left."""

    left: float
    top: float
    width: float
    height: float


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
    axes: Axes,
    at: Sequence[float],
    shares: Mapping[str, Sequence[float | None]],
    names: Sequence[str],
    *,
    width: float,
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
        bar = axes.barh(
            y, share, height=height, left=left, color=face, edgecolor=edge(group), lw=0.6, zorder=2
        )
        tip(bar.patches[0], f"{name}, {group}: {percent(share / whole, 1)}")
        label = percent(share / whole).removesuffix("\u00a0%")
        if share / whole * room > advance(label, 0.78) + 0.5:
            axes.text(
                left + share / 2,
                y,
                label,
                ha="center",
                va="center_baseline",
                fontsize=0.78 * em,
                color=ink,
                zorder=3,
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
            axes.text(
                j + 0.5, i + 0.52, text, ha="center", va="center_baseline", fontsize=0.78 * em, color=tone
            )
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_xticks([j + 0.5 for j in range(columns)], list(names[1]))
    axes.set_yticks([i + 0.5 for i in range(rows)], list(names[0]))


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
) -> None:
    """A value at height `y` with its interval as a line. Controls are hollow."""
    below, above = found.reach
    if below or above:
        ends = (found.value - below, found.value + above)
        axes.plot(ends, (y, y), color=tone, lw=(0.07 if hollow else 0.13) * em, zorder=3)
    size = {"D": 0.4, "s": 0.44, "^": 0.52, "v": 0.52}.get(shape, 0.5) * em
    (point,) = axes.plot(
        [found.value], [y], marker=shape, ms=size, color=PAPER if hollow else tone,
        mec=tone, mew=0.09 * em, ls="none", zorder=4, clip_on=False,
    )  # fmt: skip
    tip(point, text or said(name, found))


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
    size = (0.36 if len(at) < 14 else 0.26) * {"D": 0.82, "s": 0.9, "^": 1.08}.get(shape, 1.0)
    for run in _runs(found):
        xs = [at[i] for i in run]
        values = [e for i in run if (e := found[i]) is not None]
        lows = [e.value - e.reach[0] for e in values]
        highs = [e.value + e.reach[1] for e in values]
        if len(run) > 1:
            faint = (0.1 if hollow else 0.16) * strength
            axes.fill_between(xs, lows, highs, color=tone, alpha=faint, lw=0, zorder=2)
            style = (0, (1.2, 1.6)) if hollow else "solid"
            axes.plot(
                xs, [e.value for e in values], color=tone, lw=0.13 * em, ls=style, alpha=alpha, zorder=3
            )
        elif any(sum(e.reach) for e in values):
            axes.plot(xs * 2, [lows[0], highs[0]], color=tone, lw=0.1 * em, alpha=alpha, zorder=3)
        for i, x, e in zip(run, xs, values, strict=True):
            (point,) = axes.plot(
                [x], [e.value], marker=shape, ms=size * em, alpha=alpha,
                color=PAPER if hollow else tone, mec=tone, mew=0.08 * em, ls="none", zorder=4, clip_on=False,
            )  # fmt: skip
            tip(point, tips[i] if tips is not None else said(name, e))


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
