"""Like figure 17a, but of trials, and C.1: how many features and trials there are at each layer, by group."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import GROUPS, Frame
from saeflow.paper.kinds import Drawing, Strip, strips
from saeflow.paper.origins import first_method
from saeflow.paper.style import Medium, group_signs
from saeflow.paper.words import count, percent


def counts_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw how many features and trials there are at each layer (like fig. 17a)."""
    return counted(frame, medium, caption, other="trials")


def counted(frame: Frame, medium: Medium, caption: str, *, other: str = "") -> Figure:
    """Draw one strip per layer: shares of the features in each group, or with `other` their numbers; totals beside."""
    rows: list[Strip] = []
    totals: dict[int, dict[str, float]] = {}
    for layer in frame.layers():
        known = frame.where(layer=str(layer)).lookup("group")
        totals[layer] = {group: known[group].number("features") or 0.0 for group in frame.groups() if group in known}
    most = max((sum(total.values()) for total in totals.values()), default=0) or 1
    for layer, total in totals.items():
        whole = sum(total.values()) or 1
        note = f"{count(whole)} features"
        if other:
            some = frame.where(layer=str(layer)).records
            note += f", {count(sum(r.number(other) or 0.0 for r in some if r.words('group') in GROUPS))} {other}"
        shares = {group: n / (most if other else whole) for group, n in total.items()}
        rows.append(Strip(f"layer {layer}", shares, f"layer {layer}", note, whole / most if other else 1.0))
    return strips({"": rows}, medium, caption, signs=group_signs(frame.groups()), axis=not other)


def counts_sentence(frame: Frame) -> str:
    """How many targets and trials there are."""
    features, trials = (sum(row.number(name) or 0.0 for row in frame.records) for name in ("features", "trials"))
    layers = frame.layers()
    text = f"{count(features)} targets and {count(trials)} trials" if trials else f"{count(features)} targets"
    return f"{text} at {len(layers)} {'layer' if len(layers) == 1 else 'layers'}." if layers else f"{text}."


def probable_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw, for each layer, how many features have each group as their most frequent one (C.1)."""
    return counted(frame, medium, caption)


def probable_sentence(frame: Frame) -> str:
    """The two groups in which most features are most often, each feature counted once."""
    frame, method = first_method(frame)
    totals = {g: sum(r.number("features") or 0 for r in frame.where(group=g).records) for g in GROUPS}
    whole = sum(totals.values())
    if not whole:
        return ""
    first, second = sorted(totals, key=lambda g: -totals[g])[:2]
    return (
        f"Of {count(whole)} features, each counted once{method}, {percent(totals[first] / whole)} are "
        f"mostly from {first} and {percent(totals[second] / whole)} mostly from {second}."
    )


DRAWINGS: Final = {
    "counts": Drawing(counts_figure, counts_sentence, ("layer", "group", "features")),
    "most_probable": Drawing(probable_figure, probable_sentence, ("layer", "group", "features"), each=("method",)),
}
