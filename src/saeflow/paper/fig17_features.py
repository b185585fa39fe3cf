"""Figure 17a: how many features of a theme are steered at each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from saeflow.paper.evidence import SteeringRun
from saeflow.paper.frame import Frame
from saeflow.paper.kinds import Drawing, tip
from saeflow.paper.matching import parts_of, tone_of
from saeflow.paper.steering import ACTIVATE, find, in_any_theme, themes
from saeflow.paper.style import (
    DASHES,
    INK,
    PAPER,
    SQUARE,
    Medium,
    Sign,
    ems,
    layer_axis,
    nothing,
    panels,
    title,
    value_axis,
)
from saeflow.paper.verdicts import ClaimNumber, NotMeasured
from saeflow.paper.words import count


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw how many features are steered at each layer, by part, with vertical lines at start features (fig. 17a)."""
    themes, layers, parts = frame.by("theme"), frame.layers(), parts_of(frame)
    if not layers:
        return nothing(medium, caption, "no features at any layer")
    signs = [Sign(part, tone_of(part), SQUARE) for part in parts]
    signs.append(Sign("layers of start features", shape=DASHES))
    across = medium.across(len(themes), 19, beside=3)
    drawn, places = panels(medium, caption, len(themes), 8.5, across=across, signs=signs)
    every = range(layers[0], layers[-1] + 1)
    top = 1.0
    for number, ((theme, rows), axes) in enumerate(zip(themes.items(), places, strict=True)):
        known = [row for row in rows.records if (row.number("layer") or 0.0) >= 0]
        heights = dict.fromkeys(layers, 0.0)
        for row in sorted(known, key=lambda row: parts.index(row.words("part"))):
            layer, part, features = row.count("layer"), row.words("part"), row.number("features")
            if features:
                at: dict[str, Any] = {"bottom": heights[layer], "color": tone_of(part), "edgecolor": PAPER}
                bar = axes.bar(layer, features, width=0.82, lw=0.4, zorder=2, **at)
                starts = row.count("starts")
                more = f", {count(starts)} of them {'a start' if starts == 1 else 'starts'}" if starts else ""
                what = f"{count(features)} {'feature' if features == 1 else 'features'}"
                tip(bar.patches[0], f"{part}, layer {layer}: {what}{more}")
                heights[layer] += features
        for layer in dict.fromkeys(r.number("layer") for r in known if r.count("starts")):
            axes.axvline(layer or 0.0, color=INK, lw=ems(0.09), ls=DASHES, zorder=3)
        top = max(top, *heights.values())
        layer_axis(axes, every, "↑ features · layer" if number % across == 0 else "", air=0.6)
        features, starts = (sum(row.number(name) or 0.0 for row in known) for name in ("features", "starts"))
        more = f"{count(features)} from {count(starts)} {'start' if starts == 1 else 'starts'}"
        title(axes, theme, more, room=medium.ems / across - 3.0)
    for axes in places:
        value_axis(axes, "y", 0, 1.06 * top, most=5)
    return drawn


def sentence(frame: Frame) -> str:
    """How many features the themes have, and how many layers they reach."""
    sizes: list[tuple[float, float, int]] = []
    for rows in frame.by("theme").values():
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


# --- claims -----------------------------------------------------------------------------------------------------------


def claim_unnamed(run: SteeringRun) -> list[ClaimNumber]:
    """In some theme a layer without any start feature is better than every layer with one, cross-fitted."""
    grid = run.grid
    each: dict[str, np.ndarray] = {}
    for theme in themes(grid, ACTIVATE):
        starts = {layer for layer, n in run.starts.get(theme, {}).items() if n}
        places = find(grid, theme, ACTIVATE, "single")
        inside, outside = (places.index[places["layer"].isin(starts) == there] for there in (True, False))
        if len(inside) and len(outside):
            each[theme] = grid.crossfit(outside) - grid.crossfit(inside)
    if not each:
        raise NotMeasured("No theme was steered at layers with and without start features.")
    words = "score of the best layer without start features less that of the best with some"
    return in_any_theme(grid, each, words)


DRAWINGS: Final = {"steering_features": Drawing(figure, sentence, ("theme", "layer", "part", "features", "starts"))}
