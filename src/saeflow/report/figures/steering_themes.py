"""All themes of a steering sweep beside one another: a small panel a theme, a line a method (beyond the paper).

Which method wins depends on the theme, so no mean over themes is drawn. Every panel of a figure has the same
rows and the same axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.report.figures.frame import Estimate, Frame, Row, count, decimal, decimal_interval, in_order
from saeflow.report.figures.parts import Box, boxes, mark, reach
from saeflow.report.figures.steering_marks import (
    LOOKS,
    Look,
    Sign,
    dashed,
    default_of,
    draw_signs,
    look,
    method_signs,
    methods,
    samples_told,
    signs_height,
    told,
)  # fmt: skip
from saeflow.report.figures.style import (
    INK,
    MUTED,
    Canvas,
    Medium,
    advance,
    foot,
    nothing,
    numbers_axis,
    tidy,
)
from saeflow.report.figures.trials import chance

_PITCH = 1.45
_CLOSE = 0.95  # rows of one block, told apart by colour and shape
_LEAST = 14.0  # the narrowest panel, in ems
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Dot:
    """An estimate with what it says when pointed at; `down` moves it below the middle of its row, in ems.

    `ends` are those of a thin line behind it.
    """

    found: Estimate
    shown: Look
    text: str
    down: float = 0.0
    ends: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class _Line:
    """What stands in a row of one panel: marks, and a number at the right."""

    dots: tuple[_Dot, ...]
    number: str = ""


@dataclass(frozen=True, slots=True)
class _Slot:
    """A row that every panel has, and how high it is."""

    key: _Key
    name: str
    height: float = _PITCH


@dataclass(frozen=True, slots=True)
class _Panel:
    """A theme."""

    name: str
    lines: Mapping[_Key, _Line]
    n: str = ""
    default: float | None = None


@dataclass(frozen=True, slots=True)
class _Sheet:
    """All panels with what they share; `numbers` is the room for those at the right, in ems."""

    slots: Sequence[_Slot]
    panels: Sequence[_Panel]
    signs: Sequence[Sign]
    axis: str
    numbers: float = 2.6


def themes_best(frame: Frame, medium: Medium, caption: str) -> Figure:
    """The confirmed score of each method at its best setting, baselines hollow, for every theme.

    The setting was chosen on one set of seeds and is measured here on another, so that no method profits from
    having had more settings to choose from. Random rows stand beneath the method whose features they replace.
    """
    owned = {_key(row) for row in frame.records}
    panels: list[_Panel] = []
    for theme in frame.distinct("theme"):
        rows = frame.where(theme=theme)
        lines: dict[_Key, _Line] = {}
        for row in sorted(rows.records, key=lambda row: bool(row.words("mirrors"))):
            found = row.estimate("score")
            if found is None:
                continue
            mirrored = (row.words("mirrors"), "")
            if mirrored in owned:
                there = lines.get(mirrored, _Line(()))
                text = f"{told(row, found)}; random rows in place of those of {mirrored[0]}"
                lines[mirrored] = replace(there, dots=(*there.dots, _Dot(found, look("random"), text, 0.42)))
            else:
                dot = _Dot(found, look(row.words("method")), told(row, found) + _marks(row))
                lines[_key(row)] = _Line((dot,), decimal(found.value))
        panels.append(_Panel(theme, lines, samples_told(rows), default_of(rows)))
    slots = [_Slot(key, _named(key)) for key in _ordered(frame) if any(key in p.lines for p in panels)]
    signs = [Sign("features of flow graphs"), Sign("baseline", hollow=True)]
    if any(len(line.dots) > 1 for panel in panels for line in panel.lines.values()):
        signs.append(Sign("random rows in their place", MUTED, "^", hollow=True))
    signs += [Sign("unsteered", shape="--"), Sign("lines: 95 % intervals", shape="")]
    return _draw(_Sheet(slots, panels, signs, "score"), medium, caption)


def _key(row: Row) -> _Key:
    """What tells the rows of a theme apart: the method, and whether its layer is that of most starts."""
    choice = row.words("choice")
    return row.words("method"), choice if choice == "start layer" else ""


def _ordered(frame: Frame) -> list[_Key]:
    order = methods(frame)
    return sorted({_key(row) for row in frame.records}, key=lambda key: (order.index(key[0]), key[1]))


def _named(key: _Key) -> str:
    name = look(key[0]).name
    return f"{name}, {key[1]}" if key[1] else name


def _marks(row: Row) -> str:
    """`; behavior 3.10 (2.90–3.30), coherence 3.90`: what a score is made of."""
    parts = [
        f"{name} {decimal_interval(found)}"
        for name in ("behavior", "coherence")
        if (found := row.estimate(name, f"{name}_low", f"{name}_high"))
    ]
    return f"; {', '.join(parts)}" if parts else ""


def themes_paired(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Differences of two methods over the same seeds against zero, a block for what is compared against."""
    firsts = methods(frame, "method_a")
    slots: list[_Slot] = []
    for other in in_order(frame.distinct("method_b"), tuple(LOOKS)):
        n = len(methods(frame.where(method_b=other), "method_a"))
        slots.append(_Slot((other, ""), f"less {look(other).name}", _CLOSE * max(n, 1) + 0.7))
    panels: list[_Panel] = []
    for theme in frame.distinct("theme"):
        rows = frame.where(theme=theme)
        lines = {(other, ""): _differences(frame, rows, other) for other in frame.distinct("method_b")}
        panels.append(_Panel(theme, lines, samples_told(rows)))
    words = "right of zero: scores higher on the same seeds"
    signs = [*method_signs(firsts), Sign(words, shape="")]
    return _draw(_Sheet(slots, panels, signs, "difference in score", 0.4), medium, caption)


def _differences(frame: Frame, rows: Frame, other: str) -> _Line:
    """The differences of a theme from one method, below one another in an order that is that of all themes."""
    order = methods(frame.where(method_b=other), "method_a")
    dots = tuple(
        _Dot(e, look(a), _difference(row, e), _CLOSE * (order.index(a) - (len(order) - 1) / 2))
        for row in rows.where(method_b=other).records
        if (e := row.estimate("difference")) is not None and (a := row.words("method_a")) in order
    )
    return _Line(dots)


def signed(value: float | None, digits: int = 2) -> str:
    """`+0.05`, `−0.05`, `0.00`; a dash for a gap."""
    text = decimal(value, digits)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text


def _difference(row: Row, found: Estimate) -> str:
    a, b = (look(row.words(name)).name for name in ("method_a", "method_b"))
    ends = (
        "" if found.low is None or found.high is None else f" ({signed(found.low)} to {signed(found.high)})"
    )
    p, q = row.number("p"), row.number("q")
    chances = "".join(f", {name} {chance(v)}" for name, v in (("p", p), ("q", q)) if v is not None)
    n = "" if found.n is None else f", n = {count(found.n)}"
    return f"{a} less {b}: {signed(found.value)}{ends}{chances}{n}"


def themes_sensitivity(frame: Frame, medium: Medium, caption: str) -> Figure:
    """The mean score of each method over its grid of s or r, and how far the worst and best of it lie apart.

    The thin line is no interval: it ends at the scores of the worst and of the best coefficient. The interval of
    the mean is the thick one.
    """
    panels: list[_Panel] = []
    for theme in frame.distinct("theme"):
        rows = frame.where(theme=theme)
        lines = {
            _key(row): _Line(
                (_Dot(e, look(row.words("method")), _grid(row, e), ends=_ends(row)),), _spread(row)
            )
            for row in rows.records
            if (e := row.estimate("mean_score")) is not None
        }
        panels.append(_Panel(theme, lines, samples_told(rows), default_of(rows)))
    signs = [Sign("mean over the grid, with its interval"), Sign("thin: worst to best value", shape="")]
    if any(panel.default is not None for panel in panels):
        signs.append(Sign("unsteered", shape="--"))
    signs.append(Sign("number: best less worst", shape=""))
    slots = [_Slot(key, _named(key)) for key in _ordered(frame)]
    return _draw(_Sheet(slots, panels, signs, "score"), medium, caption)


def _ends(row: Row) -> tuple[float, float] | None:
    worst, best = row.number("worst_score"), row.number("best_score")
    return None if worst is None or best is None else (worst, best)


def _spread(row: Row) -> str:
    return decimal(row.number("spread"))


def _grid(row: Row, found: Estimate) -> str:
    """`single: mean 0.31 (0.28–0.34) of 6 values, worst 0.08, best 0.55, apart by 0.47 (0.41–0.53)`."""
    values = row.number("values")
    of = "" if values is None else f" of {count(values)} values"
    apart = row.estimate("spread", "spread_low", "spread_high")
    more = f", apart by {decimal_interval(apart)}" if apart else ""
    ends = f"worst {decimal(row.number('worst_score'))}, best {decimal(row.number('best_score'))}"
    return f"{look(row.words('method')).name}: mean {decimal_interval(found)}{of}, {ends}{more}"


def _draw(sheet: _Sheet, medium: Medium, caption: str) -> Figure:
    """Panels in rows, names at the left of each row of panels."""
    if not sheet.slots or not sheet.panels:
        return nothing(medium, caption)
    names = max(advance(slot.name, 0.82) for slot in sheet.slots) + 1.0
    across = medium.across(len(sheet.panels), _LEAST, beside=names)
    rows = -(-len(sheet.panels) // across)
    height = sum(slot.height for slot in sheet.slots) + 0.2
    alike = {panel.n for panel in sheet.panels}
    signs = [*sheet.signs, *(Sign(n, shape="") for n in alike if n and len(alike) == 1)]
    keyed = signs_height(medium, signs)
    canvas = Canvas(medium, keyed + 1.8 + rows * (height + 5.0) - 2.2 + foot(medium, caption))
    draw_signs(canvas, signs)
    area = Box(names, keyed + 1.8, canvas.width - names - 0.4, height)
    places = list(zip(boxes(len(sheet.panels), across, area, gap=1.8, drop=5.0), sheet.panels, strict=True))
    limits = _limits(sheet)
    for box, panel in places:
        if box.left == area.left:
            _slot_names(canvas, sheet.slots, box)
            words = f"→ {sheet.axis}"
            canvas.write(box.left, box.top + height + 2.3, words, size=0.74, colour=MUTED)
        canvas.title(box.left, box.top - 0.8, box.width, panel.name, panel.n if len(alike) > 1 else "")
        _panel(canvas, box, sheet, panel, limits)
    canvas.caption(caption)
    return canvas.figure


def _middles(slots: Sequence[_Slot]) -> list[float]:
    """The middle of every row from the top of a panel, in ems."""
    middles: list[float] = []
    y = 0.1
    for slot in slots:
        middles.append(y + slot.height / 2)
        y += slot.height
    return middles


def _limits(sheet: _Sheet) -> tuple[float, float]:
    dots = [dot for panel in sheet.panels for line in panel.lines.values() for dot in line.dots]
    found: list[Estimate | None] = [dot.found for dot in dots]
    found += [Estimate(end) for dot in dots for end in dot.ends or ()]
    found += [Estimate(panel.default) for panel in sheet.panels if panel.default is not None]
    return reach(found)


def _slot_names(canvas: Canvas, slots: Sequence[_Slot], box: Box) -> None:
    for slot, middle in zip(slots, _middles(slots), strict=True):
        canvas.write(box.left - 0.7, box.top + middle + 0.3, slot.name, size=0.82, align="right")


def _panel(canvas: Canvas, box: Box, sheet: _Sheet, panel: _Panel, limits: tuple[float, float]) -> None:
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
            _place(axes, middle, dot, panel.name, em)
        x, y = box.left + box.width - 0.1, box.top + middle + 0.28
        if line.number:
            canvas.write(x, y, line.number, size=0.74, colour=MUTED, align="right")
    numbers_axis(axes, "x", *limits, most=max(1.0, min(4.5, width / 2.8)))
    axes.set_ylim(box.height, 0)
    axes.set_yticks([])
    tidy(axes, values="x", em=em)


def _place(axes: Axes, middle: float, dot: _Dot, theme: str, em: float) -> None:
    y, kind = middle + dot.down, dot.shown
    if dot.ends is not None:
        axes.plot(dot.ends, (y, y), color=kind.tone, lw=0.05 * em, zorder=2.5)
        for end in dot.ends:
            axes.plot((end, end), (y - 0.22, y + 0.22), color=kind.tone, lw=0.08 * em, zorder=2.5)
    small = 0.85 * em if dot.down else em
    mark(
        axes, y, dot.found, kind.name, tone=kind.tone, em=small, hollow=kind.hollow, shape=kind.shape,
        text=f"{theme}, {dot.text}",
    )  # fmt: skip
