"""What the tables of a transition share: maps of a layer, the units they are applied in, and lines of dots.

Colours say in what units a transition matrix is applied, shapes what its entries are. Explained variance has no lower
end: what lies below the axis is a triangle at its edge, and says its number when pointed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.paper.frame import Estimate, Frame, Row, only
from saeflow.paper.kinds import Box, mark, point
from saeflow.paper.style import (
    COLOURS,
    FAINT,
    INK,
    MUTED,
    Canvas,
    Medium,
    Sign,
    advance,
    foot,
    key_height,
    nothing,
    numbers_axis,
    tidy,
)
from saeflow.paper.words import count, decimal, decimal_interval, listed

ALL: Final = "all pairs"
LOWEST: Final = -0.5
"""Where the axis of explained variance ends at the latest."""

TONES: Final = {"raw": COLOURS["RES"], "folded": COLOURS["MLP"], "mean activation": COLOURS["ATT"]}

BASELINES: Final = {
    "affine map of h": "affine map of h",
    "reconstruction": "B's own dictionary",
    "least squares": "least-squares T",
    "identity": "identity: h as it is",
    "source reconstruction": "A's own dictionary",
    "mean": "mean of h",
}
"""What is no transition matrix of the weights, in the order of figures."""


@dataclass(frozen=True, slots=True)
class DotLine:
    """A line of a dot plot: its name, what stands muted beside it, and its marks."""

    name: str
    more: str
    marks: tuple[tuple[Estimate, str, str, bool], ...]
    """Value, colour, text of the tip, hollow."""
    opens: bool = False


def one_pair(frame: Frame) -> Frame:
    """The rows of all pairs together, or of the first pair there is."""
    pairs = frame.distinct("pair")
    return frame.where(pair=ALL if ALL in pairs else pairs[0]) if pairs else frame


def best_row(frame: Frame, column: str = "ev") -> Row | None:
    """The row with the highest explained variance."""
    known = [row for row in frame.records if row.number(column) is not None]
    return max(known, key=lambda row: row.number(column) or 0.0) if known else None


def shown_as(row: Row | None) -> str:
    """The explained variance of a row with its interval; empty for a gap."""
    found = row.estimate("ev") if row is not None else None
    return decimal_interval(found, 2) if found else ""


def baselines_beside(frame: Frame, column: str) -> str:
    """`; least squares reaches 0.86, the hidden state itself 0.81`."""
    names = {"least squares": "least squares reaches", "identity": "the hidden state itself"}
    known = [
        f"{word} {decimal(row.number('ev'))}"
        for name, word in names.items()
        if (row := only(frame, kind="baseline", **{column: name})) and row.number("ev") is not None
    ]
    return f"; {listed(known)}" if known else ""


def map_told(row: Row, found: Estimate, how: str) -> str:
    """A map with the units it is applied in and its explained variance, for tips."""
    fitted = row.number("scaled")
    after = "" if fitted is None else f"; {decimal(fitted, 3)} after a factor of {decimal(row.number('scale'))}"
    name = row.words("method") or " ".join(
        word for word in (row.words("weights"), row.words("k"), row.words("entries")) if word
    )
    n = "" if found.n is None else f", n = {count(found.n)}"
    return f"{name}, {how}, applied {row.words('applied')}: {decimal_interval(found, 3)}{after}{n}"


def dots(
    lines: Sequence[DotLine],
    medium: Medium,
    caption: str,
    axis: str,
    *,
    floor: float,
    ceiling: float | None = None,
    signs: Sequence[Sign] = (),
) -> Figure:
    """Marks with intervals on a line each; names beside them, or above where there is no room."""
    if not lines:
        return nothing(medium, caption)
    widest = max(advance(line.name, 0.82) for line in lines)
    beside = max(advance(line.more, 0.74) for line in lines)
    left, room = widest + beside + (1.8 if beside else 0.9), 0.6 * medium.ems
    stacked = left > room >= max(widest, beside) + 0.9 and medium.wide
    above = left > room and not stacked
    deep = 1.35 * (bool(beside) + 1) if above else 0.0
    left, step = (1.4, 1.5 + deep) if above else (max(widest, beside) + 0.9, 2.5) if stacked else (left, 1.75)
    top = key_height(medium, signs) or 0.8
    canvas = Canvas(medium, top + step * len(lines) + 3.4 + foot(medium, caption))
    box = Box(left, top, canvas.width - left - 1.2, step * len(lines))
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    low, high = _reach([m[0] for line in lines for m in line.marks], floor, ceiling)
    canvas.key(signs)
    for place, line in enumerate(lines):
        at = len(lines) - 1 - place
        if above or stacked:
            x, y = (box.left, box.top + step * place) if above else (box.left - 0.5, box.top + step * place + 0.1)
            _names_stacked(canvas, x, y, line, right=stacked)
        else:
            y = box.top + step * (place + 0.5) + 0.28
            _names_beside(canvas, box, line, y, columns=bool(beside))
        if line.opens:
            axes.axhline(at + 0.5, color=FAINT, lw=0.1 * medium.text, zorder=1)
        # names above take the upper part of a line: its marks stand in the lower one
        _line_marks(axes, at - 0.5 * deep / step, line, (low, high), medium.text, box.width)
    axes.set_ylim(-0.5, len(lines) - 0.5)
    axes.set_yticks([])
    numbers_axis(axes, "x", low, high, most=9 if medium.wide else 4)
    if low < 0 < high:
        axes.axvline(0, color=MUTED, lw=0.07 * medium.text, zorder=1)
    tidy(axes, values="x", em=medium.text)
    canvas.write(box.left, box.top + box.height + 2.5, axis, size=0.74, colour=MUTED)
    canvas.caption(caption)
    return canvas.figure


def _names_beside(canvas: Canvas, box: Box, line: DotLine, y: float, *, columns: bool) -> None:
    """The words of a line at the left of its axis, in two columns where some lines have two."""
    if line.more:
        canvas.write(box.left - 0.5, y, line.more, size=0.74, colour=MUTED, align="right")
    if columns:
        canvas.write(0.2, y, line.name, size=0.82)
    else:
        canvas.write(box.left - 0.5, y, line.name, size=0.82, align="right")


def _names_stacked(canvas: Canvas, x: float, top: float, line: DotLine, *, right: bool) -> None:
    """The words of a line one below the other: over its marks, or to the left of them."""
    y, side = top + 1.2, "right" if right else "left"
    for text, size, tone in ((line.name, 0.82, INK), (line.more, 0.74, MUTED)):
        if text:
            canvas.write(x, y, text, size=size, colour=tone, align=side)
            y += 1.05 if right else 1.3


def _line_marks(axes: Axes, at: float, line: DotLine, ends: tuple[float, float], em: float, room: float) -> None:
    """The marks of a line, side by side in height; one beyond an end is a triangle there."""
    low, high = ends
    n = len(line.marks)
    for i, (found, tone, told, hollow) in enumerate(line.marks):
        y = at + 0.26 * ((n - 1) / 2 - i)
        if low <= found.value <= high:
            shown = Estimate(
                found.value,
                None if found.low is None else max(found.low, low),
                None if found.high is None else min(found.high, high),
            )
            mark(axes, y, shown, line.name, tone=tone, em=em, hollow=hollow, text=told)
            continue
        end, shape = (low, "<") if found.value < low else (high, ">")
        point(axes, end, y, told, tone=tone, size=0.5 * em, shape=shape, hollow=True)
        inside, side = 0.7 / room * (high - low), "right" if found.value > high else "left"
        x = high - inside if found.value > high else low + inside
        axes.text(x, y, decimal(found.value, 1), ha=side, va="center", fontsize=0.7 * em, color=MUTED)


def _reach(found: Sequence[Estimate], floor: float, ceiling: float | None) -> tuple[float, float]:
    """The ends of an axis that holds what lies between `floor` and `ceiling`, with a little air."""
    ends = [end for e in found for end in (e.value - e.reach[0], e.value + e.reach[1])]
    low, high = min([*ends, 0.0]), max([*ends, 0.1])
    air = 0.03 * (min(high, ceiling or high) - max(low, floor))
    low = floor if low <= floor else low - air
    return low, (high + air if ceiling is None or high <= ceiling else ceiling)


def applied_signs() -> list[Sign]:
    """The entries of the units that a matrix is applied in."""
    return [Sign("applied", shape=""), *(Sign(name, tone) for name, tone in TONES.items())]
