"""Figure 3 (and 12b, 19c): how the three scores are spread in each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, Row, in_order
from saeflow.paper.kinds import Box, Drawing, panels, tip
from saeflow.paper.origins import OWN_SCORES, SCORES, first_method
from saeflow.paper.style import INK, MUTED, PAPER, RULE, Canvas, Medium, advance, colour, tidy
from saeflow.paper.words import count, decimal

_BINS = 40


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """How the three scores are spread in each group (fig. 3, 12b, 19c): ridges of histograms with medians.

    Rows of panels are all layers and two between; on a narrow medium all layers only. Each ridge is as
    high as its own fullest bin, so that rare groups can be read too: n stands beside the names.
    """
    columns, groups = in_order(frame.distinct("score"), SCORES), frame.groups()
    every = ("all",) if "all" in frame.distinct("layer") else ()
    layers = tuple(str(n) for n in chosen_layers(frame.layers()))
    shown = (every + layers if medium.wide or not every else every) or frame.distinct("layer")[:1]
    found = frame.lookup("layer", "score", "group")
    left = max(advance(group, 0.82) for group in groups) + 4.6
    across = len(columns) if medium.wide else 1
    height = 1.7 * len(groups) + 1.0
    shown_as = [(layer, score) for layer in shown for score in columns]
    canvas, places = panels(
        medium, caption, len(shown_as), across=across, tall=height, drop=4.4, gap=4.8, left=left, head=2.4
    )
    limits = (_lowest(frame), 1.0)
    for (layer, score), box in zip(shown_as, places, strict=True):
        rows_of = {group: row for group in groups if (row := found.get((layer, score, group)))}
        _ridges(canvas, box, rows_of, groups, limits, names=box.left == places[0].left)
        where = "all layers" if layer == "all" else f"layer {layer}"
        canvas.write(box.left, box.top - 0.5, score, size=0.9, weight="bold")
        canvas.write(box.left + advance(score, 0.98) + 0.7, box.top - 0.5, where, size=0.8, colour=MUTED)
    return canvas.figure


def chosen_layers(layers: Sequence[int], most: int = 2) -> tuple[int, ...]:
    """Layers at even steps through the depth, as 8 and 18 of the paper's 26."""
    if len(layers) <= most:
        return tuple(layers)
    at = [round((i + 1) * (len(layers) - 1) / (most + 1)) for i in range(most)]
    return tuple(layers[i] for i in dict.fromkeys(at))


def _lowest(frame: Frame) -> float:
    """Where the lowest histogram begins: most scores lie above 0, and the axis need not show the rest."""
    filled = [i for row in frame.records for i, n in enumerate(row.numbers("histogram")) if n > 0]
    lowest = min(filled, default=_BINS // 2)
    return min(0.0, round(lowest * 2 / _BINS - 1, 6))


def _ridges(
    canvas: Canvas, box: Box, rows: dict[str, Row], groups: Sequence[str], limits: tuple[float, float], *, names: bool
) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em = canvas.medium.text
    for i, group in enumerate(groups):
        base = len(groups) - 1 - i
        axes.axhline(base, color=RULE, lw=0.05 * em, zorder=1 + i)
        if group in rows:
            _ridge(axes, base, rows[group], group, em, 2 + i)
        y = box.top + box.height * (1 - (base + 0.08) / (len(groups) + 0.6))
        n = rows[group].number("n") if group in rows else None
        canvas.write(box.left - 0.5, y, count(n), size=0.72, colour=MUTED, align="right")
        if names:
            canvas.write(box.left - 4.4, y, group, size=0.82, align="right")
    canvas.write(box.left - 0.5, box.top + 0.4, "n", size=0.72, colour=MUTED, align="right")
    axes.set_ylim(0, len(groups) + 0.6)
    axes.set_xlim(*limits)
    step = 0.25 if limits[1] - limits[0] <= 1.3 else 0.5
    ticks = [k * step for k in range(-4, 5) if limits[0] - 1e-9 <= k * step <= limits[1]]
    axes.set_xticks(ticks, [decimal(tick, 0 if tick in {-1, 0, 1} else 2).rstrip("0") or "0" for tick in ticks])
    axes.set_yticks([])
    tidy(axes, values="x", em=em)


def _ridge(axes: Axes, base: float, row: Row, group: str, em: float, order: int) -> None:
    bins = row.numbers("histogram")
    most = max(bins, default=0.0)
    if len(bins) == _BINS and most > 0:
        edges = [2 * i / _BINS - 1 for i in range(_BINS + 1)]
        heights = [base + 1.3 * n / most for n in (*bins, 0.0)]
        area = axes.fill_between(
            edges, [base] * (_BINS + 1), heights, step="post", color=colour(group), lw=0, zorder=order
        )
        quartiles = f"{decimal(row.number('q25'))} to {decimal(row.number('q75'))}"
        median, n = decimal(row.number("median")), count(row.number("n"))
        tip(area, f"{group}, {row.words('score')}: median {median}, quartiles {quartiles}, n = {n}")
    middle = row.number("median")
    if middle is not None:
        for tone, wide in ((PAPER, 0.34), (INK, 0.16)):  # seen on the darkest ridge too
            axes.plot((middle, middle), (base - 0.16, base + 0.16), color=tone, lw=wide * em, zorder=order + 0.5)


def sentence(frame: Frame) -> str:
    """Each score in the group of its own part, and in nowhere."""
    frame, method = first_method(frame)
    layer = "all" if "all" in frame.distinct("layer") else (frame.distinct("layer") or ("",))[0]
    found = frame.where(layer=layer).lookup("score", "group")
    told: list[str] = []
    for group, score in OWN_SCORES:
        own, none = found.get((score, group)), found.get((score, "nowhere"))
        if own and none and own.number("median") is not None and none.number("median") is not None:
            told.append(
                f"{score} is {decimal(own.number('median'))} in {group} and {decimal(none.number('median'))} in nowhere"
            )
    where = "" if layer == "all" else f" at layer {layer}"
    return f"The median of {', '.join(told)}{method}{where}." if told else ""


DRAWING: Final = Drawing(figure, sentence, ("layer", "group", "score"), each=("method",))
