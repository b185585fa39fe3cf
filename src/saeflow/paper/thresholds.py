"""Thresholds fitted to a null beside the fixed ones (section 3.3, appendix B.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure

from saeflow.flow.scores import T_MODULE, T_RES
from saeflow.paper.agreement import parts_of, tone_of
from saeflow.paper.frame import Estimate, Frame
from saeflow.paper.kinds import Box, Drawing, line, panels, reach
from saeflow.paper.style import DASHES, MUTED, Canvas, Medium, Sign, layer_axis, shares_axis, tidy
from saeflow.paper.words import count, decimal, listed, percent

FIXED = {"res": T_RES, "mlp": T_MODULE, "att": T_MODULE}
"""The thresholds of appendix B.2."""


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """A threshold for each layer from a null beside the fixed ones, and what either keeps (section 3.3).

    The band runs from the median of the null's scores to their 99th percentile. The lower panels show
    what the two thresholds keep: shares, or numbers of features where the table counts them.
    """
    parts, layers = parts_of(frame), frame.layers()
    across = len(parts) if medium.wide else 1
    tall, low = 10.5, 5.5
    block = tall + low + 7.1
    band = "band: median to 99 % of the null"
    signs = [Sign("calibrated"), Sign("fixed at 0.5 and 0.15", shape=DASHES), Sign(band, shape="")]
    canvas, places = panels(
        medium,
        caption,
        len(parts),
        across=across,
        tall=block - 2.0,
        drop=3.4,
        below=0.0,
        gap=3.8,
        left=3.4,
        right=1.4,
        signs=signs,
    )
    _, top = reach(
        [Estimate(v) for r in frame.records for n in ("threshold", "null_q99") if (v := r.number(n)) is not None]
    )
    for part, box in zip(parts, places, strict=True):
        canvas.write(box.left, box.top - 0.7, part, size=0.9, weight="bold")
        first = box.left == places[0].left
        panel = Box(box.left, box.top, box.width, tall)
        _threshold_panel(
            canvas, panel, frame.where(part=part), part, layers, max(top, FIXED.get(part.lower(), 0) * 1.15)
        )
        _kept_panel(canvas, Box(box.left, box.top + tall + 2.9, box.width, low), frame, part, layers)
        if first:
            canvas.write(box.left, box.top + tall + low + 5.2, "layer", size=0.74, colour=MUTED)
    return canvas.figure


def _threshold_panel(canvas: Canvas, box: Box, frame: Frame, part: str, layers: Sequence[int], top: float) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em, tone = canvas.medium.text, tone_of(part)
    found = frame.lookup("layer")
    rows = [found.get((str(layer),)) for layer in layers]
    band = [
        (n, q50, q99)
        for n, row in zip(layers, rows, strict=True)
        if row and (q50 := row.number("null_q50")) is not None and (q99 := row.number("null_q99")) is not None
    ]
    if band:
        at, low, high = ([float(v) for v in column] for column in zip(*band, strict=True))
        if len(band) == 1:
            at, low, high = [at[0] - 0.2, at[0] + 0.2], low * 2, high * 2
        axes.fill_between(at, low, high, color=MUTED, alpha=0.22, lw=0, zorder=1)
    series = [Estimate(v) if row and (v := row.number("threshold")) is not None else None for row in rows]
    tips = [
        "" if e is None else f"{part}, layer {n}: {decimal(e.value, 3)}" for n, e in zip(layers, series, strict=True)
    ]
    line(axes, layers, series, part, tone=tone, em=em, tips=tips)
    if part.lower() in FIXED:
        axes.axhline(FIXED[part.lower()], color=tone, lw=0.1 * em, ls=(0, (4, 3)), zorder=2)
    axes.set_ylim(0, top * 1.05)
    ticks = [k / 10 for k in range(0, 11, 2 if top > 0.45 else 1) if k / 10 <= top * 1.05]
    axes.set_yticks(ticks, [decimal(tick, 1) for tick in ticks])
    layer_axis(axes, layers, box.width)
    axes.set_xlim(layers[0] - 0.4, layers[-1] + 0.4)
    tidy(axes, values="y", em=em)


def _kept_panel(canvas: Canvas, box: Box, frame: Frame, part: str, layers: Sequence[int]) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em = canvas.medium.text
    values = [v for row in frame.records for n in ("kept", "kept_fixed") if (v := row.number(n)) is not None]
    counted = any(value > 1 for value in values)
    found = frame.where(part=part).lookup("layer")
    rows = [found.get((str(layer),)) for layer in layers]
    for column, hollow, told in (("kept_fixed", True, "fixed"), ("kept", False, "calibrated")):
        series = [Estimate(v) if row and (v := row.number(column)) is not None else None for row in rows]
        tips = [
            "" if e is None else f"{part}, layer {n}, {told}: {count(e.value) if counted else percent(e.value, 1)} kept"
            for n, e in zip(layers, series, strict=True)
        ]
        line(axes, layers, series, part, tone=tone_of(part), em=em, hollow=hollow, tips=tips)
    if counted:
        axes.set_ylim(0, max(values) * 1.05)
    else:
        shares_axis(axes, "y", 0, 1)
    layer_axis(axes, layers, box.width)
    axes.set_xlim(layers[0] - 0.4, layers[-1] + 0.4)
    tidy(axes, values="y", em=em)
    canvas.write(box.left, box.top - 0.4, "kept", size=0.74, colour=MUTED)


def sentence(frame: Frame) -> str:
    """Between which values the calibrated threshold of each part lies."""
    told: list[str] = []
    for part in frame.distinct("part"):
        values = [v for row in frame.where(part=part).records if (v := row.number("threshold")) is not None]
        if values:
            told.append(f"{decimal(min(values))} to {decimal(max(values))} for {part}")
    return (
        f"Calibrated thresholds run from {listed(told)}; the fixed ones are 0.5 for res and 0.15 for modules."
        if told
        else ""
    )


DRAWING: Final = Drawing(figure, sentence, ("layer", "part", "threshold"))
