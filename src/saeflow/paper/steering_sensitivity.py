"""Beyond the paper: how much the score of a method depends on its coefficient, for every theme."""

from __future__ import annotations

import statistics
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame
from saeflow.paper.kinds import DotRow, Drawing, Mark
from saeflow.paper.steering import (
    SUPPRESS,
    MethodKey,
    by_direction,
    by_theme,
    default_of,
    key_name,
    look,
    methods,
    row_key,
    row_keys,
    theme_panels,
    verb,
)
from saeflow.paper.style import DASHES, Medium, Sign
from saeflow.paper.words import count, decimal, decimal_interval, listed


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """The mean score of each method over its grid of s or r, and how far the worst and best of it lie apart.

    The thin line is no interval: it ends at the scores of the worst and of the best coefficient. The interval of
    the mean is the thick one.
    """
    shown: dict[str, dict[MethodKey, DotRow]] = {}
    for theme, rows in by_theme(frame).items():
        lines = shown[theme] = {}
        for row in rows.records:
            found = row.estimate("mean_score")
            if found is None:
                continue
            worst, top, values = (row.number(name) for name in ("worst_score", "best_score", "values"))
            of = "" if values is None else f" of {count(values)} values"
            apart = row.estimate("spread", "spread_low", "spread_high")
            more = f", apart by {decimal_interval(apart)}" if apart else ""
            kind = look(row.words("method"))
            text = (
                f"{theme}, {kind.name}: mean {decimal_interval(found)}{of}, worst {decimal(worst)}, best {decimal(top)}"
            )
            ends = None if worst is None or top is None else (worst, top)
            mark = Mark(found, text + more, kind.tone, kind.shape, kind.hollow, ends=ends)
            lines[row_key(row)] = DotRow(key_name(row_key(row)), (mark,), (decimal(row.number("spread")),))
    signs = [Sign("mean over the grid, with its interval"), Sign("thin: worst to best value", shape="")]
    if default_of(frame) is not None:
        signs.append(Sign("unsteered", shape=DASHES))
    signs.append(Sign("number: best less worst", shape=""))
    keys = [key for key in row_keys(frame) if any(key in lines for lines in shown.values())]
    return theme_panels(frame, shown, keys, medium, caption, "score", signs)


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
