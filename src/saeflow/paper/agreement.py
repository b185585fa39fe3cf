"""Appendix C.4: how far two matching methods name the same predecessor."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, Interval, in_order, only
from saeflow.paper.kinds import Drawing, line
from saeflow.paper.style import Medium, Sign, colour, layer_axis, panels, title, value_axis
from saeflow.paper.words import capital, count, listed, percent

_SHARES: Final = ((("in_top_k",), True, "among the k best"), (("same", "share"), False, "the same"))
"""Columns, whether its marks are hollow, and what they are."""


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """For each pair of methods the share of features with the same predecessor, by layer and part (C.4).

    Filled marks are the same best match; hollow ones, where the table has them, the best match of the
    one among the k best of the other.
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
            rows = [known.get((str(layer),)) for layer in layers]
            for names, hollow, what in (
                (("in_top_k",), True, "among the k best"),
                (("same", "share"), False, "the same"),
            ):
                series: list[Interval | None] = []
                for row in rows:
                    value = row.number(*names) if row else None
                    if row is None or value is None:
                        series.append(None)
                        continue
                    low, high = (None, None) if hollow else (row.number("low"), row.number("high"))
                    series.append(Interval(value, low, high, row.number("n")))
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
    """The parts a table holds, however it writes them, in the order res, mlp, att."""
    order = [word for part in ("res", "mlp", "att") for word in (part, part.upper())]
    return in_order(frame.distinct("part"), order)


def tone_of(part: str) -> str:
    """The colour of the group of one part."""
    return colour(part.upper())


def sentence(frame: Frame) -> str:
    """For each pair of methods the share of the same best match, by part."""
    pairs = tuple(dict.fromkeys((r.words("method_a"), r.words("method_b")) for r in frame.records))
    told: list[str] = []
    for a, b in pairs:
        rows = frame.where(method_a=a, method_b=b)
        parts = [
            f"{percent(share)} at {part}"
            for part in rows.distinct("part")
            if (share := _agreed(rows.where(part=part))) is not None
        ]
        if parts:
            told.append(f"{a} and {b} name the same predecessor in {listed(parts)}")
    return f"{capital('; '.join(told))}." if told else ""


def _agreed(frame: Frame) -> float | None:
    """The share over all layers: as the table gives it, else the mean by the numbers of features."""
    every = only(frame, layer="all")
    if every is not None:
        return every.number("same", "share")
    known = [
        (share, row.number("n") or 1.0) for row in frame.records if (share := row.number("same", "share")) is not None
    ]
    return sum(share * n for share, n in known) / sum(n for _, n in known) if known else None


DRAWING: Final = Drawing(figure, sentence, ("method_a", "method_b", "part", "layer"))
