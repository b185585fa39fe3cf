"""Beyond the paper: differences of two methods over the same seeds, for every theme."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, Interval, TableRow, in_order
from saeflow.paper.kinds import DotRow, Drawing, Mark, chance
from saeflow.paper.steering import (
    LOOKS,
    MULTI,
    MethodKey,
    by_direction,
    by_theme,
    look,
    method_signs,
    methods,
    theme_panels,
    verb,
)
from saeflow.paper.style import Medium, Sign
from saeflow.paper.words import count, decimal, listed

_CLOSE = 0.6  # rows of one block, told apart by colour and shape


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Differences of two methods over the same seeds against zero, a block for what is compared against."""
    keys = [(other, "") for other in in_order(frame.distinct("method_b"), tuple(LOOKS))]
    shown: dict[str, dict[MethodKey, DotRow]] = {}
    for theme, rows in by_theme(frame).items():
        lines = shown[theme] = {}
        for key in keys:
            # in an order that is that of all themes, told apart by colour and shape
            order = methods(frame.where(method_b=key[0]), "method_a")
            marks: list[Mark] = []
            for row in rows.where(method_b=key[0]).records:
                found, method = row.estimate("difference"), row.words("method_a")
                if found is not None and method in order:
                    kind, down = look(method), _CLOSE * (order.index(method) - (len(order) - 1) / 2)
                    text = f"{theme}, {_difference(row, found)}"
                    marks.append(Mark(found, text, kind.tone, kind.shape, kind.hollow, down))
            lines[key] = DotRow(f"less {look(key[0]).name}", marks, height=_CLOSE * max(len(order), 1) + 0.4)
    words = "right of zero: scores higher on the same seeds"
    signs = [*method_signs(methods(frame, "method_a")), Sign(words, shape="")]
    return theme_panels(frame, shown, keys, medium, caption, "difference in score", signs)


def signed(value: float | None, digits: int = 2) -> str:
    """`+0.05`, `−0.05`, `0.00`; a dash for a gap."""
    text = decimal(value, digits)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text


def _difference(row: TableRow, found: Interval) -> str:
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
