"""What removing predecessors does to their targets (figures 6, 7, 8, 15b and table 1).

Every rate stands beside its control: the same edit of a random active feature of the same site and
norm. Filled marks are predecessors, hollow ones controls, lines 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from saeflow.report.figures.frame import (
    GROUPS,
    Estimate,
    Frame,
    Row,
    count,
    decimal,
    decimal_interval,
    in_order,
    percent,
    percent_interval,
    points,
    points_interval,
)  # fmt: skip
from saeflow.report.figures.parts import Box, mark, reach
from saeflow.report.figures.style import (
    ACCENT,
    INK,
    MUTED,
    Canvas,
    Medium,
    advance,
    colour,
    foot,
    nothing,
    numbers_axis,
    shares_axis,
    tidy,
)  # fmt: skip

PARTS = ("RES", "MLP", "ATT")
_PITCH = 1.5


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of a forest: its head, and how its numbers are written."""

    head: str
    text: Callable[[Estimate], str]
    short: Callable[[float | None], str]
    unit: str = ""  # of the axis; plain numbers where empty
    room: float = 8.4  # for its number with interval, in ems


DEACTIVATED = Measure("deactivated", percent_interval, percent, "%")
CHANGE = Measure("activation change", decimal_interval, decimal)
DIFFERENCE = Measure("difference in deactivation rate", points_interval, points, "pp", 13.0)
RATIO = Measure("norm of the control over the norm removed: median and quartiles", decimal_interval, decimal)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a forest: an estimate and its control for each measure. `head` begins a block."""

    label: str
    tone: str
    cells: tuple[tuple[Estimate | None, Estimate | None], ...]
    n: float | None
    head: str = ""
    hollow: bool = False


def forest(
    lines: Sequence[Line], measures: Sequence[Measure], medium: Medium, caption: str, *, controls: bool
) -> Figure:
    """Lines with marks, intervals and numbers: measures side by side, or under one another where narrow."""
    names = max(max(advance(entry.label, 0.82) + 5.4, advance(entry.head, 0.9) + 1.6) for entry in lines)
    own = not medium.wide and names > 0.4 * medium.ems  # labels on lines of their own
    names = 4.6 if own else names
    places, height = _places(lines, own=own)
    stacked = 1 if medium.wide else len(measures)
    top = 4.6 if controls else 3.0
    block = height + 3.6
    canvas = Canvas(medium, top + stacked * block - 1.2 + foot(medium, caption))
    if controls:
        control_key(canvas)
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


CONTROL = "control: random active features of the same sites and norm"
CONTROL_BRIEFLY = "control: random active"


def control_key(canvas: Canvas, edited: str = "removed", *, dashed: bool = False) -> None:
    """What filled and hollow marks are, and dashed lines where there are some."""
    wide = canvas.medium.wide
    canvas.marker(0.6, 1.0, "o")
    canvas.write(1.4, 1.3, f"predecessors {edited}" if wide else edited, size=0.82)
    x = 17.5 if wide else 8.0
    if dashed:
        canvas.bar(x - 1.1, 1.03, 0.45, 0.13, INK)
        canvas.bar(x + 0.65, 1.03, 0.45, 0.13, INK)
    canvas.marker(x, 1.0, "o", hollow=True)
    canvas.write(x + (1.5 if dashed else 0.8), 1.3, CONTROL if wide else CONTROL_BRIEFLY, size=0.82)


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
                axes,
                place,
                control,
                name,
                tone=entry.tone,
                em=0.9 * em,
                hollow=True,
                text=told(name, control, measure),
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
        canvas.write(
            box.left + box.width - 0.4, box.top - 0.6, "control", size=0.74, colour=MUTED, align="right"
        )


def told(name: str, found: Estimate, measure: Measure) -> str:
    """A number in a sentence, for tips."""
    n = "" if found.n is None else f", n = {count(found.n)}"
    return f"{name}: {measure.text(found)} {measure.head}{n}"


def both(row: Row) -> tuple[tuple[Estimate | None, Estimate | None], ...]:
    """The two measures of a row with their controls, as the tables of deactivation name them."""
    return (
        (
            row.estimate("deactivated"),
            row.estimate("control_deactivated", "control_low", "control_high", "control_n"),
        ),
        (
            row.estimate("change", "change_low", "change_high"),
            row.estimate("control_change", "control_change_low", "control_change_high", "control_n"),
        ),
    )


def by_strategy(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Rates and changes by the target's group and strategy, with controls: all it names removed (fig. 6).

    Only strategies that have controls are drawn. An exhaustive search reports, for each target, the edit
    that worked best, so that its rates by what it removed are chosen by their outcome.
    """
    controlled = {r.words("strategy") for r in frame.records if r.number("control_deactivated") is not None}
    strategies = [s for s in frame.distinct("strategy") if s in controlled or not controlled]
    found = frame.lookup("group", "removed", "strategy")
    lines: list[Line] = []
    for group in frame.groups():
        head = group
        for strategy in strategies:
            row = found.get((group, group, strategy))
            if row is not None:
                hollow = is_control(row)
                lines.append(Line(strategy, colour(group), both(row), row.number("n"), head, hollow))
                head = ""
    if not lines:
        return nothing(medium, caption, "no trial removed all predecessors of its target")
    return forest(
        lines, (DEACTIVATED, CHANGE), medium, f"{caption} · all available predecessors removed", controls=True
    )


def is_control(row: Row) -> bool:
    """Whether a row is itself a control."""
    return row.words("control") == "True" or row.words("strategy") == "active control"


def one_predecessor(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Removing one predecessor at a time: does it matter as much in company as alone? (fig. 8)

    Rates are drawn only where the table has their controls.
    """
    rated = "control_deactivated" in frame.columns
    lines: list[Line] = []
    for removed in in_order(frame.distinct("removed"), PARTS):
        rows = frame.where(removed=removed)
        head = f"{removed} removed"
        found = rows.lookup("group")
        for group in rows.groups():
            row = found[(group,)]
            change = row.estimate("change")
            rate = row.estimate("deactivated", "deactivated_low", "deactivated_high")
            cells = ((change, row.estimate("control_change", "control_low", "control_high", "control_n")),)
            cells += (
                (
                    rate,
                    row.estimate(
                        "control_deactivated", "control_deactivated_low", "control_deactivated_high"
                    ),
                ),
            )
            lines.append(Line(group, colour(group), cells, row.number("n"), head))
            head = ""
    return forest(lines, (CHANGE, DEACTIVATED) if rated else (CHANGE,), medium, caption, controls=True)


def table_1(frame: Frame, medium: Medium, caption: str) -> Figure:
    """The deactivation methods on the targets they share, with their controls (table 1).

    Where the table has those, the row of the control alone says nothing more and is not drawn.
    """
    controls = any(row.number("control_deactivated") is not None for row in frame.records)
    lines = [
        Line(row.words("strategy"), ACCENT, both(row), row.number("n"), hollow=is_control(row))
        for row in frame.records
        if not (controls and is_control(row))
    ]
    return forest(lines, (DEACTIVATED, CHANGE), medium, caption, controls=controls)


def paired(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Differences in the deactivation rate of two strategies over the same targets."""
    lines: list[Line] = []
    for scope in frame.distinct("scope") or ("",):
        head = f"targets for which {scope} a predecessor" if scope else ""
        for row in (frame.where(scope=scope) if scope else frame).records:
            a, b, p = row.words("strategy_a"), row.words("strategy_b"), row.number("p")
            label = f"{a} − {b}" + ("" if p is None else f", p {chance(p)}")
            lines.append(Line(label, ACCENT, ((row.estimate("difference"), None),), row.number("n"), head))
            head = ""
    return forest(lines, (DIFFERENCE,), medium, caption, controls=False)


def control_match(frame: Frame, medium: Medium, caption: str) -> Figure:
    """How alike controls are in norm to what they control: medians and quartiles of the ratio."""
    lines: list[Line] = []
    for strategy in frame.distinct("strategy"):
        head = strategy
        rows = frame.where(strategy=strategy)
        found = rows.lookup("removed")
        for removed in in_order(rows.distinct("removed"), GROUPS):
            row = found[(removed,)]
            ratio = row.estimate("median", "q25", "q75", "controls")
            lines.append(Line(removed, colour(removed), ((ratio, None),), row.number("controls"), head))
            head = ""
    return forest(lines, (RATIO,), medium, caption, controls=False)


def chance(p: float) -> str:
    """`= 0.03`, or `< 0.001` where a p value is smaller."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}".rstrip("0").rstrip(".")
