"""Figure 13: the probability that a feature of one group is in another group in another context."""

from __future__ import annotations

from typing import Final

import numpy as np
from matplotlib.figure import Figure

from saeflow.experiments.statistics import GAP, RATE, Tally, known_mean
from saeflow.paper.evidence import OriginsRun, once
from saeflow.paper.frame import GROUPS, Frame, most
from saeflow.paper.kinds import Drawing, heat
from saeflow.paper.origins import ATT, COSINE, RES_ATT, first_method, short
from saeflow.paper.style import MUTED, Medium, ems, panels
from saeflow.paper.verdicts import ABOVE_0, ClaimNumber, NotMeasured, Rule, in_percent
from saeflow.paper.words import count, percent


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the probability that a feature of group A (row) is in group B (column) in another context (fig. 13)."""
    present = {*frame.distinct("group_a"), *frame.distinct("group_b")}
    groups = tuple(group for group in GROUPS if group in present)
    found = frame.lookup("group_a", "group_b")
    drawn, (axes,) = panels(medium, caption, 1, 2.1 * len(groups), over=2.4)
    rows = [[found[a, b] for b in groups] for a in groups]
    values = [[row.number("probability") for row in cells] for cells in rows]
    tips = [
        [f"{a} in one context, {b} in another: {percent(v, 1)}" for b, v in zip(groups, cells, strict=True)]
        for a, cells in zip(groups, values, strict=True)
    ]
    heat(axes, values, (groups, [short(group) for group in groups]), tips)
    for i, cells in enumerate(rows):
        n = f"n = {count(most(cells))}"
        axes.text(len(groups) + 0.1, i + 0.5, n, va="center_baseline", fontsize=ems(0.74), color=MUTED)
    return drawn


def sentence(frame: Frame) -> str:
    """The groups that features keep most and least often, and where they go instead."""
    frame, method = first_method(frame)
    found = frame.lookup("group_a", "group_b")
    stay = {group: p for group in GROUPS if (p := found[group, group].number("probability")) is not None}
    if not stay:
        return ""
    low, high = min(stay, key=stay.__getitem__), max(stay, key=stay.__getitem__)
    text = (
        f"A feature seen in {high} is in the same group in another context with probability {percent(stay[high])}, "
        f"one seen in {low} with {percent(stay[low])}{method}"
    )
    away = [(p, group) for group in GROUPS if group != high and (p := found[high, group].number("probability"))]
    if away:
        text += f"; out of {high} it most often goes to {max(away)[1]} ({percent(max(away)[0])})"
    return f"{text}."


# --- claims -----------------------------------------------------------------------------------------------------------


_BLOCKS: Final = 500


@once
def _contexts(run: OriginsRun) -> Tally:
    """Sums by block of features, (8, 9): observations of group a by the group b of another, and all of group a.

    The claims are about features, so these are the sampling units, in blocks by a remainder of their number.
    """
    groups = run.groups(COSINE)
    features, which = np.unique(run.seen[["layer", "feature"]].to_numpy(), axis=0, return_inverse=True)
    which = which.reshape(-1)
    counts = np.bincount(which * 8 + groups, minlength=len(features) * 8).reshape(-1, 8).astype(np.float64)
    often = counts.sum(1) > 1
    if not often.any():
        raise NotMeasured("No feature was seen twice.")
    counts, blocks = counts[often], (features[often, 0] * 31 + features[often, 1]) % _BLOCKS
    others = counts.sum(1) - 1
    pairs = counts[:, :, None] * (counts[:, None, :] - np.eye(8)) / others[:, None, None]
    each = np.concatenate([pairs, counts[:, :, None]], -1)
    used, blocks = np.unique(blocks, return_inverse=True)
    sums = np.zeros((len(used), 8, 9))
    np.add.at(sums, blocks.reshape(-1), each)
    return Tally(sums)


def _goes(x: np.ndarray) -> np.ndarray:
    """Probability of group b after group a, (cases, a, b); NaN where a case has no group a."""
    with np.errstate(invalid="ignore"):
        return x[..., :8] / x[..., 8:]


def claim_context(run: OriginsRun) -> list[ClaimNumber]:
    """A feature is in another group in another context more often than once in ten."""
    tally = _contexts(run)

    def moved(x: np.ndarray) -> np.ndarray:
        return 1 - np.einsum("kaa->k", x[..., :8]) / x[..., 8].sum(-1)

    n = float(tally.sums[..., 8].sum())
    words = "pairs of observations of one feature that are in two groups"
    return [ClaimNumber(words, tally.estimate(moved, n=n, span=RATE), Rule("above", 0.1), "share")]


def claim_nowhere(run: OriginsRun) -> list[ClaimNumber]:
    """Features of other groups go to nowhere more often than to any other group, averaged over groups."""
    tally = _contexts(run)

    def into(x: np.ndarray) -> np.ndarray:
        return known_mean(np.where(np.eye(8, dtype=bool), np.nan, _goes(x)), 1)

    now = tally.now(into)
    other = 1 + int(np.nan_to_num(now[1:]).argmax())
    beside = f"nowhere {in_percent(now[0])}, {GROUPS[other]} {in_percent(now[other])}"
    found = tally.estimate(
        lambda x: into(x)[:, 0] - into(x)[:, 1:].max(-1), n=float(tally.sums[..., 8].sum()), span=GAP
    )
    words = "mean probability to go to nowhere less that to the next likely group"
    return [ClaimNumber(words, found, ABOVE_0, beside=beside)]


def claim_attention(run: OriginsRun) -> list[ClaimNumber]:
    """A feature in From ATT goes to From RES & ATT more often than to any other group."""
    tally = _contexts(run)
    rest = [value for value in range(8) if value not in (ATT, RES_ATT)]
    goes = tally.now(_goes)[ATT]
    other = rest[int(np.nan_to_num(goes[rest]).argmax())]
    there, elsewhere = in_percent(goes[RES_ATT]), in_percent(goes[other])
    beside = f"{there} to RES & ATT (the paper's Gemma: 45 %), {elsewhere} to {GROUPS[other]}"
    sizes = tally.sums[:, ATT, 8]
    found = tally.estimate(
        lambda x: _goes(x)[:, ATT, RES_ATT] - _goes(x)[:, ATT][:, rest].max(-1),
        n=float(sizes.sum()),
        span=GAP,
        sizes=sizes,
    )
    words = "probability to go from ATT to RES & ATT less that to the next likely group"
    return [ClaimNumber(words, found, ABOVE_0, beside=beside)]


DRAWINGS: Final = {"transition": Drawing(figure, sentence, ("group_a", "group_b", "probability"), each=("method",))}
