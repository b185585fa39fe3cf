"""Claims of sections 5.1, 6, 8, C.1, C.4 and D: where active features come from (figures 5, 12a, 18, 19).

Shares of groups are those of the active features of a layer, and a part of the model is the mean of its layers, so that
a layer counts as much as another. Nothing is edited here, hence no control.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from saeflow.experiments.groups import LABELS, ORDER, PARTS, Origin
from saeflow.experiments.statistics import GAP, RATE, Tally, by_text, known_mean
from saeflow.ids import Part
from saeflow.reproduce.evidence import OriginsRun
from saeflow.reproduce.verdicts import ABOVE_0, BELOW_0, Contrast, Kind, NotMeasured, Rule, Unit

COSINE, PEARSON = "cosine", "pearson"
SCORE: Final = {Part.RES: "s(R)", Part.MLP: "s(M)", Part.ATT: "s(A)"}
RES, MLP, ATT = (Origin[part.name].value for part in PARTS)
BINS: Final = 50
BLOCKS: Final = 500
GEMMA, LLAMA = 26, 32
Totals = np.ndarray
"""Cases by layers by data sets by the eight groups."""


def thirds(n_layers: int) -> tuple[range, range, range]:
    """The three parts of section 5.1 and C.1: of Gemma's 26 and Llama's 32 layers as printed, else by Gemma's depths.

    Gemma: 0 to 5, 6 to 15, 16 to 25. Llama: 0 to 8, 9 to 16, 17 to 31.
    """
    if n_layers == LLAMA:
        first, second = 9, 17
    else:
        first, second = (-(-n_layers * cut // GEMMA) for cut in (6, 16))
    return range(first), range(first, second), range(second, n_layers)


class Shares:
    """Counts of the eight groups by layer and data set under one method."""

    def __init__(self, run: OriginsRun, method: str) -> None:
        """Of a method there is.

        Raises:
            NotMeasured: when the run did not use it.
        """
        self.layers = run.layers
        self.datasets = run.datasets
        shape = (len(self.layers), len(run.datasets), 8)
        code = (np.searchsorted(self.layers, run.layer) * shape[1] + run.dataset) * 8 + groups_of(run, method)
        counts = by_text(run.texts[0], code, np.ones(len(code)), (len(run.texts[1]), int(np.prod(shape))))
        self.tally = Tally(counts.reshape(-1, *shape), run.texts[1])
        self.n = len(run.feature)

    def places(self, layers: Sequence[int], what: str) -> list[int]:
        """Where these layers are.

        Raises:
            NotMeasured: when none of them was measured.
        """
        found = [self.layers.index(layer) for layer in layers if layer in self.layers]
        if not found:
            raise NotMeasured(f"No layer of the {what} was measured.")
        return found

    def parts(self) -> tuple[list[int], list[int], list[int]]:
        """Places of the first, the middle and the last part."""
        first, middle, last = thirds(max(self.layers) + 1)
        return (self.places(first, "first part"), self.places(middle, "middle part"), self.places(last, "last part"))

    def now(self, places: Sequence[int], groups: Sequence[int]) -> float:
        """Mean over layers of the share of some groups, in the data themselves."""
        return float(self.tally.now(lambda x: mean_share(x, places, groups)))

    def named(self, places: Sequence[int]) -> str:
        """Layers in words: "layers 4 to 5"."""
        layers = [self.layers[place] for place in places]
        return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"


def groups_of(run: OriginsRun, method: str) -> np.ndarray:
    """The group of every observation under a method.

    Raises:
        NotMeasured: when the run did not use it.
    """
    if method not in run.seen:
        raise NotMeasured(f"Matching by {method} was not run.")
    return np.array(ORDER)[run.seen[method].cat.codes]


def pooled(x: Totals) -> np.ndarray:
    """Shares of groups by layer, all data sets together."""
    counts = x.sum(2)
    return counts / counts.sum(-1, keepdims=True)


def mean_share(x: Totals, places: Sequence[int], groups: Sequence[int]) -> np.ndarray:
    """Mean over layers of the share of some groups."""
    return pooled(x)[:, places][..., list(groups)].sum(-1).mean(-1)


def percent(value: float) -> str:
    """A share in words."""
    return f"{100 * value:.1f} %"


def between_parts(run: OriginsRun, groups: Sequence[int], a: int, b: int, rule: Rule, what: str) -> list[Contrast]:
    """The share of some groups in one part of the model less that in another."""
    shares = Shares(run, COSINE)
    parts = shares.parts()
    one, two = parts[a], parts[b]
    found = shares.tally.told(lambda x: mean_share(x, one, groups) - mean_share(x, two, groups), n=shares.n, span=GAP)
    sides = [f"{percent(shares.now(p, groups))} in {shares.named(p)}" for p in (one, two)]
    words = f"share of {what} in {shares.named(one)} less that in {shares.named(two)}"
    return [Contrast(words, found, rule, beside=" against ".join(sides))]


WITH_ATT: Final = [value for value in range(8) if value & ATT]
WITH_MLP: Final = [value for value in range(8) if value & MLP]
NEWBORN: Final = [MLP, ATT, MLP | ATT]


# --- figures 5, 12a, 19: shares ---------------------------------------------------------------------------------------


def fig5_res_rises(run: OriginsRun) -> list[Contrast]:
    """From RES is larger in the last part than in the middle one."""
    return between_parts(run, [RES], 2, 1, ABOVE_0, "From RES")


def fig5_fewer_new(run: OriginsRun) -> list[Contrast]:
    """Groups of modules alone, newborn features, are smaller in the last part."""
    return between_parts(run, NEWBORN, 2, 1, BELOW_0, "From MLP, ATT, MLP & ATT")


def gpt2_nowhere(run: OriginsRun) -> list[Contrast]:
    """Nowhere grows in later layers."""
    return between_parts(run, [0], 2, 1, ABOVE_0, "From nowhere")


def fig5_mlp_falls(run: OriginsRun) -> list[Contrast]:
    """From MLP is smaller after seven tenths of the layers (18 of 25 in Gemma) than in the three before."""
    shares = Shares(run, COSINE)
    last = max(shares.layers)
    bump = round(18 / 25 * last)
    before = shares.places(range(round(16 / 25 * last), bump + 1), "layers before the fall")
    after = shares.places(range(bump + 1, last + 1), "layers after the fall")
    found = shares.tally.told(
        lambda x: mean_share(x, after, [MLP]) - mean_share(x, before, [MLP]), n=shares.n, span=GAP
    )
    words = f"share of From MLP in {shares.named(after)} less that in {shares.named(before)}"
    return [Contrast(words, found, BELOW_0)]


def _early(shares: Shares) -> list[int]:
    """The first part without layer 0, which has no residual predecessor, so that its shares cannot be compared."""
    first = [place for place in shares.parts()[0] if shares.layers[place] > 0]
    if not first:
        raise NotMeasured("The first part is layer 0 alone, which has no residual predecessor.")
    return first


def fig5_uncertain_early(run: OriginsRun) -> list[Contrast]:
    """Nowhere is larger in the first part than after it."""
    shares = Shares(run, COSINE)
    first, (_, middle, last) = _early(shares), shares.parts()
    rest = middle + last
    found = shares.tally.told(lambda x: mean_share(x, first, [0]) - mean_share(x, rest, [0]), n=shares.n, span=GAP)
    beside = " against ".join(percent(shares.now(p, [0])) for p in (first, rest))
    words = f"share of nowhere in {shares.named(first)} less that in {shares.named(rest)}"
    return [Contrast(words, found, ABOVE_0, beside=beside)]


def fig5_settles(run: OriginsRun) -> list[Contrast]:
    """The groups change more from layer to layer in the first part than in the middle."""
    shares = Shares(run, COSINE)
    early = _early(shares)
    middle = [place for place in shares.parts()[1] if place + 1 < len(shares.layers)]
    if not middle:
        raise NotMeasured("The middle part has no layer that is followed by another.")

    def steps(x: Totals, places: Sequence[int]) -> np.ndarray:
        p = pooled(x)
        return np.stack([np.abs(p[:, i + 1] - p[:, i]).sum(-1) / 2 for i in places], -1).mean(-1)

    found = shares.tally.told(lambda x: steps(x, early) - steps(x, middle), n=shares.n, span=GAP)
    words = (
        f"share of features that would have to change group from a layer to the next, in {shares.named(early)} less "
        f"that in {shares.named(middle)}"
    )
    return [Contrast(words, found, ABOVE_0)]


def fig5_datasets(run: OriginsRun) -> list[Contrast]:
    """Data sets differ more in the last part than before."""
    shares = Shares(run, COSINE)
    if len(shares.datasets) < 2:
        raise NotMeasured("There is one data set only.")
    first, middle, last = shares.parts()

    def apart(x: Totals, places: Sequence[int]) -> np.ndarray:
        p = x / x.sum(-1, keepdims=True)
        each = [
            np.abs(p[:, places, i] - p[:, places, j]).sum(-1) / 2
            for i, j in itertools.combinations(range(len(shares.datasets)), 2)
        ]
        return known_mean(np.stack(each, -1), (1, 2))

    found = shares.tally.told(lambda x: apart(x, last) - apart(x, first + middle), n=shares.n, span=GAP)
    words = f"distance between two data sets in {shares.named(last)} less that in {shares.named(first + middle)}"
    return [Contrast(words, found, ABOVE_0)]


def every_layer(
    run: OriginsRun, method: str, of: Callable[[np.ndarray], np.ndarray]
) -> tuple[Shares, Callable[[Totals], np.ndarray]]:
    """Shares of all layers and data sets together, as figure 12a has them, under `of`."""
    shares = Shares(run, method)

    def told(x: Totals) -> np.ndarray:
        counts = x.sum((1, 2))
        return of(counts / counts.sum(-1, keepdims=True))

    return shares, told


def fig12_nowhere(run: OriginsRun) -> list[Contrast]:
    """Nowhere is the largest of all groups."""
    shares, told = every_layer(run, COSINE, lambda p: p[:, 0] - p[:, 1:].max(-1))
    total = shares.tally.sums.sum((0, 1, 2))
    other = 1 + int(total[1:].argmax())
    beside = f"nowhere {percent(total[0] / total.sum())}, {LABELS[other]} {percent(total[other] / total.sum())}"
    found = shares.tally.told(told, n=shares.n, span=GAP)
    return [Contrast("share of nowhere less that of the largest other group", found, ABOVE_0, beside=beside)]


def attention(run: OriginsRun, rule: Rule) -> list[Contrast]:
    """Groups with attention against groups with the MLP."""
    shares, told = every_layer(run, COSINE, lambda p: p[:, WITH_ATT].sum(-1) - p[:, WITH_MLP].sum(-1))
    total = shares.tally.sums.sum((0, 1, 2))
    sides = [percent(float(total[groups].sum() / total.sum())) for groups in (WITH_ATT, WITH_MLP)]
    found = shares.tally.told(told, n=shares.n, span=GAP)
    words = "share of the groups with attention less that of the groups with the MLP"
    return [Contrast(words, found, rule, beside=" against ".join(sides))]


def attention_rare(run: OriginsRun) -> list[Contrast]:
    """Groups with attention are rarer than groups with the MLP."""
    return attention(run, BELOW_0)


def attention_prevails(run: OriginsRun) -> list[Contrast]:
    """Groups with attention are more frequent than groups with the MLP."""
    return attention(run, ABOVE_0)


def described(run: OriginsRun) -> list[Contrast]:
    """Most active features have an active predecessor."""
    shares, told = every_layer(run, COSINE, lambda p: 1 - p[:, 0])
    found = shares.tally.told(told, n=shares.n, span=RATE)
    return [Contrast("active features with an active predecessor", found, Rule(Kind.ABOVE, 0.5), Unit.SHARE)]
