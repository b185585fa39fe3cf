"""A match as a transcoder: permutations, top-k products, and the loss of skipping a layer (figures 23 and 24).

Colours say in what units a transition matrix is applied, shapes what its entries are. Explained variance has no lower
end: what lies below the axis is a triangle at its edge, and says its number when pointed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.report.figures.frame import Estimate, Frame, Row, count, decimal, decimal_interval, in_order
from saeflow.report.figures.parts import Box, boxes, mark, tip
from saeflow.report.figures.style import (
    COLOURS,
    FAINT,
    INK,
    MUTED,
    PAPER,
    Canvas,
    Medium,
    advance,
    foot,
    nice_ticks,
    nothing,
    numbers_axis,
    spread,
    tidy,
)  # fmt: skip

LOWEST: Final = -0.5
"""Where the axis of explained variance ends at the latest."""

TONES: Final = {"raw": COLOURS["RES"], "folded": COLOURS["MLP"], "mean activation": COLOURS["ATT"]}
APPLIED: Final = {"raw": "raw", "folded": "folded", "mean activation": "mean activation"}
BASELINES: Final = {
    "affine map of h": "affine map of h",
    "reconstruction": "B's own dictionary",
    "least squares": "least-squares T",
    "identity": "identity: h as it is",
    "source reconstruction": "A's own dictionary",
    "mean": "mean of h",
}
"""What is no transition matrix of the weights, in the order of figures."""

METHODS: Final = {
    "cosine top-1": "best cosine",
    "permutation": "permutation",
    "permutation + encoder": "+ encoder",
    "permutation + encoder + b_enc": "+ encoder + b_enc",
}
_SHAPES: Final = {"values": "o", "binary": "s"}


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a dot plot: its name, what stands muted beside it, and its marks."""

    name: str
    more: str
    marks: tuple[tuple[Estimate, str, str, bool], ...]
    """Value, colour, text of the tip, hollow."""
    opens: bool = False


def permutations(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Explained variance of permutations and of the best cosine, each in three units (fig. 23)."""
    lines = [_baseline(row) for row in _baselines(frame, skip=("mean",))]
    for method in in_order(frame.where(kind="matching").distinct("method"), tuple(METHODS)):
        rows = frame.where(kind="matching", method=method)
        for matched in rows.distinct("matched"):
            here = rows.where(matched=matched).records
            marks = tuple(
                (found, TONES.get(row.words("applied"), INK), _told(row, found, f"matched {matched}"), False)
                for row in here
                if (found := row.estimate("ev"))
            )
            first = matched == "raw"
            name = METHODS.get(method, method) if first else ""
            several = len(rows.distinct("matched")) > 1
            lines.append(_Line(name, f"matched {matched}" if several else "", marks, first))
    return _dots(lines, medium, caption, "explained variance", floor=LOWEST, keyed="applied")


def losses(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Loss above the clean model's with each prediction in place of the layer."""
    rows = [row for row in frame.records if row.number("change") is not None]
    rows.sort(key=lambda row: row.number("change") or 0.0)
    lines: list[_Line] = []
    for row in rows:
        found = row.estimate("change")
        if found is None:
            continue
        known = row.words("kind") == "baseline"
        name = BASELINES.get(row.words("map"), row.words("map"))
        name = "identity: layer skipped" if row.words("map") == "identity" else name
        told = f"{name}: {decimal_interval(found, 3)} nats above {decimal(row.number('clean'), 3)}"
        lines.append(_Line(name, "", ((found, INK if known else COLOURS["RES"], told, known),), False))
    others = [row.number("high", "change") or 0.0 for row in rows if row.words("map") != "mean"]
    ceiling = 1.08 * max(others, default=1.0)
    return _dots(
        lines, medium, caption, "loss above the clean model's, nats", floor=0.0, ceiling=ceiling, keyed="kind"
    )


def differences(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Explained variance of one map less that of another, on the same tokens."""
    lines: list[_Line] = []
    for row in frame.records:
        found = row.estimate("difference")
        if found is not None:
            told = f"{row.words('a')} less {row.words('b')}: {decimal_interval(found, 3)}"
            lines.append(_Line(row.words("a"), f"less {row.words('b')}", ((found, INK, told, False),), False))
    return _dots(lines, medium, caption, "difference in explained variance", floor=-1.0, ceiling=1.0)


def _baselines(frame: Frame, *, skip: Sequence[str] = ()) -> list[Row]:
    column = "method" if "method" in frame.columns else "weights"
    found = {row.words(column): row for row in frame.where(kind="baseline").records}
    return [found[name] for name in in_order(found, tuple(BASELINES)) if name not in skip]


def _baseline(row: Row) -> _Line:
    name = BASELINES.get(row.words("method"), row.words("method"))
    found = row.estimate("ev")
    marks = () if found is None else ((found, INK, f"{name}: {decimal_interval(found, 3)}", True),)
    return _Line(name, "", marks)


def _told(row: Row, found: Estimate, how: str) -> str:
    fitted = row.number("scaled")
    after = (
        "" if fitted is None else f"; {decimal(fitted, 3)} after a factor of {decimal(row.number('scale'))}"
    )
    name = row.words("method") or " ".join(
        word for word in (row.words("weights"), row.words("k"), row.words("entries")) if word
    )
    n = "" if found.n is None else f", n = {count(found.n)}"
    return f"{name}, {how}, applied {row.words('applied')}: {decimal_interval(found, 3)}{after}{n}"


def _dots(
    lines: Sequence[_Line],
    medium: Medium,
    caption: str,
    axis: str,
    *,
    floor: float,
    ceiling: float | None = None,
    keyed: str = "",
) -> Figure:
    """Marks with intervals on a line each; names beside them, or above where there is no room."""
    if not lines:
        return nothing(medium, caption)
    widest = max(advance(line.name, 0.82) for line in lines)
    beside = max(advance(line.more, 0.74) for line in lines)
    left, room = widest + beside + (1.8 if beside else 0.9), 0.6 * medium.ems
    stacked = left > room >= max(widest, beside) + 0.9 and medium.wide
    above = left > room and not stacked
    deep = 1.35 * (bool(beside) + 1) if above else 0.0
    left, step = (1.4, 1.5 + deep) if above else (max(widest, beside) + 0.9, 2.5) if stacked else (left, 1.75)
    top = 2.3 if keyed else 0.8
    canvas = Canvas(medium, top + step * len(lines) + 3.4 + foot(medium, caption))
    box = Box(left, top, canvas.width - left - 1.2, step * len(lines))
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    low, high = _reach([m[0] for line in lines for m in line.marks], floor, ceiling)
    _key(canvas, keyed)
    for place, line in enumerate(lines):
        at = len(lines) - 1 - place
        if above or stacked:
            x, y = (
                (box.left, box.top + step * place)
                if above
                else (box.left - 0.5, box.top + step * place + 0.1)
            )
            _names_stacked(canvas, x, y, line, right=stacked)
        else:
            y = box.top + step * (place + 0.5) + 0.28
            _names_beside(canvas, box, line, y, columns=bool(beside))
        if line.opens:
            axes.axhline(at + 0.5, color=FAINT, lw=0.1 * medium.text, zorder=1)
        # names above take the upper part of a line: its marks stand in the lower one
        _line_marks(axes, at - 0.5 * deep / step, line, (low, high), medium.text, box.width)
    axes.set_ylim(-0.5, len(lines) - 0.5)
    axes.set_yticks([])
    numbers_axis(axes, "x", low, high, most=9 if medium.wide else 4)
    if low < 0 < high:
        axes.axvline(0, color=MUTED, lw=0.07 * medium.text, zorder=1)
    tidy(axes, values="x", em=medium.text)
    canvas.write(box.left, box.top + box.height + 2.5, axis, size=0.74, colour=MUTED)
    canvas.caption(caption)
    return canvas.figure


def _names_beside(canvas: Canvas, box: Box, line: _Line, y: float, *, columns: bool) -> None:
    """The words of a line at the left of its axis, in two columns where some lines have two."""
    if line.more:
        canvas.write(box.left - 0.5, y, line.more, size=0.74, colour=MUTED, align="right")
    if columns:
        canvas.write(0.2, y, line.name, size=0.82)
    else:
        canvas.write(box.left - 0.5, y, line.name, size=0.82, align="right")


def _names_stacked(canvas: Canvas, x: float, top: float, line: _Line, *, right: bool) -> None:
    """The words of a line one below the other: over its marks, or to the left of them."""
    y, side = top + 1.2, "right" if right else "left"
    for text, size, tone in ((line.name, 0.82, INK), (line.more, 0.74, MUTED)):
        if text:
            canvas.write(x, y, text, size=size, colour=tone, align=side)
            y += 1.05 if right else 1.3


def _line_marks(
    axes: Axes, at: float, line: _Line, ends: tuple[float, float], em: float, room: float
) -> None:
    """The marks of a line, side by side in height; one beyond an end is a triangle there."""
    low, high = ends
    n = len(line.marks)
    for i, (found, tone, told, hollow) in enumerate(line.marks):
        y = at + 0.26 * ((n - 1) / 2 - i)
        if low <= found.value <= high:
            shown = Estimate(
                found.value,
                None if found.low is None else max(found.low, low),
                None if found.high is None else min(found.high, high),
            )
            mark(axes, y, shown, line.name, tone=tone, em=em, hollow=hollow, text=told)
            continue
        _beyond(
            axes, (low if found.value < low else high), y, "<" if found.value < low else ">", tone, em, told
        )
        inside, side = 0.7 / room * (high - low), "right" if found.value > high else "left"
        x = high - inside if found.value > high else low + inside
        axes.text(x, y, decimal(found.value, 1), ha=side, va="center", fontsize=0.7 * em, color=MUTED)


def _beyond(axes: Axes, x: float, y: float, shape: str, tone: str, em: float, told: str) -> None:
    (point,) = axes.plot(
        [x], [y], marker=shape, ms=0.5 * em, color=PAPER, mec=tone, mew=0.09 * em, ls="none", zorder=4, clip_on=False
    )  # fmt: skip
    tip(point, told)


def _reach(found: Sequence[Estimate], floor: float, ceiling: float | None) -> tuple[float, float]:
    """The ends of an axis that holds what lies between `floor` and `ceiling`, with a little air."""
    ends = [end for e in found for end in (e.value - e.reach[0], e.value + e.reach[1])]
    low, high = min([*ends, 0.0]), max([*ends, 0.1])
    air = 0.03 * (min(high, ceiling or high) - max(low, floor))
    low = floor if low <= floor else low - air
    return low, (high + air if ceiling is None or high <= ceiling else ceiling)


def _key(canvas: Canvas, keyed: str) -> None:
    x = 0.6
    if keyed == "applied":
        canvas.write(0.2, 1.3, "applied", size=0.82, colour=MUTED)
        x += advance("applied", 0.82) + 0.4
        for name, tone in TONES.items():
            canvas.marker(x, 1.0, "o", colour=tone)
            canvas.write(x + 0.8, 1.3, APPLIED[name], size=0.82)
            x += advance(name, 0.82) + 2.4
    elif keyed == "kind":
        for name, hollow, tone in (("through a match", False, COLOURS["RES"]), ("baseline", True, INK)):
            canvas.marker(x, 1.0, "o", hollow=hollow, colour=tone)
            canvas.write(x + 0.8, 1.3, name, size=0.82)
            x += advance(name, 0.82) + 2.4


def top_k(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Explained variance against k, for both products, as it is and after one fitted factor (fig. 24)."""
    products = frame.where(kind="matching", matched="raw").distinct("weights")
    products = tuple(name for name in products if name.startswith("W_dec"))
    panels = [(measure, product) for measure in ("ev", "scaled") for product in products]
    across = max(1, len(products)) if medium.wide else 1
    rows = -(-len(panels) // across)
    tall, keyed = (14.0, 3.8) if medium.wide else (13.0, 5.2)
    canvas = Canvas(medium, keyed + 1.8 + rows * (tall + 4.4) - 1.6 + foot(medium, caption))
    _lines_key(canvas)
    right = 8.6 if medium.wide else 8.2
    area = Box(3.0, keyed + 1.8, canvas.width - 3.2 - right, tall)
    gap = right + 3.0
    for (measure, product), box in zip(
        panels, boxes(len(panels), across, area, gap=gap, drop=4.4), strict=True
    ):
        _k_panel(canvas, box, frame, product, measure)
    canvas.caption(caption)
    return canvas.figure


def _lines_key(canvas: Canvas) -> None:
    _key(canvas, "applied")
    x = 0.6
    for name, shape, hollow in (("values", "o", False), ("binary: I(x > 0)", "s", True)):
        canvas.marker(x, 2.7, shape, hollow=hollow)
        canvas.write(x + 0.8, 3.0, name, size=0.82)
        x += advance(name, 0.82) + 2.4
    below = "triangle: below the axis"
    y = 3.0 if canvas.medium.wide else 4.5
    canvas.marker(x if canvas.medium.wide else 0.6, y - 0.3, "v", hollow=True, colour=MUTED)
    canvas.write((x if canvas.medium.wide else 0.6) + 0.8, y, below, size=0.82, colour=MUTED)


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
            (i + shift, row.estimate(*columns), _told(row, Estimate(row.number(columns[0]) or 0.0), measure))
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
) -> None:  # fmt: skip
    """A line that runs out of the panel where it must, with marks where it is within."""
    known = [(x, e, told) for x, e, told in points if e is not None]
    hollow = entries == "binary"
    style = (0, (1.2, 1.6)) if hollow else "solid"
    axes.plot(
        [x for x, _, _ in known], [max(e.value, 4 * low - 3) for _, e, _ in known], color=tone, lw=0.1 * em,
        ls=style, zorder=2, alpha=0.75,
    )  # fmt: skip
    for x, e, told in known:
        if e.value < low:
            _beyond(axes, x, low, "v", tone, 0.8 * em, told)
            continue
        ends = (e.value - e.reach[0], e.value + e.reach[1])
        axes.plot((x, x), (max(ends[0], low), ends[1]), color=tone, lw=0.09 * em, zorder=3)
        (point,) = axes.plot(
            [x], [e.value], marker=_SHAPES[entries], ms=0.42 * em, color=PAPER if hollow else tone, mec=tone,
            mew=0.08 * em, ls="none", zorder=4, clip_on=False,
        )  # fmt: skip
        tip(point, told)


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
