"""Figures 10 and 11: steering scores over the coefficient r or s, for one theme and direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, Interval
from saeflow.paper.kinds import Drawing, line, point, reach
from saeflow.paper.steering import (
    SUPPRESS,
    best,
    by_direction,
    by_theme,
    dashed,
    default_of,
    direction_of,
    dose,
    look,
    method_signs,
    methods,
    plain,
    score_of,
    score_signs,
    scored,
    told,
    unsteered,
    verb,
)
from saeflow.paper.style import MUTED, RULE, Medium, apart, ems, nothing, panels, value_axis
from saeflow.paper.words import decimal, decimal_interval, listed

MARK: Final = 5.0
"""The highest mark that a judge gives for behavior or coherence (B.1, B.2)."""


_MEASURES: Final = (
    ("score", "score", "low", "high"),
    ("behavior, 0 to 5", "behavior", "behavior_low", "behavior_high"),
    ("coherence, 0 to 5", "coherence", "coherence_low", "coherence_high"),
)
"""Head, column and the columns of its interval."""


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Score, behavior and coherence over r (fig. 10) or s (fig. 11), each at the best layer, and what is traded.

    The last panel sets behavior against coherence: a method's way through it is its choice of coefficients,
    and along a thin curve the score is the same.
    """
    shown = [m for m in methods(frame) if m not in {"none", "prompt"}]
    values = sorted({v for row in frame.records if (v := row.number("value")) is not None})
    if not shown or not values:
        return nothing(medium, caption, "no method was swept over a coefficient")
    default, suppress = default_of(frame), direction_of(frame) == SUPPRESS
    mosaic = [["a"] * 3, ["b", "c", "d"]] if medium.wide else [["a"], ["b"], ["c"], ["d"]]
    tall = [13.0, *[11.0] * (len(mosaic) - 1)]
    signs = method_signs(shown) + score_signs(frame)
    drawn, places = panels(medium, caption, mosaic, tall, signs=signs)
    # coefficients to scale where steps are alike, else at equal steps
    steps = [b - a for a, b in pairwise(values)]
    even = not steps or max(steps) <= 3 * min(steps)
    at = dict(zip(values, values if even else [float(i) for i in range(len(values))], strict=True))
    note = "r: factor of each activation, 1" if suppress else "s: strength of each feature, 0"
    note += " changes nothing" + ("" if even else "; not to scale")
    for number, (axes, (head, *columns)) in enumerate(zip(places, _MEASURES, strict=False)):
        everything: list[Interval | None] = []
        if number == 0 and default is not None:
            dashed(axes, default)
            everything.append(Interval(default))
        for method in shown:
            rows = {v: row for row in frame.where(method=method).records if (v := row.number("value")) is not None}
            known = [v for v in values if v in rows]
            found = [rows[v].estimate(*columns) for v in known]
            tips = [told(rows[v], e, columns[0]) if e else "" for v, e in zip(known, found, strict=True)]
            kind = look(method)
            line(axes, [at[v] for v in known], found, tips, tone=kind.tone, hollow=kind.hollow, shape=kind.shape)
            everything += found
        value_axis(axes, "y", *(reach(everything) if number == 0 else (0.0, MARK)))
        across = 1 if number == 0 else len(mosaic[1])
        ticks = apart([at[v] for v in values], 2.6 * across / medium.ems)
        axes.set_xticks(ticks, [plain(v) for v in values if at[v] in ticks])
        air = 0.03 * max(at[values[-1]] - at[values[0]], 1.0)
        axes.set_xlim(at[values[0]] - air, at[values[-1]] + air)
        axes.set_title(head)
        axes.set_xlabel(note if number == 0 else note[:1])
    _trade(places[3], frame, shown, suppress=suppress)
    return drawn


def _trade(axes: Axes, frame: Frame, shown: Sequence[str], *, suppress: bool) -> None:
    """Behavior against coherence: a way for each method with a large mark at its best, over curves of equal score."""
    for score in (0.1, 0.2, 0.4, 0.6, 0.8):
        kept = [MARK * (score + (1 - score) * i / 40) for i in range(41)]  # the factor that is not coherence
        xs, ys = [MARK - x for x in kept] if suppress else kept, [MARK * MARK * score / x for x in kept]
        axes.plot(xs, ys, color=RULE, lw=ems(0.09), zorder=1)
        side = {"ha": "left" if suppress else "right", "va": "bottom"}
        axes.text(xs[-1], ys[-1] + 0.06, decimal(score, 1), fontsize=ems(0.66), color=MUTED, zorder=1, **side)
    for method in shown:
        kind = look(method)
        known = sorted(
            (value, behavior, coherence, row)
            for row in frame.where(method=method).records
            if (value := row.number("value")) is not None
            and (behavior := row.number("behavior")) is not None
            and (coherence := row.number("coherence")) is not None
        )
        axes.plot(
            [b for _, b, _, _ in known], [c for _, _, c, _ in known], color=kind.tone, lw=ems(0.1), alpha=0.75, zorder=3
        )
        top = best(row for *_, row in known)
        for _, x, y, row in known:
            size, order = (0.52, 5) if row is top else (0.24, 4)
            score = row.estimate("score")
            more = f", score {decimal_interval(score)}" if score else ""
            text = f"{kind.name}, {dose(row)}: behavior {decimal(x)}, coherence {decimal(y)}{more}"
            text = f"best: {text}" if row is top else text
            point(axes, x, y, text, tone=kind.tone, size=size, shape=kind.shape, order=order)
    value_axis(axes, "x", 0, MARK)
    value_axis(axes, "y", 0, MARK)
    axes.grid(visible=False)
    axes.set_title("coherence over behavior")
    axes.set_xlabel("large: best score; thin: the same score")


def sentence(frame: Frame) -> str:
    """The best coefficient of each method; over many themes, which method reaches the highest score."""
    told: list[str] = []
    for direction, rows in by_direction(frame):
        themes = by_theme(rows)
        told.append(_best_values(rows, direction) if len(themes) == 1 else _winners(themes, direction))
    return " ".join(word for word in told if word)


def _best_values(frame: Frame, direction: str) -> str:
    swept = [m for m in methods(frame) if m not in {"none", "prompt"}]
    tops = [row for m in swept if (row := best(frame.where(method=m).records)) is not None]
    told = [text for row in sorted(tops, key=score_of, reverse=True) if (text := scored(row))]
    symbol = "r" if direction == SUPPRESS else "s"
    return f"Highest scores over {symbol}: {listed(told)}{unsteered(frame)}." if told else ""


def _winners(themes: Mapping[str, Frame], direction: str) -> str:
    tops = [row for rows in themes.values() if (row := best(rows.records)) is not None]
    wins = {m: sum(row.words("method") == m for row in tops) for m in {row.words("method") for row in tops}}
    told = [f"{look(m).name} in {wins[m]}" for m in sorted(wins, key=lambda m: (-wins[m], m))]
    return f"{verb(direction)}, the highest score of {len(tops)} themes is that of {listed(told)}." if told else ""


DRAWING: Final = Drawing(
    figure, sentence, ("theme", "direction", "method", "value", "score"), each=("theme", "direction")
)
