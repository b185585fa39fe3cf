"""Figure 3 (and 12b, 19c): how the three scores are spread in each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, TableRow, in_order
from saeflow.paper.kinds import Drawing, tip
from saeflow.paper.origins import OWN_SCORES, SCORES, first_method
from saeflow.paper.style import INK, MUTED, PAPER, RULE, Medium, colour, ems, panels, title, value_axis
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
    across = len(columns) if medium.wide else 1
    drawn, places = panels(medium, caption, len(shown) * len(columns), 1.7 * len(groups) + 1.0, across=across, over=3.2)
    # most scores lie above 0, and the axis need not show what lies below the lowest histogram
    filled = [i for row in frame.records for i, n in enumerate(row.numbers("histogram")) if n > 0]
    lowest = min(0.0, round(min(filled, default=_BINS // 2) * 2 / _BINS - 1, 6))
    for number, axes in enumerate(places):
        layer, score = shown[number // len(columns)], columns[number % len(columns)]
        first, names = number % across == 0, list[str]()
        for i, group in enumerate(groups):
            base, row = len(groups) - 1 - i, found.get((layer, score, group))
            axes.axhline(base, color=RULE, lw=ems(0.05), zorder=1 + i)
            n = count(row.number("n") if row else None)
            names.append(f"{group}   {n}" if first else n)
            if row is not None:
                _ridge(axes, base, row, group, 2 + i)
        axes.set_ylim(0, len(groups) + 0.6)
        value_axis(axes, "x", lowest, 1.0, most=5)
        axes.set_yticks([len(groups) - 1 - i + 0.2 for i in range(len(groups))], names)
        axes.tick_params(axis="y", labelcolor=INK if first else MUTED, labelsize=ems(0.82 if first else 0.74))
        title(axes, score, "all layers" if layer == "all" else f"layer {layer}")
    return drawn


def chosen_layers(layers: Sequence[int], most: int = 2) -> tuple[int, ...]:
    """Layers at even steps through the depth, as 8 and 18 of the paper's 26."""
    if len(layers) <= most:
        return tuple(layers)
    at = [round((i + 1) * (len(layers) - 1) / (most + 1)) for i in range(most)]
    return tuple(layers[i] for i in dict.fromkeys(at))


def _ridge(axes: Axes, base: float, row: TableRow, group: str, order: int) -> None:
    """A histogram as high as its fullest bin, with its median."""
    bins, middle = row.numbers("histogram"), row.number("median")
    most = max(bins, default=0.0)
    if len(bins) == _BINS and most > 0:
        edges = [2 * i / _BINS - 1 for i in range(_BINS + 1)]
        heights = [base + 1.3 * n / most for n in (*bins, 0.0)]
        area = axes.fill_between(edges, base, heights, step="post", color=colour(group), lw=0, zorder=order)
        quartiles = f"{decimal(row.number('q25'))} to {decimal(row.number('q75'))}"
        n = count(row.number("n"))
        tip(area, f"{group}, {row.words('score')}: median {decimal(middle)}, quartiles {quartiles}, n = {n}")
    if middle is not None:
        for tone, wide in ((PAPER, 0.34), (INK, 0.16)):  # seen on the darkest ridge too
            axes.plot((middle, middle), (base - 0.16, base + 0.16), color=tone, lw=ems(wide), zorder=order + 0.5)


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
