"""What the tables of a steering sweep share: how methods are told apart, and a small panel for each theme.

A method has one colour and one shape in every figure (section 5.3, appendix B). Baselines are hollow: they use no
flow graph. The colours are five of the eight of `style`, which stay apart for colour-blind readers, and shapes tell
apart what could still be mistaken. Which method wins depends on the theme, so no mean over themes is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.paper.frame import Estimate, Frame, Row, in_order
from saeflow.paper.kinds import Box, mark, panels, reach, tip
from saeflow.paper.style import COLOURS, DASHES, INK, MUTED, Canvas, Medium, Sign, advance, nothing, numbers_axis, tidy
from saeflow.paper.words import count, decimal, decimal_interval

SUPPRESS: Final = "suppress"
ACTIVATE: Final = "activate"
VERBS: Final = {ACTIVATE: "Activating", SUPPRESS: "Suppressing"}
_PITCH = 1.45
_LEAST = 14.0  # the narrowest panel, in ems
SheetKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Look:
    """A method as figures name and draw it."""

    name: str
    tone: str
    shape: str = "o"
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """An estimate with what it says when pointed at; `down` moves it below the middle of its row, in ems.

    `ends` are those of a thin line behind it.
    """

    found: Estimate
    shown: Look
    text: str
    down: float = 0.0
    ends: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class SheetLine:
    """What stands in a row of one panel: marks, and a number at the right."""

    dots: tuple[Dot, ...]
    number: str = ""


@dataclass(frozen=True, slots=True)
class Slot:
    """A row that every panel has, and how high it is."""

    key: SheetKey
    name: str
    height: float = _PITCH


@dataclass(frozen=True, slots=True)
class SheetPanel:
    """A theme."""

    name: str
    lines: Mapping[SheetKey, SheetLine]
    n: str = ""
    default: float | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """All panels with what they share; `numbers` is the room for those at the right, in ems."""

    slots: Sequence[Slot]
    panels: Sequence[SheetPanel]
    signs: Sequence[Sign]
    axis: str
    numbers: float = 2.6


LOOKS: Final[Mapping[str, Look]] = {
    "none": Look("unsteered", MUTED, "o", True),
    "prompt": Look("prompted", INK, "s", True),
    "random": Look("random", MUTED, "^", True),
    "start": Look("start alone", COLOURS["ATT"], "D", True),
    "single": Look("single", COLOURS["RES"], "o"),
    "single (start layer)": Look("single, start layer", COLOURS["RES"], "v"),
    "constant": Look("constant", COLOURS["MLP"], "s"),
    "linear": Look("linear", COLOURS["MLP & ATT"], "^"),
    "exponential": Look("exponential", COLOURS["RES & MLP"], "D"),
    "cumulative": Look("cumulative", COLOURS["MLP"], "s"),
}
"""Every method in the order of figures: the four baselines, one layer, many layers.

The single layer that most starts lie in is told apart from the best one."""

MULTI: Final = ("constant", "linear", "exponential", "cumulative")
"""The methods that steer many layers at once."""

BEST: Final = COLOURS["MLP"]
"""The best of a line that has no colour of its own."""


def by_direction(frame: Frame) -> list[tuple[str, Frame]]:
    """The rows of each direction."""
    return [(word, frame.where(direction=word)) for word in frame.distinct("direction")]


def by_theme(frame: Frame) -> dict[str, Frame]:
    """The rows of each theme."""
    return {theme: frame.where(theme=theme) for theme in frame.distinct("theme")}


def verb(direction: str) -> str:
    """`Activating` or `Suppressing`."""
    return VERBS.get(direction, direction)


def scored(row: Row) -> str:
    """`exponential (layers to 7, s = 4) 0.41 (0.35–0.47)`."""
    found, how = row.estimate("score"), setting(row)
    name = look(row.words("method")).name + (f" [{how}]" if how else "")
    return f"{name} {decimal_interval(found)}" if found else ""


def unsteered(frame: Frame) -> str:
    """The unsteered score as the end of a sentence; empty where it is not known."""
    value = default_of(frame)
    return "" if value is None else f"; unsteered it is {decimal(value)}"


def score_of(row: Row) -> float:
    """The score of a row, 0 for a gap."""
    return row.number("score") or 0.0


def look(method: str) -> Look:
    """How a method is drawn; one that is not known is filled ink."""
    return LOOKS.get(method) or Look(method, INK)


def methods(frame: Frame, column: str = "method") -> tuple[str, ...]:
    """The methods that a table holds, in the order of `LOOKS`."""
    return in_order(frame.distinct(column), tuple(LOOKS))


def direction_of(frame: Frame) -> str:
    """The direction of the first row: "activate" or "suppress"."""
    return next(iter(frame.distinct("direction")), "")


def plain(value: float) -> str:
    """`-1.0` as `−1`, `0.25` as `0.25`."""
    return f"{value:g}".replace("-", "\u2212")


def dose(row: Row) -> str:
    """`s = 8`, or `r = −1` where activations are rescaled; empty for a gap."""
    value = row.number("value")
    if value is None:
        return ""
    return f"{'r' if row.words('direction') == SUPPRESS else 's'} = {plain(value)}"


def place(row: Row) -> str:
    """`layer 5`, or `layers to 5` where all below are steered too; empty for a method without a layer."""
    layer = row.number("layer")
    if layer is None or layer < 0:
        return ""
    return f"layers to {layer:.0f}" if row.words("method") in MULTI else f"layer {layer:.0f}"


def setting(row: Row) -> str:
    """`layer 5, s = 8`: what the method was set to; empty for one without a setting."""
    if row.words("method") in {"none", "prompt"}:
        return ""
    return ", ".join(word for word in (place(row), dose(row)) if word)


def told(row: Row, found: Estimate, what: str = "score", *, digits: int = 2) -> str:
    """`single, layer 5, s = 8: score 0.41 (0.35–0.47), n = 64`, for tips."""
    name = ", ".join(word for word in (look(row.words("method")).name, setting(row)) if word)
    n = "" if found.n is None else f", n = {count(found.n)}"
    return f"{name}: {what} {decimal_interval(found, digits)}{n}"


def best(rows: Iterable[Row], column: str = "score") -> Row | None:
    """The row with the highest score, the first of equal ones; None where none has one."""
    known = [row for row in rows if row.number(column) is not None]
    return max(known, key=lambda row: row.number(column) or 0.0, default=None)


def of_methods(rows: Iterable[Row], *names: str) -> list[Row]:
    """The rows of these methods at the setting that was chosen for them, not those of the layer of most starts."""
    return [row for row in rows if row.words("method") in names and row.words("choice") != "start layer"]


def default_of(frame: Frame) -> float | None:
    """The score without steering, from the column `default` or the rows of no method."""
    for row in frame.records:
        value = row.number("default")
        if value is not None:
            return value
    return next((row.number("score") for row in frame.where(method="none").records), None)


def samples_told(frame: Frame) -> str:
    """`n = 64`, or `n = 48 to 64` where rows differ; empty where no row has one."""
    known = sorted({n for row in frame.records if (n := row.number("n")) is not None})
    if not known:
        return ""
    return f"n = {count(known[0])}" + ("" if len(known) == 1 else f" to {count(known[-1])}")


def method_signs(names: Sequence[str]) -> list[Sign]:
    """The entries of methods."""
    return [Sign(shown.name, shown.tone, shown.shape, shown.hollow) for shown in map(look, names)]


def unsteered_sign(value: float | None) -> list[Sign]:
    """The entry of the dashed line of the unsteered score; none where it is not known."""
    return [] if value is None else [Sign(f"unsteered {decimal(value)}", shape=DASHES)]


def dashed(axes: Axes, value: float | None, em: float, *, upright: bool = False) -> None:
    """The line of the unsteered score over a panel; none for a gap."""
    if value is None:
        return
    draw = axes.axvline if upright else axes.axhline
    line = draw(value, color=INK, lw=0.08 * em, ls=(0, (4, 3)), zorder=2.5)
    tip(line, f"unsteered: score {decimal(value)}")


def row_key(row: Row) -> SheetKey:
    """What tells the rows of a theme apart: the method, and whether its layer is that of most starts."""
    choice = row.words("choice")
    return row.words("method"), choice if choice == "start layer" else ""


def row_keys(frame: Frame) -> list[SheetKey]:
    """The keys of all rows, in the order of `LOOKS`."""
    order = methods(frame)
    return sorted({row_key(row) for row in frame.records}, key=lambda key: (order.index(key[0]), key[1]))


def key_name(key: SheetKey) -> str:
    """The name of a row by its key."""
    name = look(key[0]).name
    return f"{name}, {key[1]}" if key[1] else name


def draw_sheet(sheet: Sheet, medium: Medium, caption: str) -> Figure:
    """Panels in rows, names at the left of each row of panels."""
    if not sheet.slots or not sheet.panels:
        return nothing(medium, caption)
    names = max(advance(slot.name, 0.82) for slot in sheet.slots) + 1.0
    across = medium.across(len(sheet.panels), _LEAST, beside=names)
    height = sum(slot.height for slot in sheet.slots) + 0.2
    alike = {panel.n for panel in sheet.panels}
    signs = [*sheet.signs, *(Sign(n, shape="") for n in alike if n and len(alike) == 1)]
    canvas, places = panels(
        medium,
        caption,
        len(sheet.panels),
        across=across,
        tall=height,
        drop=5.0,
        below=2.8,
        gap=1.8,
        left=names,
        right=0.4,
        signs=signs,
    )
    limits = _limits(sheet)
    for box, panel in zip(places, sheet.panels, strict=True):
        if box.left == places[0].left:
            _slot_names(canvas, sheet.slots, box)
            words = f"→ {sheet.axis}"
            canvas.write(box.left, box.top + height + 2.3, words, size=0.74, colour=MUTED)
        canvas.title(box.left, box.top - 0.8, box.width, panel.name, panel.n if len(alike) > 1 else "")
        _panel(canvas, box, sheet, panel, limits)
    return canvas.figure


def _middles(slots: Sequence[Slot]) -> list[float]:
    """The middle of every row from the top of a panel, in ems."""
    middles: list[float] = []
    y = 0.1
    for slot in slots:
        middles.append(y + slot.height / 2)
        y += slot.height
    return middles


def _limits(sheet: Sheet) -> tuple[float, float]:
    dots = [dot for panel in sheet.panels for line in panel.lines.values() for dot in line.dots]
    found: list[Estimate | None] = [dot.found for dot in dots]
    found += [Estimate(end) for dot in dots for end in dot.ends or ()]
    found += [Estimate(panel.default) for panel in sheet.panels if panel.default is not None]
    return reach(found)


def _slot_names(canvas: Canvas, slots: Sequence[Slot], box: Box) -> None:
    for slot, middle in zip(slots, _middles(slots), strict=True):
        canvas.write(box.left - 0.7, box.top + middle + 0.3, slot.name, size=0.82, align="right")


def _panel(canvas: Canvas, box: Box, sheet: Sheet, panel: SheetPanel, limits: tuple[float, float]) -> None:
    em = canvas.medium.text
    width = box.width - sheet.numbers
    axes = canvas.axes(box.left, box.top, width, box.height)
    dashed(axes, panel.default, em, upright=True)
    if limits[0] < 0:
        axes.axvline(0, color=INK, lw=0.08 * em, zorder=2)
    for slot, middle in zip(sheet.slots, _middles(sheet.slots), strict=True):
        line = panel.lines.get(slot.key)
        if line is None:
            continue
        for dot in reversed(line.dots):  # controls lie under what they control
            _place_dot(axes, middle, dot, panel.name, em)
        x, y = box.left + box.width - 0.1, box.top + middle + 0.28
        if line.number:
            canvas.write(x, y, line.number, size=0.74, colour=MUTED, align="right")
    numbers_axis(axes, "x", *limits, most=max(1.0, min(4.5, width / 2.8)))
    axes.set_ylim(box.height, 0)
    axes.set_yticks([])
    tidy(axes, values="x", em=em)


def _place_dot(axes: Axes, middle: float, dot: Dot, theme: str, em: float) -> None:
    y, kind = middle + dot.down, dot.shown
    if dot.ends is not None:
        axes.plot(dot.ends, (y, y), color=kind.tone, lw=0.05 * em, zorder=2.5)
        for end in dot.ends:
            axes.plot((end, end), (y - 0.22, y + 0.22), color=kind.tone, lw=0.08 * em, zorder=2.5)
    small = 0.85 * em if dot.down else em
    mark(
        axes,
        y,
        dot.found,
        kind.name,
        tone=kind.tone,
        em=small,
        hollow=kind.hollow,
        shape=kind.shape,
        text=f"{theme}, {dot.text}",
    )
