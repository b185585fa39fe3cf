"""Helpers for figures, sentences and claims of origins: data sets, groups, scores, and tests that tell groups apart.

The shares of groups are shares of a layer's active features. In claims, a part of the model is the mean over its
layers, so that every layer counts the same. Nothing is edited here, so there are no controls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np

from saeflow.experiments.groups import ALL
from saeflow.experiments.origins_tables import SCORE_NAMES
from saeflow.experiments.statistics import GAP, Tally
from saeflow.paper.evidence import OriginsRun
from saeflow.paper.frame import GROUPS, Frame, FrameRow, Interval, in_order
from saeflow.paper.verdicts import ABOVE_0, ClaimNumber, NotMeasured, Rule, in_percent
from saeflow.paper.words import count

OWN_SCORES: Final = tuple((part.name, name) for part, name in SCORE_NAMES.items())
SCORES: Final = tuple(SCORE_NAMES.values())
_SHORT = {"nowhere": "none", "RES": "R", "MLP": "M", "ATT": "A"}


def first_method(frame: Frame) -> tuple[Frame, str]:
    """The rows of cosine, or else of the first method, and that method's name in words."""
    methods = frame.distinct("method")
    if not methods:
        return frame, ""
    name = in_order(methods, ("cosine",))[0]
    return frame.where(method=name), f" under {name}"


def shares_of(frame: Frame, **where: str) -> dict[str, Interval]:
    """The shares of the groups, from the rows with these words."""
    rows = frame.where(**where).records
    return {r.words("group"): e for r in rows if r.words("group") in GROUPS and (e := r.estimate("share"))}


def largest_of(shares: Mapping[str, Interval]) -> str:
    """The group with the largest share."""
    return max(shares, key=lambda group: shares[group].value)


def every_of(frame: Frame) -> str:
    """All data sets together if the table has them, or else its first data set."""
    datasets = frame.distinct("dataset")
    return in_order(datasets, (ALL,))[0] if datasets else ""


def short(group: str) -> str:
    """A group in few letters, for the head of a narrow column: `RM` for RES & MLP."""
    return _SHORT.get(group) or "".join(_SHORT.get(part, part) for part in group.split(" & "))


def share_tested(row: FrameRow) -> float | None:
    """The share of tests that passed; None without tests."""
    return row.number("share") if row.count("tests") else None


def tests_passed(row: FrameRow) -> str:
    """`12 of 40 tests`, for tooltips."""
    if not row.count("tests"):
        return "no test"
    return f"{count(row.number('passed'))} of {count(row.number('tests'))} tests"


def name_of(dataset: str) -> str:
    """The name of a data set on a figure."""
    return "all datasets" if dataset == ALL else dataset


# --- claims -----------------------------------------------------------------------------------------------------------

COSINE, PEARSON = "cosine", "pearson"
NOWHERE, RES, MLP, ATT, RES_MLP, RES_ATT, MLP_ATT, EVERY_PART = range(8)
"""Indices of the groups in the order of every table."""
WITH_ATT: Final = [ATT, RES_ATT, MLP_ATT, EVERY_PART]
WITH_MLP: Final = [MLP, RES_MLP, MLP_ATT, EVERY_PART]
Totals: TypeAlias = np.ndarray
"""Counts of shape (cases, layers, data sets, 8 groups)."""


def thirds(n_layers: int) -> tuple[range, range, range]:
    """The three parts of section 5.1 and C.1: for 32 layers as printed for Llama, else at Gemma's relative depths.

    Gemma (26 layers): 0 to 5, 6 to 15, 16 to 25. Llama (32 layers): 0 to 8, 9 to 16, 17 to 31.
    """
    first, second = (9, 17) if n_layers == 32 else (-(-n_layers * cut // 26) for cut in (6, 16))
    return range(first), range(first, second), range(second, n_layers)


class GroupShares:
    """Counts of the eight groups by layer and data set under one method, and claims on their shares."""

    def __init__(self, run: OriginsRun, method: str = COSINE) -> None:
        """Count the groups under a method.

        Raises:
            NotMeasured: when the run did not use the method.
        """
        layer, dataset = (run.seen[name].to_numpy() for name in ("layer", "dataset"))
        (text, of_text), self.datasets, self.n = run.texts, run.datasets, len(run.seen)
        self.layers = np.unique(layer).tolist()
        shape = (len(of_text), len(self.layers), len(self.datasets), 8)
        counts = np.zeros(shape)
        of_set = np.array([self.datasets.index(name) for name in dataset])
        np.add.at(counts, (text, np.searchsorted(self.layers, layer), of_set, run.groups(method)), 1.0)
        self.tally = Tally(counts, of_text)

    def places(self, layers: Sequence[int], what: str) -> list[int]:
        """Indices of these layers among those measured.

        Raises:
            NotMeasured: when none of them was measured.
        """
        found = [self.layers.index(layer) for layer in layers if layer in self.layers]
        if not found:
            raise NotMeasured(f"No layer of the {what} was measured.")
        return found

    def parts(self) -> tuple[list[int], list[int], list[int]]:
        """Indices of the layers in the first, the middle and the last part."""
        first, middle, last = thirds(max(self.layers) + 1)
        return (self.places(first, "first part"), self.places(middle, "middle part"), self.places(last, "last part"))

    def named(self, places: Sequence[int]) -> str:
        """Layers in words: "layers 4 to 5"."""
        layers = [self.layers[place] for place in places]
        return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"

    def mean(self, x: Totals, places: Sequence[int], groups: Sequence[int]) -> np.ndarray:
        """Mean over layers of the share of some groups, all data sets together."""
        return by_layer(x)[:, places][..., list(groups)].sum(-1).mean(-1)

    def less(
        self, groups: Sequence[int], a: Sequence[int], b: Sequence[int], rule: Rule, what: str, *, sides: str = ""
    ) -> ClaimNumber:
        """The share of some groups at layers `a` less that at `b`; `sides` formats share and layers of each side."""
        each = [(self.tally.now(lambda x, p=p: self.mean(x, p, groups)), self.named(p)) for p in (a, b)]
        beside = " against ".join(sides.format(in_percent(float(now)), name) for now, name in each) if sides else ""
        words = f"share of {what} in {self.named(a)} less that in {self.named(b)}"
        return self.finding(lambda x: self.mean(x, a, groups) - self.mean(x, b, groups), words, rule, beside)

    def finding(
        self, of: Callable[[Totals], np.ndarray], words: str, rule: Rule = ABOVE_0, beside: str = ""
    ) -> ClaimNumber:
        """The finding `of(totals)`, a difference of shares."""
        return ClaimNumber(words, self.tally.estimate(of, n=self.n, span=GAP), rule, beside=beside)


def by_layer(x: Totals) -> np.ndarray:
    """Shares of groups by layer, all data sets together."""
    counts = x.sum(2)
    return counts / counts.sum(-1, keepdims=True)


def overall(x: Totals) -> np.ndarray:
    """Shares of groups, all layers and data sets together, as in figure 12a."""
    counts = x.sum((1, 2))
    return counts / counts.sum(-1, keepdims=True)
