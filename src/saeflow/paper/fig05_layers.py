"""Figure 5 (and 19b): the shares of the eight groups at each layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from saeflow.experiments.groups import ALL
from saeflow.experiments.statistics import known_mean
from saeflow.paper.evidence import OriginsRun
from saeflow.paper.frame import Frame, Interval, in_order, most
from saeflow.paper.kinds import Drawing, line, reach, said, stack
from saeflow.paper.origins import (
    ATT,
    MLP,
    MLP_ATT,
    RES,
    GroupShares,
    Totals,
    by_layer,
    every_of,
    first_method,
    largest_of,
    name_of,
    shares_of,
)
from saeflow.paper.style import Medium, colour, group_signs, layer_axis, panels, title, value_axis
from saeflow.paper.verdicts import ABOVE_0, BELOW_0, ClaimNumber, NotMeasured
from saeflow.paper.words import capital, count, percent, percent_interval


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw groups by layer (fig. 5, 19b): stacks for every data set, and lines with intervals for all together."""
    datasets, groups, layers = in_order(frame.distinct("dataset"), (ALL,)), frame.groups(), frame.layers()
    first, rest = datasets[0], datasets[1:] if len(datasets) > 2 or ALL not in datasets else ()
    across = min(medium.across(max(1, len(rest)), 15 if medium.wide else 13), 4)
    found = frame.lookup("dataset", "layer", "group")
    # 1. panels: two of half the page's width, and in rows below one for each other data set
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
                shares := [found[dataset, str(n), group].number("share") for n in layers],
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
        ns = [most(found[dataset, str(n), group] for group in groups) for n in layers]
        title(axes, name_of(dataset), f"n = {count(sum(ns))}" if sum(ns) else "")
    # 3. lines
    axes, everything = places[1], list[Interval | None]()
    for group in groups:
        shares = [found[first, str(n), group].estimate("share") for n in layers]
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
    phrases: list[str] = []
    for layer, shares in zip((layers[0], layers[-1]), ends, strict=True):
        largest = largest_of(shares)
        whose = "" if phrases else method
        phrases.append(f"at layer {layer} {largest} is largest{whose} with {percent_interval(shares[largest])}")
    if layers[0] == layers[-1]:
        return f"{capital(phrases[0])}."
    nowhere = ""
    if all("nowhere" in shares for shares in ends):
        nowhere = f"; nowhere goes from {percent(ends[0]['nowhere'].value)} to {percent(ends[1]['nowhere'].value)}"
    return f"{capital(phrases[0])}, {phrases[1]}{nowhere}."


# --- claims -----------------------------------------------------------------------------------------------------------


_SIDES: Final = "{} in {}"


def claim_res_rises(run: OriginsRun) -> list[ClaimNumber]:
    """From RES is larger in the last part than in the middle one."""
    shares = GroupShares(run)
    _, middle, last = shares.parts()
    return [shares.less([RES], last, middle, ABOVE_0, "From RES", sides=_SIDES)]


def claim_fewer_new(run: OriginsRun) -> list[ClaimNumber]:
    """Groups with module predecessors only (newborn features) are smaller in the last part than in the middle."""
    shares = GroupShares(run)
    _, middle, last = shares.parts()
    return [shares.less([MLP, ATT, MLP_ATT], last, middle, BELOW_0, "From MLP, ATT, MLP & ATT", sides=_SIDES)]


def claim_gpt2_nowhere(run: OriginsRun) -> list[ClaimNumber]:
    """Nowhere grows in later layers."""
    shares = GroupShares(run)
    _, middle, last = shares.parts()
    return [shares.less([0], last, middle, ABOVE_0, "From nowhere", sides=_SIDES)]


def claim_mlp_falls(run: OriginsRun) -> list[ClaimNumber]:
    """From MLP is smaller beyond 18/25 of the depth (layer 18 of Gemma) than in the layers just before (16 to 18)."""
    shares = GroupShares(run)
    last = max(shares.layers)
    bump = round(18 / 25 * last)
    before = shares.places(range(round(16 / 25 * last), bump + 1), "layers before the fall")
    after = shares.places(range(bump + 1, last + 1), "layers after the fall")
    return [shares.less([MLP], after, before, BELOW_0, "From MLP")]


def _early(shares: GroupShares) -> list[int]:
    """The first part without layer 0, whose shares cannot be compared, since it has no residual predecessor."""
    first = [place for place in shares.parts()[0] if shares.layers[place] > 0]
    if not first:
        raise NotMeasured("The first part is layer 0 alone, which has no residual predecessor.")
    return first


def claim_uncertain_early(run: OriginsRun) -> list[ClaimNumber]:
    """Nowhere is larger in the first part than after it."""
    shares = GroupShares(run)
    first, (_, middle, last) = _early(shares), shares.parts()
    return [shares.less([0], first, middle + last, ABOVE_0, "nowhere", sides="{}")]


def claim_settles(run: OriginsRun) -> list[ClaimNumber]:
    """The groups change more from one layer to the next in the first part than in the middle."""
    shares = GroupShares(run)
    early = _early(shares)
    middle = [place for place in shares.parts()[1] if place + 1 < len(shares.layers)]
    if not middle:
        raise NotMeasured("The middle part has no layer that is followed by another.")

    def steps(x: Totals, places: Sequence[int]) -> np.ndarray:
        p = by_layer(x)
        return np.stack([np.abs(p[:, i + 1] - p[:, i]).sum(-1) / 2 for i in places], -1).mean(-1)

    words = (
        f"share of features that would have to change group from a layer to the next, in {shares.named(early)} less "
        f"that in {shares.named(middle)}"
    )
    return [shares.finding(lambda x: steps(x, early) - steps(x, middle), words)]


def claim_datasets(run: OriginsRun) -> list[ClaimNumber]:
    """Data sets differ more in the last part than in the two before."""
    shares = GroupShares(run)
    if len(shares.datasets) < 2:
        raise NotMeasured("There is one data set only.")
    first, middle, last = shares.parts()

    def apart(x: Totals, places: Sequence[int]) -> np.ndarray:
        p = x / x.sum(-1, keepdims=True)
        pairs = itertools.combinations(range(len(shares.datasets)), 2)
        each = [np.abs(p[:, places, i] - p[:, places, j]).sum(-1) / 2 for i, j in pairs]
        return known_mean(np.stack(each, -1), (1, 2))

    words = f"distance between two data sets in {shares.named(last)} less that in {shares.named(first + middle)}"
    return [shares.finding(lambda x: apart(x, last) - apart(x, first + middle), words)]


DRAWINGS: Final = {
    "shares_by_layer": Drawing(figure, sentence, ("dataset", "layer", "group", "share"), each=("method",))
}
