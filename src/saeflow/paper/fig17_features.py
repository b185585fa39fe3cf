"""Figure 17a: how many features of a theme are steered at each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, in_order
from saeflow.paper.kinds import Drawing, panels, tip
from saeflow.paper.steering import by_theme
from saeflow.paper.style import (
    DASHES,
    INK,
    MUTED,
    PAPER,
    SQUARE,
    Medium,
    Sign,
    colour,
    layer_axis,
    nothing,
    numbers_axis,
    tidy,
)
from saeflow.paper.words import count

_PARTS = ("res", "mlp", "att")


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """How many features are steered at each layer, by part; upright lines where start features are (fig. 17a)."""
    themes, layers = frame.distinct("theme"), frame.layers()
    parts = in_order(frame.distinct("part"), [word for part in _PARTS for word in (part, part.upper())])
    if not layers:
        return nothing(medium, caption, "no features at any layer")
    everywhere = range(layers[0], layers[-1] + 1)
    signs = [Sign(part, colour(part.upper()), SQUARE) for part in parts]
    signs.append(Sign("layers of start features", shape=DASHES))
    across = medium.across(len(themes), 19, beside=3)
    canvas, places = panels(
        medium, caption, len(themes), across=across, tall=8.5, below=2.8, gap=3.0, left=2.6, right=0.4, signs=signs
    )
    top = max(max(_by_layer(frame.where(theme=theme), "features").values()) for theme in themes)
    for theme, box in zip(themes, places, strict=True):
        axes = canvas.axes(box.left, box.top, box.width, box.height)
        rows_of = frame.where(theme=theme)
        _feature_bars(axes, rows_of, parts, medium.text)
        numbers_axis(axes, "y", 0, max(1.0, top * 1.06), most=4.0)
        layer_axis(axes, everywhere, box.width)
        axes.set_xlim(everywhere[0] - 0.6, everywhere[-1] + 0.6)
        tidy(axes, values="y", em=medium.text)
        canvas.title(box.left, box.top - 0.8, box.width, theme, _features_told(rows_of))
        if box.left == places[0].left:
            words = "↑ features · layer"
            canvas.write(box.left, box.top + box.height + 2.3, words, size=0.74, colour=MUTED)
    return canvas.figure


def _by_layer(frame: Frame, column: str) -> dict[int, float]:
    """The sum of a column over parts at each layer that has a row."""
    found = dict.fromkeys(frame.layers(), 0.0)
    for row in frame.records:
        layer = row.number("layer")
        if layer is not None and int(layer) in found:
            found[int(layer)] += row.number(column) or 0.0
    return found or {0: 0.0}


def _features_told(frame: Frame) -> str:
    features, starts = (sum(_by_layer(frame, name).values()) for name in ("features", "starts"))
    return f"{count(features)} from {count(starts)} {'start' if starts == 1 else 'starts'}"


def _feature_bars(axes: Axes, frame: Frame, parts: Sequence[str], em: float) -> None:
    bottoms = dict.fromkeys(frame.layers(), 0.0)
    for part in parts:
        for row in frame.where(part=part).records:
            layer, features = row.number("layer"), row.number("features")
            if layer is None or layer < 0 or not features:
                continue
            bar = axes.bar(
                layer,
                features,
                width=0.82,
                bottom=bottoms[int(layer)],
                color=colour(part.upper()),
                edgecolor=PAPER,
                lw=0.4,
                zorder=2,
            )
            starts = row.count("starts")
            more = f", {count(starts)} of them {'a start' if starts == 1 else 'starts'}" if starts else ""
            tip(
                bar.patches[0],
                f"{part}, layer {layer:.0f}: {count(features)} {'feature' if features == 1 else 'features'}{more}",
            )
            bottoms[int(layer)] += features
    for layer, starts in _by_layer(frame, "starts").items():
        if starts:
            axes.axvline(layer, color=INK, lw=0.09 * em, ls=(0, (4, 3)), zorder=3)


def sentence(frame: Frame) -> str:
    """How many features the themes have, and how many layers they reach."""
    sizes: list[tuple[float, float, int]] = []
    for rows in by_theme(frame).values():
        layers = {r.words("layer") for r in rows.records if r.number("features")}
        n, starts = (sum(r.number(name) or 0.0 for r in rows.records) for name in ("features", "starts"))
        sizes.append((n, starts, len(layers)))
    if not sizes:
        return ""
    n, starts, layers = (_between([size[i] for size in sizes]) for i in range(3))
    each = "Each theme has" if len(sizes) > 1 else "The theme has"
    grown = "start feature" if starts == "1" else "start features"
    return f"{each} {n} features at {layers} layers, grown from {starts} {grown}."


def _between(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return count(low) if low == high else f"{count(low)} to {count(high)}"


DRAWING: Final = Drawing(figure, sentence, ("theme", "layer", "part", "features", "starts"))
