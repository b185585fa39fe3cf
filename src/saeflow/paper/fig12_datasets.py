"""Figure 12a (and 19a): the shares of the eight groups in each data set."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from saeflow.experiments.groups import ALL
from saeflow.experiments.statistics import RATE
from saeflow.paper.evidence import OriginsRun
from saeflow.paper.frame import GROUPS, Frame, in_order, most
from saeflow.paper.kinds import Drawing, reach
from saeflow.paper.origins import (
    WITH_ATT,
    WITH_MLP,
    GroupShares,
    Totals,
    every_of,
    first_method,
    largest_of,
    name_of,
    overall,
    shares_of,
)
from saeflow.paper.style import INK, PAPER, Medium, advance, colour, ems, panels, title, value_axis
from saeflow.paper.verdicts import ABOVE_0, BELOW_0, ClaimNumber, Rule, in_percent
from saeflow.paper.words import count, percent, percent_interval


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the groups of every data set (fig. 12a, 19a): bars with intervals and their numbers."""
    datasets, groups = in_order(frame.distinct("dataset"), (ALL,)), frame.groups()
    across = medium.across(len(datasets), 16, beside=max(advance(group, 0.82) for group in groups) + 1.0)
    drawn, places = panels(medium, caption, len(datasets), 1.75 * len(groups), across=across, over=3.6)
    found = frame.lookup("dataset", "group")
    high = 1.25 * reach(row.estimate("share") for row in frame.records)[1]  # with room for numbers at the right
    for i, (dataset, axes) in enumerate(zip(datasets, places, strict=True)):
        rows = [found[dataset, group] for group in groups]
        for y, (group, row) in enumerate(zip(groups, rows, strict=True)):
            share = row.estimate("share")
            if share is None:
                continue
            axes.barh(y, share.value, height=0.68, color=colour(group), zorder=2)
            if share.ends[0] < share.ends[1]:
                axes.plot(share.ends, (y, y), color=PAPER, lw=ems(0.2), zorder=3.9)  # visible on the darkest bar too
                axes.plot(share.ends, (y, y), color=INK, lw=ems(0.1), zorder=4)
            shift: dict[str, Any] = {"xytext": (ems(0.3), 0), "textcoords": "offset points"}
            axes.annotate(
                percent(share.value), (share.ends[1], y), va="center_baseline", fontsize=ems(0.8), zorder=5, **shift
            )
        value_axis(axes, "x", 0, high, unit="%", most=5)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_yticks(range(len(groups)), list(groups) if i % across == 0 else [""] * len(groups))
        axes.tick_params(axis="y", labelcolor=INK)
        title(axes, name_of(dataset), f"n = {count(n)}" if (n := most(rows)) else "")
    return drawn


def sentence(frame: Frame) -> str:
    """The share of nowhere and of the largest other group, and the data sets with least and most nowhere."""
    frame, method = first_method(frame)
    every = shares_of(frame, dataset=every_of(frame))
    if "nowhere" not in every:
        return ""
    of = f"Of {count(every['nowhere'].n)} active features" if every["nowhere"].n else "Of the active features"
    text = f"{of}, {percent_interval(every['nowhere'])} have no active predecessor{method}"
    others = {group: share for group, share in every.items() if group != "nowhere"}
    if others:
        text += f"; the largest other group is {largest_of(others)} with {percent_interval(others[largest_of(others)])}"
    sets = {
        d: s["nowhere"].value
        for d in frame.distinct("dataset")
        if d != ALL and "nowhere" in (s := shares_of(frame, dataset=d))
    }
    if len(sets) > 1:
        low, high = min(sets, key=sets.__getitem__), max(sets, key=sets.__getitem__)
        text += f". Nowhere runs from {percent(sets[low])} ({low}) to {percent(sets[high])} ({high})"
    return f"{text}."


# --- claims -----------------------------------------------------------------------------------------------------------


def claim_nowhere(run: OriginsRun) -> list[ClaimNumber]:
    """Nowhere is the largest of all groups."""
    shares = GroupShares(run)
    now = shares.tally.now(overall)
    other = 1 + int(now[1:].argmax())
    beside = f"nowhere {in_percent(now[0])}, {GROUPS[other]} {in_percent(now[other])}"
    words = "share of nowhere less that of the largest other group"
    return [shares.finding(lambda x: overall(x)[:, 0] - overall(x)[:, 1:].max(-1), words, ABOVE_0, beside)]


def _attention(run: OriginsRun, rule: Rule) -> list[ClaimNumber]:
    """The share of groups with attention less that of groups with the MLP."""
    shares = GroupShares(run)
    now = shares.tally.now(overall)
    beside = " against ".join(in_percent(float(now[groups].sum())) for groups in (WITH_ATT, WITH_MLP))
    words = "share of the groups with attention less that of the groups with the MLP"

    def difference(x: Totals) -> np.ndarray:
        return overall(x)[:, WITH_ATT].sum(-1) - overall(x)[:, WITH_MLP].sum(-1)

    return [shares.finding(difference, words, rule, beside)]


def claim_attention_rare(run: OriginsRun) -> list[ClaimNumber]:
    """Groups with attention are rarer than groups with the MLP."""
    return _attention(run, BELOW_0)


def claim_attention_prevails(run: OriginsRun) -> list[ClaimNumber]:
    """Groups with attention are more frequent than groups with the MLP."""
    return _attention(run, ABOVE_0)


def claim_described(run: OriginsRun) -> list[ClaimNumber]:
    """Most active features have an active predecessor."""
    shares = GroupShares(run)
    found = shares.tally.estimate(lambda x: 1 - overall(x)[:, 0], n=shares.n, span=RATE)
    return [ClaimNumber("active features with an active predecessor", found, Rule("above", 0.5), "share")]


DRAWINGS: Final = {"shares_by_dataset": Drawing(figure, sentence, ("dataset", "group", "share"), each=("method",))}
