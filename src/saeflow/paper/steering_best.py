"""Beyond the paper: the confirmed score of each method at its best setting, for every theme."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, Row
from saeflow.paper.kinds import Drawing
from saeflow.paper.steering import (
    MULTI,
    Dot,
    Sheet,
    SheetKey,
    SheetLine,
    SheetPanel,
    Slot,
    best,
    by_direction,
    by_theme,
    default_of,
    draw_sheet,
    key_name,
    look,
    of_methods,
    row_key,
    row_keys,
    samples_told,
    score_of,
    scored,
    told,
    verb,
)
from saeflow.paper.style import MUTED, Medium, Sign
from saeflow.paper.words import decimal, decimal_interval, listed


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """The confirmed score of each method at its best setting, baselines hollow, for every theme.

    The setting was chosen on one set of seeds and is measured here on another, so that no method profits from
    having had more settings to choose from. Random rows stand beneath the method whose features they replace.
    """
    owned = {row_key(row) for row in frame.records}
    panels: list[SheetPanel] = []
    for theme in frame.distinct("theme"):
        rows = frame.where(theme=theme)
        lines: dict[SheetKey, SheetLine] = {}
        for row in sorted(rows.records, key=lambda row: bool(row.words("mirrors"))):
            found = row.estimate("score")
            if found is None:
                continue
            mirrored = (row.words("mirrors"), "")
            if mirrored in owned:
                there = lines.get(mirrored, SheetLine(()))
                text = f"{told(row, found)}; random rows in place of those of {mirrored[0]}"
                lines[mirrored] = replace(there, dots=(*there.dots, Dot(found, look("random"), text, 0.42)))
            else:
                dot = Dot(found, look(row.words("method")), told(row, found) + _marks(row))
                lines[row_key(row)] = SheetLine((dot,), decimal(found.value))
        panels.append(SheetPanel(theme, lines, samples_told(rows), default_of(rows)))
    slots = [Slot(key, key_name(key)) for key in row_keys(frame) if any(key in p.lines for p in panels)]
    signs = [Sign("features of flow graphs"), Sign("baseline", hollow=True)]
    if any(len(line.dots) > 1 for panel in panels for line in panel.lines.values()):
        signs.append(Sign("random rows in their place", MUTED, "^", hollow=True))
    signs += [Sign("unsteered", shape="--"), Sign("lines: 95 % intervals", shape="")]
    return draw_sheet(Sheet(slots, panels, signs, "score"), medium, caption)


def _marks(row: Row) -> str:
    """`; behavior 3.10 (2.90–3.30), coherence 3.90`: what a score is made of."""
    parts = [
        f"{name} {decimal_interval(found)}"
        for name in ("behavior", "coherence")
        if (found := row.estimate(name, f"{name}_low", f"{name}_high"))
    ]
    return f"; {', '.join(parts)}" if parts else ""


def sentence(frame: Frame) -> str:
    """The best multi-layer method against the others: its scores, or in how many themes it is above them."""
    told: list[str] = []
    for direction, rows in by_direction(frame):
        themes = by_theme(rows)
        told.append(_scores_of(rows, direction) if len(themes) == 1 else _above(themes, direction))
    return " ".join(word for word in told if word)


def _scores_of(frame: Frame, direction: str) -> str:
    top = best(of_methods(frame.records, *MULTI))
    known = [row for row in frame.records if row.number("score") is not None]
    rows = sorted((row for row in known if _matters(row, top)), key=score_of, reverse=True)
    theme = next(iter(frame.distinct("theme")), "")
    told = [text for row in rows if (text := scored(row))]
    return f"{verb(direction)} {theme}: {listed(told)}." if told else ""


def _matters(row: Row, top: Row | None) -> bool:
    """Whether a row is told: random rows only where they stand in for the best multi-layer method, or for none."""
    mirrors = row.words("mirrors")
    return not mirrors or (top is not None and mirrors == top.words("method"))


def _above(themes: Mapping[str, Frame], direction: str) -> str:
    tops = {t: row for t, rows in themes.items() if (row := best(of_methods(rows.records, *MULTI))) is not None}
    if not tops:
        return ""
    told: list[str] = []
    for other in ("start", "single", "prompt", "random", "none"):
        rows = {
            t: [row for row in of_methods(themes[t].records, other) if _matters(row, top)] for t, top in tops.items()
        }
        rivals = {t: row for t, found in rows.items() if (row := best(found)) is not None}
        if rivals:
            higher = sum(score_of(tops[t]) > score_of(row) for t, row in rivals.items())
            clear = sum(_apart(tops[t], row) for t, row in rivals.items())
            apart = f" ({clear})" if told else f" (intervals apart in {clear})"
            told.append(f"{look(other).name} in {higher}{apart}")
    middle = decimal(statistics.median(score_of(row) for row in tops.values()))
    above = f", and is above {listed(told)}" if told else ""
    where = f"in the median of {len(tops)} themes"
    return f"{verb(direction)}, the best multi-layer method scores {middle} {where}{above}."


def _apart(upper: Row, lower: Row) -> bool:
    low, high = upper.number("low"), lower.number("high")
    return low is not None and high is not None and low > high


DRAWING: Final = Drawing(figure, sentence, ("theme", "direction", "method", "score"), each=("direction",))
