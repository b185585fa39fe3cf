"""Beyond the paper: how much the score of a method depends on its coefficient, for every theme."""

from __future__ import annotations

import statistics
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Estimate, Frame, Row
from saeflow.paper.kinds import Drawing
from saeflow.paper.steering import (
    SUPPRESS,
    Dot,
    Sheet,
    SheetLine,
    SheetPanel,
    Slot,
    by_direction,
    by_theme,
    default_of,
    draw_sheet,
    key_name,
    look,
    methods,
    row_key,
    row_keys,
    samples_told,
    verb,
)
from saeflow.paper.style import Medium, Sign
from saeflow.paper.words import count, decimal, decimal_interval, listed


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """The mean score of each method over its grid of s or r, and how far the worst and best of it lie apart.

    The thin line is no interval: it ends at the scores of the worst and of the best coefficient. The interval of
    the mean is the thick one.
    """
    panels: list[SheetPanel] = []
    for theme in frame.distinct("theme"):
        rows = frame.where(theme=theme)
        lines = {
            row_key(row): SheetLine((Dot(e, look(row.words("method")), _grid(row, e), ends=_ends(row)),), _spread(row))
            for row in rows.records
            if (e := row.estimate("mean_score")) is not None
        }
        panels.append(SheetPanel(theme, lines, samples_told(rows), default_of(rows)))
    signs = [Sign("mean over the grid, with its interval"), Sign("thin: worst to best value", shape="")]
    if any(panel.default is not None for panel in panels):
        signs.append(Sign("unsteered", shape="--"))
    signs.append(Sign("number: best less worst", shape=""))
    slots = [Slot(key, key_name(key)) for key in row_keys(frame)]
    return draw_sheet(Sheet(slots, panels, signs, "score"), medium, caption)


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


def sentence(frame: Frame) -> str:
    """By how much scores vary over the grid under each method, in the median theme."""
    told: list[str] = []
    for direction, rows in by_direction(frame):
        spreads = {
            m: statistics.median(known)
            for m in methods(rows)
            if m not in {"none", "prompt"}
            and (known := [s for r in rows.where(method=m).records if (s := r.number("spread")) is not None])
        }
        parts = [f"{decimal(value)} with {look(m).name}" for m, value in sorted(spreads.items(), key=lambda i: i[1])]
        of = " in the median theme" if len(by_theme(rows)) > 1 else ""
        if parts:
            symbol = "r" if direction == SUPPRESS else "s"
            told.append(
                f"{verb(direction)}, the worst and the best {symbol} of the grid lie apart by {listed(parts)}{of}."
            )
    return " ".join(told)


DRAWING: Final = Drawing(figure, sentence, ("theme", "direction", "method", "mean_score"), each=("direction",))
