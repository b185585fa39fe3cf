"""Figure 24: explained variance of top-k products, as they are and after one fitted factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.paper.frame import Estimate, Frame, Row, only
from saeflow.paper.kinds import Box, Drawing, panels, point, tip
from saeflow.paper.style import MUTED, Canvas, Medium, Sign, advance, nice_ticks, spread, tidy
from saeflow.paper.transition import (
    LOWEST,
    TONES,
    applied_signs,
    baselines_beside,
    best_row,
    map_told,
    one_pair,
    shown_as,
)
from saeflow.paper.words import decimal, listed

_SHAPES: Final = {"values": "o", "binary": "s"}


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Explained variance against k, for both products, as it is and after one fitted factor (fig. 24)."""
    products = frame.where(kind="matching", matched="raw").distinct("weights")
    products = tuple(name for name in products if name.startswith("W_dec"))
    shown = [(measure, product) for measure in ("ev", "scaled") for product in products]
    across = max(1, len(products)) if medium.wide else 1
    tall, right = (14.0, 8.6) if medium.wide else (13.0, 8.2)
    signs = [
        *applied_signs(),
        Sign("values"),
        Sign("binary: I(x > 0)", shape="s", hollow=True),
        Sign("below the axis", MUTED, "v", hollow=True),
    ]
    canvas, places = panels(
        medium,
        caption,
        len(shown),
        across=across,
        tall=tall,
        drop=4.4,
        below=2.8,
        gap=right + 3.0,
        left=3.0,
        right=right + 0.2,
        signs=signs,
    )
    for (measure, product), box in zip(shown, places, strict=True):
        _k_panel(canvas, box, frame, product, measure)
    return canvas.figure


def _k_panel(canvas: Canvas, box: Box, frame: Frame, product: str, measure: str) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em = canvas.medium.text
    rows = frame.where(kind="matching", weights=product, matched="raw")
    ks = sorted(rows.distinct("k"), key=lambda k: int(k) if k.isdecimal() else 1 << 60)
    columns = ("ev", "low", "high") if measure == "ev" else ("scaled", "scaled_low", "scaled_high")
    low = LOWEST if measure == "ev" else 0.0
    series = [(entries, how) for entries in _SHAPES for how in TONES if how in rows.distinct("applied")]
    for place, (entries, how) in enumerate(series):
        found = rows.where(entries=entries, applied=how).lookup("k")
        shift = 0.1 * (place - (len(series) - 1) / 2)
        points = [
            (i + shift, row.estimate(*columns), map_told(row, Estimate(row.number(columns[0]) or 0.0), measure))
            for i, k in enumerate(ks)
            if (row := found.get((k,))) is not None and row.number(columns[0]) is not None
        ]
        _series(axes, points, entries, TONES[how], low, em)
    axes.set_ylim(low, 1.0)
    ticks, digits = nice_ticks(low, 1.0)
    axes.set_yticks(ticks, [decimal(tick, digits) for tick in ticks])
    axes.set_xlim(-0.5, len(ks) - 0.5)
    axes.set_xticks(range(len(ks)), ks)
    if low < 0:
        axes.axhline(0, color=MUTED, lw=0.07 * em, zorder=1)
    tidy(axes, values="y", em=em)
    _references(canvas, axes, box, frame, low)
    head = "as it is" if measure == "ev" else "after one fitted factor"
    canvas.write(box.left, box.top - 0.6, product, size=0.9, weight="bold")
    canvas.write(box.left + advance(product, 0.98) + 0.6, box.top - 0.6, head, size=0.8, colour=MUTED)
    canvas.write(box.left, box.top + box.height + 2.3, "k", size=0.74, colour=MUTED)


def _series(
    axes: Axes, points: Sequence[tuple[float, Estimate | None, str]], entries: str, tone: str, low: float, em: float
) -> None:
    """A line that runs out of the panel where it must, with marks where it is within."""
    known = [(x, e, told) for x, e, told in points if e is not None]
    hollow = entries == "binary"
    style = (0, (1.2, 1.6)) if hollow else "solid"
    axes.plot(
        [x for x, _, _ in known],
        [max(e.value, 4 * low - 3) for _, e, _ in known],
        color=tone,
        lw=0.1 * em,
        ls=style,
        zorder=2,
        alpha=0.75,
    )
    for x, e, told in known:
        if e.value < low:
            point(axes, x, low, told, tone=tone, size=0.4 * em, shape="v", hollow=True)
            continue
        ends = (e.value - e.reach[0], e.value + e.reach[1])
        axes.plot((x, x), (max(ends[0], low), ends[1]), color=tone, lw=0.09 * em, zorder=3)
        point(axes, x, e.value, told, tone=tone, size=0.45 * em, shape=_SHAPES[entries], hollow=hollow)


def _references(canvas: Canvas, axes: Axes, box: Box, frame: Frame, low: float) -> None:
    """Lines across for what is no top-k, named at their right ends."""
    found = {row.words("weights"): row for row in frame.where(kind="baseline").records}
    asked = {"least squares": "least-squares T", "identity": "identity"}
    values = {name: v for key, name in asked.items() if key in found and (v := found[key].number("ev"))}
    for row in frame.where(kind="matching", weights="permutation", applied="raw").records:
        if (value := row.number("ev")) is not None:
            values["permutation"] = value
    shown = {name: value for name, value in values.items() if low <= value <= 1}
    heights = spread([box.height * (v - low) / (1 - low) for v in shown.values()], 1.15, 0.2, box.height)
    for (name, value), height in zip(shown.items(), heights, strict=True):
        line = axes.axhline(value, color=MUTED, lw=0.08 * canvas.medium.text, ls=(0, (4, 3)), zorder=1)
        tip(line, f"{name}: {decimal(value, 3)}")
        y, true = box.top + box.height - height, box.top + box.height * (1 - (value - low) / (1 - low))
        x = box.left + box.width
        lead = ((x + 0.1) / canvas.width, (x + 0.6) / canvas.width)
        canvas.link(lead, (1 - true / canvas.height, 1 - y / canvas.height), MUTED)
        canvas.write(x + 0.75, y + 0.26, name, size=0.74, colour=MUTED)


def sentence(frame: Frame) -> str:
    """The best k of each product, and what more entries do to the decoders' product."""
    here = one_pair(frame)
    told: list[str] = []
    for product in (name for name in here.distinct("weights") if name.startswith("W_dec")):
        row = best_row(here.where(weights=product))
        if row is not None:
            told.append(f"{product} is best with {_setting(row)}: {shown_as(row)}")
    if not told:
        return ""
    said = f"{listed(told)}{baselines_beside(here, 'weights')}."
    two = only(here, weights="W_dec W_dec", k="2", entries="values", matched="raw", applied="folded")
    other = only(here, weights="permutation", applied="raw")
    if two is None or other is None or two.number("ev") is None or other.number("ev") is None:
        return said
    return f"{said} Folded top-2 W_dec W_dec explains {shown_as(two)}, the permutation {shown_as(other)}."


def _setting(row: Row) -> str:
    k = "all" if row.words("k") == "all" else f"top-{row.words('k')}"
    return f"{k}, {row.words('entries')}, applied {row.words('applied')}"


DRAWING: Final = Drawing(figure, sentence, ("pair", "kind", "weights", "k", "entries", "applied", "ev"), each=("pair",))
