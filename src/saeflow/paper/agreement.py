"""Appendix C.4: how far two matching methods name the same predecessor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.paper.frame import Estimate, Frame, in_order, only
from saeflow.paper.kinds import Drawing, line, panels
from saeflow.paper.style import MUTED, Medium, Sign, colour, layer_axis, shares_axis, tidy
from saeflow.paper.words import capital, count, listed, percent

PARTS = ("res", "mlp", "att")


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
    canvas, places = panels(
        medium, caption, len(pairs), across=across, tall=10.0, below=3.2, gap=3.6, right=1.4, signs=signs
    )
    for pair, box in zip(pairs, places, strict=True):
        axes = canvas.axes(box.left, box.top, box.width, box.height)
        rows_of = frame.where(method_a=pair[0], method_b=pair[1])
        for part in parts:
            _agreement_lines(axes, rows_of, part, layers, canvas.medium.text)
        shares_axis(axes, "y", 0, 1)
        layer_axis(axes, layers, box.width)
        axes.set_xlim(layers[0] - 0.4, layers[-1] + 0.4)
        tidy(axes, values="y", em=medium.text)
        canvas.title(box.left, box.top - 0.7, box.width, f"{pair[0]} and {pair[1]}")
        canvas.write(box.left, box.top + box.height + 2.3, "layer", size=0.74, colour=MUTED)
    return canvas.figure


def parts_of(frame: Frame) -> tuple[str, ...]:
    """The parts a table holds, however it writes them, in the order res, mlp, att."""
    order = [word for part in PARTS for word in (part, part.upper())]
    return in_order(frame.distinct("part"), order)


def tone_of(part: str) -> str:
    """The colour of the group of one part."""
    return colour(part.upper())


def _agreement_lines(axes: Axes, frame: Frame, part: str, layers: Sequence[int], em: float) -> None:
    found = frame.where(part=part).lookup("layer")
    rows = [found.get((str(layer),)) for layer in layers]
    for names, hollow, told in ((("in_top_k",), True, "among the k best"), (("same", "share"), False, "the same")):
        series = [
            Estimate(value, row.number("low"), row.number("high"), row.number("n"))
            if row is not None and (value := row.number(*names)) is not None
            else None
            for row in rows
        ]
        if hollow:  # the table has intervals of one share only
            series = [None if e is None else Estimate(e.value, n=e.n) for e in series]
        tips = [
            "" if e is None else f"{part}, layer {layer}: {percent(e.value, 1)} {told}, n = {count(e.n)}"
            for layer, e in zip(layers, series, strict=True)
        ]
        line(axes, layers, series, part, tone=tone_of(part), em=em, hollow=hollow, tips=tips)


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
