"""As figure 17a, for trials: how many features and trials there are at each layer."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import GROUPS, Frame
from saeflow.paper.kinds import Drawing, panels, strip
from saeflow.paper.style import MUTED, Medium, group_signs, shares_axis
from saeflow.paper.words import count


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """How many features and trials there are at each layer (as fig. 17a)."""
    return counted(frame, medium, caption, "features", "trials", shares=False)


def counted(frame: Frame, medium: Medium, caption: str, column: str, other: str, *, shares: bool) -> Figure:
    """One strip per layer: shares of the features in each group, or their number; the totals beside."""
    groups, layers = frame.groups(), frame.layers()
    canvas, (box,) = panels(
        medium,
        caption,
        1,
        across=1,
        tall=1.7 * len(layers),
        head=1.2,
        below=2.4 if shares else 2.0,
        left=4.6,
        right=8.6 if shares else 13.0,
        signs=group_signs(groups),
    )
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    totals = [_sums(frame, layer, column) for layer in layers]
    most = max((sum(total.values()) for total in totals), default=0) or 1
    for i, (layer, total) in enumerate(zip(layers, totals, strict=True)):
        whole = sum(total.values()) or 1
        ordered = {group: total[group] / (whole if shares else most) for group in groups if group in total}
        share_of = 1.0 if shares else whole / most
        strip(
            axes, i, ordered, f"layer {layer}", height=0.84, em=medium.text, whole=share_of, room=box.width * share_of
        )
        text = f"{count(whole)} {column}"
        if not shares:
            text += f", {count(sum(_sums(frame, layer, other).values()))} {other}"
        x = box.left + box.width * share_of + 0.6
        canvas.write(x, box.top + 1.7 * i + 1.15, text, size=0.8, colour=MUTED)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_yticks(range(len(layers)), [f"layer {layer}" for layer in layers])
    if shares:
        shares_axis(axes, "x", 0, 1)
    else:
        axes.set_xticks([])
    return canvas.figure


def _sums(frame: Frame, layer: int, column: str) -> dict[str, float]:
    rows = [row for row in frame.where(layer=str(layer)).records if row.words("group") in GROUPS]
    return {row.words("group"): row.number(column) or 0.0 for row in rows}


def sentence(frame: Frame) -> str:
    """How many targets and trials there are."""
    features, trials = (sum(row.number(name) or 0.0 for row in frame.records) for name in ("features", "trials"))
    layers = frame.layers()
    told = f"{count(features)} targets and {count(trials)} trials" if trials else f"{count(features)} targets"
    return f"{told} at {len(layers)} {'layer' if len(layers) == 1 else 'layers'}." if layers else f"{told}."


DRAWING: Final = Drawing(figure, sentence, ("layer", "group", "features"))
