"""Steering over layers and coefficients (figures 9, 10, 11, 16, 17b): one figure for a theme and direction.

Scores are Behavioral x Coherence with both in [0, 1]; to suppress a theme it is (1 - Behavioral) x Coherence
(section 4.2). Bands and upright lines are 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.report.figures.frame import Estimate, Frame, Row, decimal, decimal_interval
from saeflow.report.figures.parts import Box, boxes, line, reach, tip
from saeflow.report.figures.steering_marks import (
    BEST,
    SUPPRESS,
    Look,
    Sign,
    best,
    dashed,
    default_of,
    direction_of,
    dose,
    draw_signs,
    look,
    method_signs,
    methods,
    place,
    plain,
    samples_told,
    signs_height,
    told,
    unsteered_sign,
    upright,
)  # fmt: skip
from saeflow.report.figures.style import (
    ACCENT,
    INK,
    MUTED,
    RULE,
    Canvas,
    Medium,
    advance,
    foot,
    layer_axis,
    nothing,
    numbers_axis,
    tidy,
)  # fmt: skip

MARK: Final = 5.0
"""The highest mark that a judge gives for behavior or coherence (B.1, B.2)."""

_ROW: Final = 1.15  # of the strip of best layers, in ems
_GAP: Final = 0.9  # above it


def by_layer(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Scores over the layer that is steered, a panel a method (fig. 9 to suppress, 16 and 17b to activate).

    To suppress: a line for each r, stronger the farther r is from 1; the strip below names them and shows how
    the best layer moves. To activate: at each layer the best of all s, with the best layer ringed; the other
    methods are thin behind it.
    """
    shown = [m for m in methods(frame) if any(_layer(r) is not None for r in frame.where(method=m).records)]
    if not shown:
        return nothing(medium, caption, "no method has a layer of its own")
    suppress = direction_of(frame) == SUPPRESS
    default = default_of(frame)
    signs = _best_signs(suppress=suppress) + unsteered_sign(default) + [Sign(samples_told(frame), shape="")]
    across = min(len(shown), 2) if medium.wide else 1
    rows = -(-len(shown) // across)
    strip = _ROW * len(_doses_of(frame)) if suppress else 0.0
    tall, keyed = (13.0 + _GAP + strip if suppress else 9.5), signs_height(medium, signs)
    canvas = Canvas(medium, keyed + 1.8 + rows * (tall + 5.2) - 2.2 + foot(medium, caption))
    draw_signs(canvas, signs)
    area = Box(3.2, keyed + 1.8, canvas.width - 3.8, tall)
    limits = reach([*(r.estimate("score") for r in frame.records), Estimate(default or 0.0)])
    for method, box in zip(shown, boxes(len(shown), across, area, gap=3.4, drop=5.2), strict=True):
        axes = canvas.axes(box.left, box.top, box.width, box.height - strip - (_GAP if suppress else 0.0))
        dashed(axes, default, medium.text)
        lowest = axes
        if suppress:
            lowest = canvas.axes(box.left, box.top + box.height - strip, box.width, strip)
            _doses(axes, lowest, frame, method, medium.text)
        else:
            _behind(axes, frame, [other for other in shown if other != method], medium.text)
            _one_method(axes, frame, method, medium.text)
        numbers_axis(axes, "y", *limits)
        tidy(axes, values="y", em=medium.text)
        _layers_below(axes, lowest, frame.layers(), box.width)
        _method_title(canvas, box, frame, method)
    canvas.caption(caption)
    return canvas.figure


def _layer(row: Row) -> float | None:
    layer = row.number("layer")
    return layer if layer is not None and layer >= 0 else None


def _best_signs(*, suppress: bool) -> list[Sign]:
    if suppress:
        return [Sign("best layer of each r", BEST), Sign("lines: r, stronger farther from 1", shape="")]
    return [Sign("best layer", INK, hollow=True), Sign("at each layer the best of all s", shape="")]


def _by_layer(rows: Sequence[Row], layers: Sequence[int]) -> list[Row | None]:
    found = {int(layer): row for row in rows if (layer := _layer(row)) is not None}
    return [found.get(layer) for layer in layers]


def _doses_of(frame: Frame) -> list[float]:
    """Every r, the nearest to 1 first."""
    doses = {r for row in frame.records if (r := row.number("value")) is not None and _layer(row) is not None}
    return sorted(doses, key=lambda r: (abs(r - 1), r))


def _doses(axes: Axes, strip: Axes, frame: Frame, method: str, em: float) -> None:
    """A line for each r over the layers of one method, and a row of the strip with its name and best layer."""
    layers, doses = frame.layers(), _doses_of(frame)
    own = frame.where(method=method).records
    for i, r in enumerate(doses):
        strength = 1.0 if len(doses) == 1 else 0.25 + 0.75 * i / (len(doses) - 1)
        rows = _by_layer([row for row in own if row.number("value") == r], layers)
        found = [row.estimate("score") if row else None for row in rows]
        tips = [told(row, e) if row and e else "" for row, e in zip(rows, found, strict=True)]
        line(axes, layers, found, f"r = {plain(r)}", tone=ACCENT, em=em, tips=tips, strength=strength)
        strip.plot(
            (layers[0] - 0.4, layers[-1] + 0.4), (i, i), color=ACCENT, lw=0.13 * em, alpha=strength, zorder=2
        )
        top = best(row for row in rows if row is not None)
        if top is not None and (e := top.estimate("score")) is not None:
            at, text = _layer(top) or 0.0, f"best layer: {told(top, e)}"
            upright(axes, at, e, Look("best", BEST), em, text)
            upright(strip, at, Estimate(i), Look("best", BEST), em, text)
    strip.set_yticks(
        range(len(doses)), [f"r {plain(r)}" if i == 0 else plain(r) for i, r in enumerate(doses)]
    )
    strip.set_ylim(len(doses) - 0.4, -0.6)


def _layers_below(axes: Axes, lowest: Axes, layers: Sequence[int], room: float) -> None:
    """The same layers under both panels, named under the lower one."""
    for panel in {axes, lowest}:
        panel.set_xlim(layers[0] - 0.4, layers[-1] + 0.4)
        panel.set_xticks([])
    layer_axis(lowest, layers, room)


def _method_title(canvas: Canvas, box: Box, frame: Frame, method: str) -> None:
    """The name of the method, and its best setting at the right."""
    top = best(frame.where(method=method).records)
    more = "" if top is None else f"best {decimal(top.number('score'))}: {place(top)}, {dose(top)}"
    canvas.title(box.left, box.top - 0.8, box.width, look(method).name, more)
    axis = "layer" if method in {"single", "random"} else "all layers up to"
    canvas.write(box.left, box.top + box.height + 2.3, f"↑ score · {axis}", size=0.74, colour=MUTED)


def _one_method(axes: Axes, frame: Frame, method: str, em: float) -> None:
    """The best of all s at each layer, with the best layer ringed."""
    layers, shown = frame.layers(), look(method)
    rows = _by_layer(frame.where(method=method).records, layers)
    found = [row.estimate("score") if row else None for row in rows]
    tips = [told(row, e) if row and e else "" for row, e in zip(rows, found, strict=True)]
    line(
        axes, layers, found, shown.name, tone=shown.tone, em=em, tips=tips, shape=shown.shape, hollow=shown.hollow
    )  # fmt: skip
    top = best(row for row in rows if row is not None)
    if top is not None and (e := top.estimate("score")) is not None:
        at = _layer(top) or 0.0
        upright(axes, at, e, shown, em, f"best layer: {told(top, e)}")
        axes.plot(
            [at], [e.value], marker="o", ms=1.0 * em, mfc="none", mec=INK, mew=0.1 * em, ls="none", zorder=7,
            clip_on=False,
        )  # fmt: skip


def _behind(axes: Axes, frame: Frame, others: Sequence[str], em: float) -> None:
    """The other methods as thin lines, to compare with."""
    for method in others:
        known = [
            (layer, score)
            for row in frame.where(method=method).records
            if (layer := _layer(row)) is not None and (score := row.number("score")) is not None
        ]
        known.sort()
        axes.plot(
            [x for x, _ in known], [y for _, y in known], color=MUTED, lw=0.07 * em, alpha=0.55, zorder=1.5
        )


# over the coefficient


@dataclass(frozen=True, slots=True)
class _Measure:
    """A column over the coefficient, with the names of its interval and its highest value."""

    head: str
    column: str
    low: str
    high: str
    top: float | None = None


_SCORE = _Measure("score", "score", "low", "high")
_BEHAVIOR = _Measure("behavior, 0 to 5", "behavior", "behavior_low", "behavior_high", MARK)
_COHERENCE = _Measure("coherence, 0 to 5", "coherence", "coherence_low", "coherence_high", MARK)


def by_value(frame: Frame, medium: Medium, caption: str) -> Figure:
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
    keyed, tall, low = signs_height(medium, signs), 13.0, 11.0
    across = 3 if medium.wide else 1
    block = low + 5.0
    canvas = Canvas(medium, keyed + 1.8 + tall + 5.2 + (3 // across) * block - 2.0 + foot(medium, caption))
    draw_signs(canvas, signs)
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


def _course_panel(
    canvas: Canvas,
    box: Box,
    frame: Frame,
    shown: Sequence[str],
    measure: _Measure,
    axis: _Axis,
    default: float | None,
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
            axes, [x for x, _ in at], found, kind.name, tone=kind.tone, em=em, hollow=kind.hollow,
            tips=tips, shape=kind.shape,
        )  # fmt: skip
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
            size = 0.52 if row is top else 0.24
            (point,) = axes.plot(
                [x], [y], marker=kind.shape, ms=size * em, color=kind.tone, mec=kind.tone, ls="none",
                mew=0.06 * em, zorder=5 if row is top else 4, clip_on=False,
            )  # fmt: skip
            marks = f"behavior {decimal(x)}, coherence {decimal(y)}"
            score = row.estimate("score")
            more = f", score {decimal_interval(score)}" if score else ""
            tip(point, f"{'best: ' if row is top else ''}{kind.name}, {dose(row)}: {marks}{more}")
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
            xs[-1], ys[-1] + 0.06, decimal(score, 1), fontsize=0.66 * em, color=MUTED,
            ha="left" if suppress else "right", va="bottom", zorder=1,
        )  # fmt: skip
