"""Figure 9 (and 16, 17b): steering scores over layers, for one theme and direction.

Scores are Behavioral x Coherence with both in [0, 1]; to suppress a theme it is (1 - Behavioral) x Coherence
(section 4.2). Bands and upright lines are 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.paper.frame import Estimate, Frame, Row
from saeflow.paper.kinds import Box, Drawing, line, mark, panels, reach
from saeflow.paper.steering import (
    BEST,
    MULTI,
    SUPPRESS,
    best,
    by_direction,
    by_theme,
    dashed,
    default_of,
    direction_of,
    dose,
    look,
    methods,
    place,
    plain,
    samples_told,
    scored,
    told,
    unsteered,
    unsteered_sign,
)
from saeflow.paper.style import ACCENT, INK, MUTED, Canvas, Medium, Sign, layer_axis, nothing, numbers_axis, tidy
from saeflow.paper.words import capital, decimal, decimal_interval, listed

_ROW: Final = 1.15  # of the strip of best layers, in ems
_GAP: Final = 0.9  # above it


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
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
    strip = _ROW * len(_doses_of(frame)) if suppress else 0.0
    tall = 13.0 + _GAP + strip if suppress else 9.5
    canvas, places = panels(
        medium, caption, len(shown), across=across, tall=tall, drop=5.2, gap=3.4, right=0.6, signs=signs
    )
    limits = reach([*(r.estimate("score") for r in frame.records), Estimate(default or 0.0)])
    for method, box in zip(shown, places, strict=True):
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
        strip.plot((layers[0] - 0.4, layers[-1] + 0.4), (i, i), color=ACCENT, lw=0.13 * em, alpha=strength, zorder=2)
        top = best(row for row in rows if row is not None)
        if top is not None and (e := top.estimate("score")) is not None:
            at, text = _layer(top) or 0.0, f"best layer: {told(top, e)}"
            mark(axes, at, e, "best", tone=BEST, em=em, text=text, upright=True, order=5)
            mark(strip, at, Estimate(i), "best", tone=BEST, em=em, text=text, upright=True, order=5)
    strip.set_yticks(range(len(doses)), [f"r {plain(r)}" if i == 0 else plain(r) for i, r in enumerate(doses)])
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
    line(axes, layers, found, shown.name, tone=shown.tone, em=em, tips=tips, shape=shown.shape, hollow=shown.hollow)
    top = best(row for row in rows if row is not None)
    if top is not None and (e := top.estimate("score")) is not None:
        at = _layer(top) or 0.0
        mark(
            axes,
            at,
            e,
            shown.name,
            tone=shown.tone,
            em=em,
            hollow=shown.hollow,
            shape=shown.shape,
            text=f"best layer: {told(top, e)}",
            upright=True,
            order=5,
        )
        axes.plot(
            [at],
            [e.value],
            marker="o",
            ms=1.0 * em,
            mfc="none",
            mec=INK,
            mew=0.1 * em,
            ls="none",
            zorder=7,
            clip_on=False,
        )


def _behind(axes: Axes, frame: Frame, others: Sequence[str], em: float) -> None:
    """The other methods as thin lines, to compare with."""
    for method in others:
        known = [
            (layer, score)
            for row in frame.where(method=method).records
            if (layer := _layer(row)) is not None and (score := row.number("score")) is not None
        ]
        known.sort()
        axes.plot([x for x, _ in known], [y for _, y in known], color=MUTED, lw=0.07 * em, alpha=0.55, zorder=1.5)


def sentence(frame: Frame) -> str:
    """The best layer of each method and how it moves with r."""
    told: list[str] = []
    for direction, rows in by_direction(frame):
        themes = by_theme(rows)
        tell = _layers_by_dose if direction == SUPPRESS else _best_layers
        if len(themes) == 1:
            told.append(tell(rows))
        elif direction == SUPPRESS:
            told.append(_moves(themes))
        else:
            told.append(_where_best(themes))
    return " ".join(word for word in told if word)


def _ends(frame: Frame) -> tuple[Row, Row] | None:
    """The best layers at the r nearest to 1 and at the one farthest from it, of the single-layer method."""
    rows = [row for row in frame.where(method="single").records if row.number("score") is not None]
    doses = sorted({r for row in rows if (r := row.number("value")) is not None}, key=lambda r: abs(r - 1))
    if len(doses) < 2:
        return None
    weak, strong = (best(row for row in rows if row.number("value") == r) for r in (doses[0], doses[-1]))
    return None if weak is None or strong is None else (weak, strong)


def _layers_by_dose(frame: Frame) -> str:
    ends = _ends(frame)
    if ends is None:
        return ""
    told = [
        f"at {dose(row)} the best single layer is {row.number('layer'):.0f}, with "
        f"{decimal_interval(found) if (found := row.estimate('score')) else ''}"
        for row in ends
    ]
    top = best(row for row in frame.records if row.words("method") in MULTI)
    found = top.estimate("score") if top else None
    joint = f"; cumulative reaches {decimal_interval(found)} with {place(top)} at {dose(top)}" if top and found else ""
    return f"{capital(told[0])}, {told[1]}{joint}{unsteered(frame)}."


def _moves(themes: Mapping[str, Frame]) -> str:
    pairs = [ends for rows in themes.values() if (ends := _ends(rows)) is not None]
    if not pairs:
        return ""
    moves = [(strong.number("layer") or 0) - (weak.number("layer") or 0) for weak, strong in pairs]
    earlier, later = sum(move < 0 for move in moves), sum(move > 0 for move in moves)
    weak, strong = ({dose(pair[i]) for pair in pairs} for i in (0, 1))
    of = f" from {next(iter(weak))} to {next(iter(strong))}" if len(weak) == len(strong) == 1 else ""
    return (
        f"Suppressing harder{of}, the best single layer moves earlier in {earlier} of {len(pairs)} themes and later "
        f"in {later}."
    )


def _best_layers(frame: Frame) -> str:
    tops = [row for m in methods(frame) if (row := best(frame.where(method=m).records)) is not None]
    told = [text for row in tops if (text := scored(row))]
    return f"Best of all layers: {listed(told)}{unsteered(frame)}." if told else ""


def _where_best(themes: Mapping[str, Frame]) -> str:
    found = {theme: row for theme, rows in themes.items() if (row := best(rows.where(method="single").records))}
    layers = {theme: int(row.number("layer") or 0) for theme, row in found.items()}
    if not layers:
        return ""
    low, high = min(layers, key=layers.__getitem__), max(layers, key=layers.__getitem__)
    if layers[low] == layers[high]:
        return f"Activating, the best single layer is {layers[low]} in each of {len(layers)} themes."
    return f"Activating, the best single layer runs from {layers[low]} ({low}) to {layers[high]} ({high})."


DRAWING: Final = Drawing(
    figure, sentence, ("theme", "direction", "method", "layer", "value", "score"), each=("theme", "direction")
)
