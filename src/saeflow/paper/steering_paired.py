"""Beyond the paper: differences of two methods over the same seeds, for every theme."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Estimate, Frame, Row, in_order
from saeflow.paper.kinds import Drawing, chance
from saeflow.paper.steering import (
    LOOKS,
    MULTI,
    Dot,
    Sheet,
    SheetLine,
    SheetPanel,
    Slot,
    by_direction,
    draw_sheet,
    look,
    method_signs,
    methods,
    samples_told,
    verb,
)
from saeflow.paper.style import Medium, Sign
from saeflow.paper.words import count, decimal, listed

_CLOSE = 0.95  # rows of one block, told apart by colour and shape


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Differences of two methods over the same seeds against zero, a block for what is compared against."""
    firsts = methods(frame, "method_a")
    slots: list[Slot] = []
    for other in in_order(frame.distinct("method_b"), tuple(LOOKS)):
        n = len(methods(frame.where(method_b=other), "method_a"))
        slots.append(Slot((other, ""), f"less {look(other).name}", _CLOSE * max(n, 1) + 0.7))
    panels: list[SheetPanel] = []
    for theme in frame.distinct("theme"):
        rows = frame.where(theme=theme)
        lines = {(other, ""): _differences(frame, rows, other) for other in frame.distinct("method_b")}
        panels.append(SheetPanel(theme, lines, samples_told(rows)))
    words = "right of zero: scores higher on the same seeds"
    signs = [*method_signs(firsts), Sign(words, shape="")]
    return draw_sheet(Sheet(slots, panels, signs, "difference in score", 0.4), medium, caption)


def _differences(frame: Frame, rows: Frame, other: str) -> SheetLine:
    """The differences of a theme from one method, below one another in an order that is that of all themes."""
    order = methods(frame.where(method_b=other), "method_a")
    dots = tuple(
        Dot(e, look(a), _difference(row, e), _CLOSE * (order.index(a) - (len(order) - 1) / 2))
        for row in rows.where(method_b=other).records
        if (e := row.estimate("difference")) is not None and (a := row.words("method_a")) in order
    )
    return SheetLine(dots)


def signed(value: float | None, digits: int = 2) -> str:
    """`+0.05`, `−0.05`, `0.00`; a dash for a gap."""
    text = decimal(value, digits)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text


def _difference(row: Row, found: Estimate) -> str:
    a, b = (look(row.words(name)).name for name in ("method_a", "method_b"))
    ends = "" if found.low is None or found.high is None else f" ({signed(found.low)} to {signed(found.high)})"
    p, q = row.number("p"), row.number("q")
    chances = "".join(f", {name} {chance(v)}" for name, v in (("p", p), ("q", q)) if v is not None)
    n = "" if found.n is None else f", n = {count(found.n)}"
    return f"{a} less {b}: {signed(found.value)}{ends}{chances}{n}"


def sentence(frame: Frame) -> str:
    """How often differences of multi-layer methods lie above or below zero with their whole interval."""
    told: list[str] = []
    for direction, rows in by_direction(frame):
        parts: list[str] = []
        for other in ("start", "single", "prompt", "random", "none"):
            mine = [row for row in rows.where(method_b=other).records if row.words("method_a") in MULTI]
            found = [e for row in mine if (e := row.estimate("difference"))]
            above = sum(e.low is not None and e.low > 0 for e in found)
            below = sum(e.high is not None and e.high < 0 for e in found)
            if found:
                apart = f" (below in {below})" if not parts else f" ({below})"
                parts.append(f"{above} of {len(found)} against {look(other).name}{apart}")
        if parts:
            told.append(
                f"{verb(direction)} with several layers, the whole interval of the difference is above zero in "
                f"{listed(parts)}."
            )
    return " ".join(told)


DRAWING: Final = Drawing(
    figure, sentence, ("theme", "direction", "method_a", "method_b", "difference"), each=("direction",)
)
