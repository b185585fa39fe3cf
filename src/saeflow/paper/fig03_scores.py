"""Figure 3 (and 12b, 19c): how the three scores are distributed in each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.experiments.groups import PARTS
from saeflow.experiments.origins_tables import SCORE_NAMES
from saeflow.experiments.statistics import RATE, Tally, by_text, known_mean, ratio
from saeflow.ids import Part
from saeflow.paper.evidence import OriginsRun
from saeflow.paper.frame import GROUPS, Frame, FrameRow, in_order
from saeflow.paper.kinds import Drawing, tip
from saeflow.paper.origins import COSINE, MLP, NOWHERE, OWN_SCORES, RES, SCORES, first_method
from saeflow.paper.style import INK, MUTED, PAPER, RULE, Medium, colour, ems, panels, title, value_axis
from saeflow.paper.verdicts import ABOVE_0, ClaimNumber, NotMeasured, Rule
from saeflow.paper.words import count, decimal

_BINS = 40


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw how the three scores are distributed in each group (fig. 3, 12b, 19c): ridges of histograms with medians.

    Rows of panels are all layers together and two single ones; on a narrow medium all layers only. Each ridge is scaled
    to its own fullest bin, so that rare groups can be read too; n stands beside the names.
    """
    columns, groups = in_order(frame.distinct("score"), SCORES), frame.groups()
    every = ("all",) if "all" in frame.distinct("layer") else ()
    layers = tuple(str(n) for n in chosen_layers(frame.layers()))
    shown = (every + layers if medium.wide or not every else every) or frame.distinct("layer")[:1]
    found = frame.lookup("layer", "score", "group")
    across = len(columns) if medium.wide else 1
    drawn, places = panels(medium, caption, len(shown) * len(columns), 1.7 * len(groups) + 1.0, across=across, over=3.2)
    # most scores lie above 0: the axis starts at the lowest bin that is not empty
    filled = [i for row in frame.records for i, n in enumerate(row.numbers("histogram")) if n > 0]
    lowest = min(0.0, round(min(filled, default=_BINS // 2) * 2 / _BINS - 1, 6))
    for number, axes in enumerate(places):
        layer, score = shown[number // len(columns)], columns[number % len(columns)]
        first, names = number % across == 0, list[str]()
        for i, group in enumerate(groups):
            base, row = len(groups) - 1 - i, found[layer, score, group]
            axes.axhline(base, color=RULE, lw=ems(0.05), zorder=1 + i)
            n = count(row.number("n"))
            names.append(f"{group}   {n}" if first else n)
            if row:
                _ridge(axes, base, row, group, 2 + i)
        axes.set_ylim(0, len(groups) + 0.6)
        value_axis(axes, "x", lowest, 1.0, most=5)
        axes.set_yticks([len(groups) - 1 - i + 0.2 for i in range(len(groups))], names)
        axes.tick_params(axis="y", labelcolor=INK if first else MUTED, labelsize=ems(0.82 if first else 0.74))
        title(axes, score, "all layers" if layer == "all" else f"layer {layer}")
    return drawn


def chosen_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """Two layers at a third and two thirds of the depth: 8 and 17 of 26, where the paper's figure 12b has 8 and 18."""
    if len(layers) <= 2:
        return tuple(layers)
    at = dict.fromkeys(round(i * (len(layers) - 1) / 3) for i in (1, 2))
    return tuple(layers[i] for i in at)


def _ridge(axes: Axes, base: float, row: FrameRow, group: str, order: int) -> None:
    """Draw a histogram scaled to its fullest bin, with its median."""
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
        for tone, wide in ((PAPER, 0.34), (INK, 0.16)):  # visible on the darkest ridge too
            axes.plot((middle, middle), (base - 0.16, base + 0.16), color=tone, lw=ems(wide), zorder=order + 0.5)


def sentence(frame: Frame) -> str:
    """The median of each score in the group of its own part, and in nowhere."""
    frame, method = first_method(frame)
    layer = "all" if "all" in frame.distinct("layer") else (frame.distinct("layer") or ("",))[0]
    found = frame.where(layer=layer).lookup("score", "group")
    phrases: list[str] = []
    for group, score in OWN_SCORES:
        own, none = (found[score, where].number("median") for where in (group, "nowhere"))
        if own is not None and none is not None:
            phrases.append(f"{score} is {decimal(own)} in {group} and {decimal(none)} in nowhere")
    where = "" if layer == "all" else f" at layer {layer}"
    return f"The median of {', '.join(phrases)}{method}{where}." if phrases else ""


# --- claims -----------------------------------------------------------------------------------------------------------


_RANKS: Final = 50
"""Number of bins over [-1, 1] by which scores are ranked."""


def _between(run: OriginsRun, part: Part, a: int, b: int) -> ClaimNumber:
    """Mean score of a part in one group less that in another."""
    (text, datasets), groups, scores = run.texts, run.groups(COSINE), run.matches.of_each(run.seen, COSINE, part)
    known, shape = np.isfinite(scores), (len(datasets), 8)
    both = [by_text(text[known], groups[known], v, shape) for v in (scores[known], np.ones(int(known.sum())))]
    tally = Tally(np.stack(both, -1)[:, [a, b]], datasets)
    found = tally.of_means(lambda means: means[:, 0] - means[:, 1])
    one, two = tally.now(ratio).tolist()
    words = f"mean {SCORE_NAMES[part]} in From {GROUPS[a]} less that in From {GROUPS[b]}"
    return ClaimNumber(words, found, ABOVE_0, "number", beside=f"{one:.3f} against {two:.3f}")


def claim_groups(run: OriginsRun) -> list[ClaimNumber]:
    """High s(M) and low s(R) go with an MLP predecessor, and the other way round."""
    return [_between(run, Part.MLP, MLP, RES), _between(run, Part.RES, RES, MLP)]


def claim_above_nowhere(run: OriginsRun) -> list[ClaimNumber]:
    """Each group of one part has a higher score of that part than nowhere."""
    known = [part for part in PARTS if np.isfinite(run.matches.of_each(run.seen, COSINE, part)).any()]
    return [_between(run, part, GROUPS.index(part.name), NOWHERE) for part in known]


def claim_proxy(run: OriginsRun) -> list[ClaimNumber]:
    """A score tells whether the matched predecessor is active: area under the curve, within layers."""
    text, datasets = run.texts
    layer, group = run.seen["layer"].to_numpy(), run.seen[COSINE].astype(str)
    layers, layer = np.unique(layer, return_inverse=True)
    found: list[ClaimNumber] = []
    for part in PARTS:
        scores = run.matches.of_each(run.seen, COSINE, part)
        known = np.isfinite(scores)
        if not known.any():
            continue
        bins = np.clip(((scores[known] + 1) / 2 * _RANKS).astype(np.int64), 0, _RANKS - 1)
        on = group[known].str.contains(part.name, regex=False).to_numpy().astype(np.int64)
        sums = np.zeros((len(datasets), len(layers), 2, _RANKS))
        np.add.at(sums, (text[known], layer[known], on, bins), 1.0)
        tally = Tally(sums, datasets)
        estimate = tally.estimate(auc, n=float(known.sum()), span=RATE)
        words = f"area under the curve of {SCORE_NAMES[part]} for an active {part.name} predecessor"
        found.append(ClaimNumber(words, estimate, Rule("above", 0.5), "level", beside="0.5 is chance"))
    if not found:
        raise NotMeasured("No score is known.")
    return found


def auc(x: np.ndarray) -> np.ndarray:
    """Probability that an active case scores above an inactive one, ties counting half; mean over layers with both.

    `x` has the axes cases, layers, (inactive, active), bins.
    """
    off, on = x[:, :, 0], x[:, :, 1]
    below = np.cumsum(off, -1) - off / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return known_mean((on * below).sum(-1) / (on.sum(-1) * off.sum(-1)), -1)


DRAWINGS: Final = {"scores": Drawing(figure, sentence, ("layer", "group", "score"), each=("method",))}
