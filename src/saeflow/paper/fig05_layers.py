"""Figure 5 (and 19b): the shares of the eight groups at each layer."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, Interval, in_order
from saeflow.paper.kinds import Drawing, line, reach, said, stack
from saeflow.paper.origins import EVERY, every_of, first_method, largest_of, name_of, shares_of
from saeflow.paper.style import Medium, colour, group_signs, layer_axis, panels, title, value_axis
from saeflow.paper.words import capital, count, percent, percent_interval


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Groups by layer (fig. 5, 19b): stacks for every data set, and lines with intervals for all of them."""
    datasets, groups, layers = in_order(frame.distinct("dataset"), (EVERY,)), frame.groups(), frame.layers()
    first, rest = datasets[0], datasets[1:] if len(datasets) > 2 or EVERY not in datasets else ()
    across = min(medium.across(max(1, len(rest)), 15 if medium.wide else 13), 4)
    found = frame.lookup("dataset", "layer", "group")
    # 1. panels: the first two as wide as half of the page, and one for each other data set in rows below
    columns = 2 * across
    head = [["00"] * across + ["01"] * across] if medium.wide else [["00"] * columns, ["01"] * columns]
    cells = [f"{i + 2:02d}" for i in range(len(rest))] + ["."] * (-len(rest) % across)
    below = [[cell for cell in cells[i : i + across] for _ in range(2)] for i in range(0, len(cells), across)]
    tall = [15.0 if medium.wide else 13.0] * len(head) + [8.5 if medium.wide else 7.5] * len(below)
    drawn, places = panels(medium, caption, [*head, *below], tall, signs=group_signs(groups), over=4.0)
    # 2. stacks
    for number, (dataset, axes) in enumerate(zip((first, *rest), (places[0], *places[2:]), strict=True)):
        parts = {
            group: (
                colour(group),
                shares := [
                    row.number("share") if (row := found.get((dataset, str(n), group))) else None for n in layers
                ],
                [f"{group}, layer {n}: {percent(share, 1)}" for n, share in zip(layers, shares, strict=True)],
            )
            for group in groups
        }
        stack(axes, layers, parts, width=0.94 if len(layers) < 14 else 1.0)
        value_axis(axes, "y", 0, 1, unit="%")
        axes.grid(visible=False)
        outer = number == 0 or (number - 1) % across == 0
        layer_axis(axes, layers, "layer" if outer else "", air=0.55)
        if not outer:
            axes.set_yticks([])
        # n of a share is that of its layer, the same for every group
        ns = [
            max((found[k].number("n") or 0.0 for k in found if k[:2] == (dataset, str(n))), default=0) for n in layers
        ]
        title(axes, name_of(dataset), f"n = {count(sum(ns))}" if sum(ns) else "")
    # 3. lines
    axes, everything = places[1], list[Interval | None]()
    for group in groups:
        shares = [row.estimate("share") if (row := found.get((first, str(n), group))) else None for n in layers]
        tips = [said(f"{group}, layer {n}", e) if e else "" for n, e in zip(layers, shares, strict=True)]
        line(axes, layers, shares, tips, tone=colour(group))
        everything += shares
    value_axis(axes, "y", 0, min(1.0, reach(everything)[1]), unit="%")
    layer_axis(axes, layers, air=0.3)
    axes.set_title(f"{name_of(first)}, 95 % intervals")
    return drawn


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
