"""Figures 10 and 11: steering scores over the coefficient r or s, for one theme and direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.paper.frame import Estimate, Frame
from saeflow.paper.kinds import Box, Drawing, boxes, line, point, reach
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
    samples_told,
    score_of,
    scored,
    told,
    unsteered,
    unsteered_sign,
    verb,
)
from saeflow.paper.style import (
    MUTED,
    RULE,
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
from saeflow.paper.words import decimal, decimal_interval, listed

MARK: Final = 5.0
"""The highest mark that a judge gives for behavior or coherence (B.1, B.2)."""


@dataclass(frozen=True, slots=True)
class _Measure:
    """A column over the coefficient, with the names of its interval and its highest value."""

    head: str
    column: str
    low: str
    high: str
    top: float | None = None


@dataclass(frozen=True, slots=True)
class _Axis:
    """The coefficients with their places: to scale where steps are alike, else at equal steps."""

    values: tuple[float, ...]
    at: tuple[float, ...]
    note: str

    @staticmethod
    def of(values: Sequence[float], direction: str) -> _Axis:
        steps = [b - a for a, b in pairwise(values)]
        even = not steps or max(steps) <= 3 * min(steps)
        note = (
            "r: factor of each activation, 1 changes nothing"
            if direction == SUPPRESS
            else "s: strength of each feature, 0 changes nothing"
        )
        at = tuple(values) if even else tuple(float(i) for i in range(len(values)))
        return _Axis(tuple(values), at, note if even else f"{note}; not to scale")

    def ticks(self, room: float) -> list[tuple[float, str]]:
        """The places whose names do not touch over `room` ems, both ends before others."""
        wide = max(self.at[-1] - self.at[0], 1e-9)
        kept: list[tuple[float, float]] = []
        for i in sorted(range(len(self.at)), key=lambda i: (i not in {0, len(self.at) - 1}, i)):
            need = (advance(plain(self.values[i]), 0.82) + 0.9) / room * wide
            if all(abs(self.at[i] - at) >= need for at, _ in kept):
                kept.append((self.at[i], self.values[i]))
        return [(at, plain(value)) for at, value in sorted(kept)]


_SCORE = _Measure("score", "score", "low", "high")
_BEHAVIOR = _Measure("behavior, 0 to 5", "behavior", "behavior_low", "behavior_high", MARK)
_COHERENCE = _Measure("coherence, 0 to 5", "coherence", "coherence_low", "coherence_high", MARK)


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Score, behavior and coherence over r (fig. 10) or s (fig. 11), each at the best layer, and what is traded.

    The last panel sets behavior against coherence: a method's way through it is its choice of coefficients,
    and along a thin curve the score is the same.
    """
    shown = [m for m in methods(frame) if m not in {"none", "prompt"}]
    values = sorted({v for row in frame.records if (v := row.number("value")) is not None})
    if not shown or not values:
        return nothing(medium, caption, "no method was swept over a coefficient")
    default = default_of(frame)
    signs = method_signs(shown) + unsteered_sign(default) + [Sign(samples_told(frame), shape="")]
    keyed, tall, low = key_height(medium, signs), 13.0, 11.0
    across = 3 if medium.wide else 1
    block = low + 5.0
    canvas = Canvas(medium, keyed + 1.8 + tall + 5.2 + (3 // across) * block - 2.0 + foot(medium, caption))
    canvas.key(signs)
    width = canvas.width - 4.0
    first = Box(3.0, keyed + 1.8, width, tall)
    axis = _Axis.of(values, direction_of(frame))
    _course_panel(canvas, first, frame, shown, _SCORE, axis, default)
    area = Box(3.0, first.top + tall + 5.2, width, low)
    b, c, trade = boxes(3, across, area, gap=3.6, drop=5.0)
    for measure, box in ((_BEHAVIOR, b), (_COHERENCE, c)):
        _course_panel(canvas, box, frame, shown, measure, axis, None)
    _trade_panel(canvas, trade, frame, shown)
    canvas.caption(caption)
    return canvas.figure


def _course_panel(
    canvas: Canvas, box: Box, frame: Frame, shown: Sequence[str], measure: _Measure, axis: _Axis, default: float | None
) -> None:
    """One measure of every method over the coefficient, with bands."""
    axes, em = canvas.axes(box.left, box.top, box.width, box.height), canvas.medium.text
    dashed(axes, default, em)
    everything: list[Estimate | None] = [] if default is None else [Estimate(default)]
    for method in shown:
        rows = {v: r for r in frame.where(method=method).records if (v := r.number("value")) is not None}
        at = [(x, rows[v]) for x, v in zip(axis.at, axis.values, strict=True) if v in rows]
        found = [row.estimate(measure.column, measure.low, measure.high) for _, row in at]
        what = measure.head.partition(",")[0]
        tips = [told(row, e, what) if e else "" for (_, row), e in zip(at, found, strict=True)]
        kind = look(method)
        line(
            axes,
            [x for x, _ in at],
            found,
            kind.name,
            tone=kind.tone,
            em=em,
            hollow=kind.hollow,
            tips=tips,
            shape=kind.shape,
        )
        everything += found
    low, high = reach(everything) if measure.top is None else (0.0, measure.top)
    numbers_axis(axes, "y", low, high)
    ticks = axis.ticks(box.width)
    axes.set_xticks([at for at, _ in ticks], [name for _, name in ticks])
    air = 0.03 * max(axis.at[-1] - axis.at[0], 1.0)
    axes.set_xlim(axis.at[0] - air, axis.at[-1] + air)
    tidy(axes, values="y", em=em)
    canvas.write(box.left, box.top - 0.8, measure.head, size=0.9, weight="bold")
    note = axis.note if advance(axis.note, 0.74) < box.width else axis.note[:1]
    canvas.write(box.left, box.top + box.height + 2.3, note, size=0.74, colour=MUTED)


def _trade_panel(canvas: Canvas, box: Box, frame: Frame, shown: Sequence[str]) -> None:
    """Behavior against coherence: a way a method, a large mark where its score is best."""
    axes, em = canvas.axes(box.left, box.top, box.width, box.height), canvas.medium.text
    _same_scores(axes, em, suppress=direction_of(frame) == SUPPRESS)
    for method in shown:
        kind = look(method)
        rows = sorted(
            (
                row
                for row in frame.where(method=method).records
                if None not in {row.number("value"), row.number("behavior"), row.number("coherence")}
            ),
            key=lambda row: row.number("value") or 0.0,
        )
        xs = [row.number("behavior") or 0.0 for row in rows]
        ys = [row.number("coherence") or 0.0 for row in rows]
        axes.plot(xs, ys, color=kind.tone, lw=0.1 * em, alpha=0.75, zorder=3)
        top = best(rows)
        for row, x, y in zip(rows, xs, ys, strict=True):
            size, order = (0.52, 5) if row is top else (0.24, 4)
            marks = f"behavior {decimal(x)}, coherence {decimal(y)}"
            score = row.estimate("score")
            more = f", score {decimal_interval(score)}" if score else ""
            text = f"{'best: ' if row is top else ''}{kind.name}, {dose(row)}: {marks}{more}"
            point(axes, x, y, text, tone=kind.tone, size=size * em, shape=kind.shape, order=order)
    numbers_axis(axes, "x", 0, MARK)
    numbers_axis(axes, "y", 0, MARK)
    canvas.write(box.left, box.top - 0.8, "coherence over behavior", size=0.9, weight="bold")
    words = "large: best score; thin: the same score"
    canvas.write(box.left, box.top + box.height + 2.3, words, size=0.74, colour=MUTED)


def _same_scores(axes: Axes, em: float, *, suppress: bool) -> None:
    """Curves of equal score through the plane of behavior and coherence, with their scores."""
    for score in (0.1, 0.2, 0.4, 0.6, 0.8):
        kept = [MARK * (score + (1 - score) * i / 40) for i in range(41)]  # the factor that is not coherence
        xs = [MARK - x for x in kept] if suppress else kept
        ys = [MARK * MARK * score / x for x in kept]
        axes.plot(xs, ys, color=RULE, lw=0.09 * em, zorder=1)
        axes.text(
            xs[-1],
            ys[-1] + 0.06,
            decimal(score, 1),
            fontsize=0.66 * em,
            color=MUTED,
            ha="left" if suppress else "right",
            va="bottom",
            zorder=1,
        )


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
