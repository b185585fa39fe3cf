"""Appendix C.4 and section 3.3: how far methods agree, and thresholds from a null beside the fixed ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.flow.scores import T_MODULE, T_RES
from saeflow.paper.frame import Frame, FrameRow, Interval, in_order, only
from saeflow.paper.kinds import Drawing, line
from saeflow.paper.style import DASHES, MUTED, Medium, Sign, colour, ems, layer_axis, panels, title, value_axis
from saeflow.paper.words import capital, count, decimal, listed, percent

_SHARES: Final = ((("in_top_k",), True, "among the k best"), (("same", "share"), False, "the same"))
"""Columns, whether their marks are hollow, and what they are called."""


def agreement_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw, for each pair of methods, the share of features with the same predecessor, by layer and part (C.4).

    Filled marks count equal best matches; hollow ones, where the table has them, best matches of one method that are
    among the k best of the other.
    """
    pairs = tuple(dict.fromkeys((r.words("method_a"), r.words("method_b")) for r in frame.records))
    parts, layers = parts_of(frame), frame.layers()
    across = medium.across(len(pairs), 17, beside=3)
    signs = [Sign(part, tone_of(part)) for part in parts]
    if "in_top_k" in frame.columns:
        signs.append(Sign("hollow: among the k best", shape=""))
    drawn, places = panels(medium, caption, len(pairs), 10.0, across=across, signs=signs)
    for (a, b), axes in zip(pairs, places, strict=True):
        rows_of = frame.where(method_a=a, method_b=b)
        for part in parts:
            known = rows_of.where(part=part).lookup("layer")
            rows = [known[str(layer)] for layer in layers]
            for names, hollow, what in _SHARES:
                series: list[Interval | None] = []
                for row in rows:
                    value = row.number(*names)
                    low, high = (None, None) if hollow else (row.number("low"), row.number("high"))
                    series.append(None if value is None else Interval(value, low, high, row.number("n")))
                tips = [
                    f"{part}, layer {layer}: {percent(e.value, 1)} {what}, n = {count(e.n)}" if e else ""
                    for layer, e in zip(layers, series, strict=True)
                ]
                line(axes, layers, series, tips, tone=tone_of(part), hollow=hollow)
        value_axis(axes, "y", 0, 1, unit="%")
        layer_axis(axes, layers)
        title(axes, f"{a} and {b}", room=medium.ems / across - 3.0)
    return drawn


def parts_of(frame: Frame) -> tuple[str, ...]:
    """The parts in a table, in lower or upper case, in the order res, mlp, att."""
    order = [word for part in ("res", "mlp", "att") for word in (part, part.upper())]
    return in_order(frame.distinct("part"), order)


def tone_of(part: str) -> str:
    """The colour of the group of one part."""
    return colour(part.upper())


def agreement_sentence(frame: Frame) -> str:
    """For each pair of methods, the share of features with the same best match, by part."""
    pairs = tuple(dict.fromkeys((r.words("method_a"), r.words("method_b")) for r in frame.records))
    phrases: list[str] = []
    for a, b in pairs:
        rows = frame.where(method_a=a, method_b=b)
        parts = [
            f"{percent(share)} at {part}"
            for part in rows.distinct("part")
            if (share := _agreed(rows.where(part=part))) is not None
        ]
        if parts:
            phrases.append(f"{a} and {b} name the same predecessor in {listed(parts)}")
    return f"{capital('; '.join(phrases))}." if phrases else ""


def _agreed(frame: Frame) -> float | None:
    """The share over all layers: from the table, or else the mean weighted by the numbers of features."""
    every = only(frame, layer="all")
    if every:
        return every.number("same", "share")
    known = [
        (share, row.number("n") or 1.0) for row in frame.records if (share := row.number("same", "share")) is not None
    ]
    return sum(share * n for share, n in known) / sum(n for _, n in known) if known else None


FIXED = {"res": T_RES, "mlp": T_MODULE, "att": T_MODULE}
"""The thresholds of appendix B.2."""


def thresholds_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw each layer's threshold from a null beside the fixed one, and what both of them keep (section 3.3).

    The band runs from the median of the null's scores to their 99th percentile. The lower panels show what the two
    thresholds keep: shares, or numbers of features if the table counts them.
    """
    parts, layers = parts_of(frame), frame.layers()
    across = len(parts) if medium.wide else 1
    signs = [
        Sign("calibrated"),
        Sign("fixed at 0.5 and 0.15", shape=DASHES),
        Sign("band: median to 99 % of the null", shape=""),
    ]
    # each part has two panels, one above the other
    mosaic = [[f"{i}{row}" for i in range(at, at + across)] for at in range(0, len(parts), across) for row in "ab"]
    drawn, places = panels(medium, caption, mosaic, [10.5, 5.5] * (len(mosaic) // 2), signs=signs, over=3.8)
    known, values = frame.numbers("threshold", "null_q99"), frame.numbers("kept", "kept_fixed")
    counted = any(value > 1 for value in values)
    for i, part in enumerate(parts):
        upper, lower = places[2 * i : 2 * i + 2]
        found, tone = frame.where(part=part).lookup("layer"), tone_of(part)
        rows = [found[str(layer)] for layer in layers]
        # 1. the calibrated threshold, the band of the null and the fixed threshold
        band = [
            (n, q50, q99)
            for n, row in zip(layers, rows, strict=True)
            if (q50 := row.number("null_q50")) is not None and (q99 := row.number("null_q99")) is not None
        ]
        if band:
            at, low, high = ([float(v) for v in column] for column in zip(*band, strict=True))
            if len(band) == 1:
                at, low, high = [at[0] - 0.2, at[0] + 0.2], low * 2, high * 2
            upper.fill_between(at, low, high, color=MUTED, alpha=0.22, lw=0, zorder=1)
        _over_layers(
            upper, layers, rows, "threshold", lambda e, n, part=part: f"{part}, layer {n}: {decimal(e, 3)}", tone
        )
        fixed = FIXED.get(part.lower())
        if fixed is not None:
            upper.axhline(fixed, color=tone, lw=ems(0.1), ls=DASHES, zorder=2)
        value_axis(upper, "y", 0, 1.05 * max(*known, 1.15 * (fixed or 0.0), 0.1))
        layer_axis(upper, layers, "")
        upper.set_title(part)
        # 2. what each threshold keeps
        for column, hollow, which in (("kept_fixed", True, "fixed"), ("kept", False, "calibrated")):

            def kept(e: float, n: int, part: str = part, which: str = which) -> str:
                return f"{part}, layer {n}, {which}: {count(e) if counted else percent(e, 1)} kept"

            _over_layers(lower, layers, rows, column, kept, tone, hollow=hollow)
        value_axis(lower, "y", 0, 1.05 * max(values) if counted else 1, unit="" if counted else "%", most=4)
        layer_axis(lower, layers, "layer")
        title(lower, "", "kept")
    return drawn


def _over_layers(
    axes: Axes,
    layers: Sequence[int],
    rows: Sequence[FrameRow],
    column: str,
    tip: Callable[[float, int], str],
    tone: str,
    *,
    hollow: bool = False,
) -> None:
    series = [Interval(v) if (v := row.number(column)) is not None else None for row in rows]
    tips = [tip(e.value, n) if e else "" for n, e in zip(layers, series, strict=True)]
    line(axes, layers, series, tips, tone=tone, hollow=hollow)


def thresholds_sentence(frame: Frame) -> str:
    """The range of the calibrated threshold of each part."""
    phrases: list[str] = []
    for part in frame.distinct("part"):
        values = frame.where(part=part).numbers("threshold")
        if values:
            phrases.append(f"{decimal(min(values))} to {decimal(max(values))} for {part}")
    return (
        f"Calibrated thresholds run from {listed(phrases)}; the fixed ones are 0.5 for res and 0.15 for modules."
        if phrases
        else ""
    )


DRAWINGS: Final = {
    "agreement_by_layer": Drawing(agreement_figure, agreement_sentence, ("method_a", "method_b", "part", "layer")),
    "agreement": Drawing(agreement_figure, agreement_sentence, ("method_a", "method_b", "part", "layer")),
    "calibrated_thresholds": Drawing(thresholds_figure, thresholds_sentence, ("layer", "part", "threshold")),
}
