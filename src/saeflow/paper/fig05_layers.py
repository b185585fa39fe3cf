"""Figure 5 (and 19b): the shares of the eight groups at each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, Row, in_order
from saeflow.paper.kinds import Box, Drawing, boxes, line, reach, said, stack
from saeflow.paper.origins import EVERY, every_of, first_method, largest_of, name_of, panel_title, shares_of
from saeflow.paper.style import (
    MUTED,
    Canvas,
    Medium,
    colour,
    foot,
    group_signs,
    key_height,
    layer_axis,
    shares_axis,
    spread,
    tidy,
)
from saeflow.paper.words import capital, percent, percent_interval


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Groups by layer (fig. 5, 19b): stacks for every data set, and lines with intervals for all of them."""
    datasets, groups, layers = in_order(frame.distinct("dataset"), (EVERY,)), frame.groups(), frame.layers()
    wide = medium.wide
    first, rest = datasets[:1], datasets[1:] if len(datasets) > 2 or EVERY not in datasets else ()
    across = min(medium.across(max(1, len(rest)), 15 if wide else 13), 4)
    rows = -(-len(rest) // across)
    big, small = (15.0, 8.5) if wide else (13.0, 7.5)
    signs = group_signs(groups)
    keyed = key_height(medium, signs)
    top = keyed + 1.8
    below = top + (big if wide else 2 * big + 4.2) + 4.4
    canvas = Canvas(medium, below + rows * (small + 4.2) - (0 if rows else 1.2) + foot(medium, caption) - 0.6)
    canvas.key(signs)
    half = (canvas.width - 4 - 10.5) / 2 - 1 if wide else canvas.width - 4
    found = frame.lookup("dataset", "layer", "group")
    _stack_panel(canvas, Box(3, top, half, big), first[0], found, groups, layers)
    lines = Box(3 + half + 4, top, half - 1, big) if wide else Box(3, top + big + 4.2, half - 8, big)
    _line_panel(canvas, lines, first[0], found, groups, layers)
    area = Box(3, below, canvas.width - 4, small)
    for dataset, box in zip(rest, boxes(len(rest), across, area, gap=1.6, drop=4.2), strict=True):
        _stack_panel(canvas, box, dataset, found, groups, layers, axis=box.left == area.left)
    canvas.caption(caption)
    return canvas.figure


def _stack_panel(
    canvas: Canvas,
    box: Box,
    dataset: str,
    found: dict[tuple[str, ...], Row],
    groups: Sequence[str],
    layers: Sequence[int],
    *,
    axis: bool = True,
) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    columns = {group: [_share(found, dataset, layer, group) for layer in layers] for group in groups}
    stack(axes, layers, columns, [f"layer {layer}" for layer in layers], width=0.94 if len(layers) < 14 else 1.0)
    shares_axis(axes, "y", 0, 1)
    layer_axis(axes, layers, box.width)
    axes.set_xlim(layers[0] - 0.55, layers[-1] + 0.55)
    if not axis:
        axes.set_yticks([])
    if axis:
        canvas.write(box.left, box.top + box.height + 2.3, "layer", size=0.74, colour=MUTED)
    panel_title(canvas, box, name_of(dataset), _total(found, dataset, layers, groups))


def _share(found: dict[tuple[str, ...], Row], dataset: str, layer: int, group: str) -> float | None:
    row = found.get((dataset, str(layer), group))
    return None if row is None else row.number("share")


def _total(
    found: dict[tuple[str, ...], Row], dataset: str, layers: Sequence[int], groups: Sequence[str]
) -> float | None:
    """n of a data set: the n of a share is that of its layer, the same for every group."""
    known: list[float] = []
    for layer in layers:
        ns = [n for g in groups if (row := found.get((dataset, str(layer), g))) and (n := row.number("n"))]
        known += [max(ns)] if ns else []
    return sum(known) if known else None


def _line_panel(
    canvas: Canvas,
    box: Box,
    dataset: str,
    found: dict[tuple[str, ...], Row],
    groups: Sequence[str],
    layers: Sequence[int],
) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em = canvas.medium.text
    values = {
        group: [row.estimate("share") if (row := found.get((dataset, str(layer), group))) else None for layer in layers]
        for group in groups
    }
    _, high = reach([e for column in values.values() for e in column])
    high = min(1.0, high)
    for group, column in values.items():
        tips = [said(f"{group}, layer {n}", e) if e else "" for n, e in zip(layers, column, strict=True)]
        line(axes, layers, column, group, tone=colour(group), em=em, tips=tips)
    shares_axis(axes, "y", 0, high)
    layer_axis(axes, layers, box.width)
    axes.set_xlim(layers[0] - 0.3, layers[-1] + 0.3)
    tidy(axes, values="y", em=em)
    ends = {g: last[-1] for g, c in values.items() if (last := [e.value for e in c if e is not None])}
    label_ends(canvas, box, ends, (0, high))
    panel_title(canvas, box, f"{name_of(dataset)}, 95 % intervals")


def label_ends(canvas: Canvas, box: Box, ends: dict[str, float], limits: tuple[float, float]) -> None:
    """Names at the right ends of lines, moved apart, each led to its line."""
    low, high = limits
    heights = [box.height * (value - low) / (high - low) for value in ends.values()]
    moved = spread(heights, 1.25, 0.2, box.height)
    for (name, _), true, height in zip(ends.items(), heights, moved, strict=True):
        y = box.top + box.height - height
        x = box.left + box.width
        lead = ((x + 0.3) / canvas.width, (x + 1.0) / canvas.width)
        at = (1 - (box.top + box.height - true) / canvas.height, 1 - y / canvas.height)
        canvas.link(lead, at, colour(name))
        canvas.write(x + 1.25, y + 0.28, name, size=0.78)


def sentence(frame: Frame) -> str:
    """How nowhere and the largest group change from the first layer to the last."""
    frame, method = first_method(frame)
    layers = frame.layers()
    if not layers:
        return ""
    ends = [shares_of(frame, dataset=every_of(frame), layer=str(layer)) for layer in (layers[0], layers[-1])]
    if not all(ends):
        return ""
    told: list[str] = []
    for layer, shares in zip((layers[0], layers[-1]), ends, strict=True):
        largest = largest_of(shares)
        whose = "" if told else method
        told.append(f"at layer {layer} {largest} is largest{whose} with {percent_interval(shares[largest])}")
    if layers[0] == layers[-1]:
        return f"{capital(told[0])}."
    nowhere = ""
    if all("nowhere" in shares for shares in ends):
        nowhere = f"; nowhere goes from {percent(ends[0]['nowhere'].value)} to {percent(ends[1]['nowhere'].value)}"
    return f"{capital(told[0])}, {told[1]}{nowhere}."


DRAWING: Final = Drawing(figure, sentence, ("dataset", "layer", "group", "share"), each=("method",))
