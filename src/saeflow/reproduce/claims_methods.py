"""Claims of C.1 and C.4: one feature in several contexts (figure 13), and cosine beside Pearson (figure 18)."""

from __future__ import annotations

from typing import Final

import numpy as np

from saeflow.experiments.groups import LABELS, PARTS
from saeflow.experiments.sampling import PYTHON
from saeflow.experiments.statistics import GAP, RATE, Tally, by_text, known_mean
from saeflow.ids import Part
from saeflow.reproduce.claims_origins import ATT, BLOCKS, COSINE, PEARSON, RES, WITH_ATT, groups_of, percent
from saeflow.reproduce.evidence import OriginsRun
from saeflow.reproduce.verdicts import ABOVE_0, Contrast, Kind, NotMeasured, Rule, Unit

ON_PAR: Final = 0.05
"""Methods whose shares differ by less than this are on par: five percentage points."""


# --- figure 13: one feature in several contexts -----------------------------------------------------------------------


def contexts(run: OriginsRun) -> Tally:
    """For each block of features: observations of group a with another of group b, and of group a: 8 by 9.

    The statement is of features, so features are drawn, in blocks: those of one remainder of their number.
    """
    groups = groups_of(run, COSINE)
    features, which = np.unique(np.stack([run.layer, run.feature], 1), axis=0, return_inverse=True)
    which = which.reshape(-1)
    counts = np.bincount(which * 8 + groups, minlength=len(features) * 8).reshape(-1, 8).astype(np.float64)
    often = counts.sum(1) > 1
    if not often.any():
        raise NotMeasured("No feature was seen twice.")
    counts, blocks = counts[often], (features[often, 0] * 31 + features[often, 1]) % BLOCKS
    others = counts.sum(1) - 1
    pairs = counts[:, :, None] * (counts[:, None, :] - np.eye(8)) / others[:, None, None]
    each = np.concatenate([pairs, counts[:, :, None]], -1)
    used, blocks = np.unique(blocks, return_inverse=True)
    sums = np.zeros((len(used), 8, 9))
    np.add.at(sums, blocks.reshape(-1), each)
    return Tally(sums)


def _goes(x: np.ndarray) -> np.ndarray:
    """Probability of group b after group a: cases by a by b; NaN after a group that a case has none of."""
    with np.errstate(invalid="ignore"):
        return x[..., :8] / x[..., 8:]


def fig13_context(run: OriginsRun) -> list[Contrast]:
    """A feature is in another group in another context, more often than once in ten."""
    tally = contexts(run)

    def moved(x: np.ndarray) -> np.ndarray:
        stay = np.einsum("kaa->k", x[..., :8])
        return 1 - stay / x[..., 8].sum(-1)

    n = float(tally.sums[..., 8].sum())
    words = "pairs of observations of one feature that are in two groups"
    return [Contrast(words, tally.told(moved, n=n, span=RATE), Rule(Kind.ABOVE, 0.1), Unit.SHARE)]


def fig13_nowhere(run: OriginsRun) -> list[Contrast]:
    """Features of other groups go to nowhere more often than to any other group, in the mean over groups."""
    tally = contexts(run)

    def into(x: np.ndarray) -> np.ndarray:
        away = np.where(np.eye(8, dtype=bool), np.nan, _goes(x))
        return known_mean(away, 1)

    into_each = tally.now(into)
    other = 1 + int(np.nan_to_num(into_each[1:]).argmax())
    beside = f"nowhere {percent(into_each[0])}, {LABELS[other]} {percent(into_each[other])}"
    found = tally.told(lambda x: into(x)[:, 0] - into(x)[:, 1:].max(-1), n=float(tally.sums[..., 8].sum()), span=GAP)
    words = "mean probability to go to nowhere less that to the next likely group"
    return [Contrast(words, found, ABOVE_0, beside=beside)]


def fig13_attention(run: OriginsRun) -> list[Contrast]:
    """Out of From ATT a feature goes to From RES & ATT more often than to any other group."""
    tally = contexts(run)
    rest = [value for value in range(8) if value not in (ATT, ATT | RES)]
    goes = tally.now(_goes)[ATT]
    other = rest[int(np.nan_to_num(goes[rest]).argmax())]
    there, elsewhere = percent(goes[ATT | RES]), percent(goes[other])
    beside = f"{there} to RES & ATT (the paper's Gemma: 45 %), {elsewhere} to {LABELS[other]}"
    found = tally.told(
        lambda x: _goes(x)[:, ATT, ATT | RES] - _goes(x)[:, ATT][:, rest].max(-1),
        n=float(tally.sums[:, ATT, 8].sum()),
        span=GAP,
        sizes=tally.sums[:, ATT, 8],
    )
    words = "probability to go from ATT to RES & ATT less that to the next likely group"
    return [Contrast(words, found, ABOVE_0, beside=beside)]


# --- figure 18: cosine and Pearson ------------------------------------------------------------------------------------


class Methods:
    """Counts of the groups under cosine and Pearson on the same observations: methods by data sets by groups."""

    def __init__(self, run: OriginsRun) -> None:
        """Of a run with both.

        Raises:
            NotMeasured: when one is missing.
        """
        self.datasets, self.new = run.datasets, run.new_to_pearson
        shape = (len(run.texts[1]), len(run.datasets) * 8)
        columns = [
            by_text(run.texts[0], run.dataset * 8 + groups_of(run, method), np.ones(len(run.feature)), shape)
            for method in (COSINE, PEARSON)
        ]
        sums = np.stack(columns, 1).reshape(shape[0], 2, -1, 8)
        self.tally, self.n = Tally(sums, run.texts[1]), len(run.feature)

    def places(self, *, new: bool) -> list[int]:
        """The data sets that Pearson's tables had seen, or those that are new to it.

        Raises:
            NotMeasured: when there are none.
        """
        found = [place for place, name in enumerate(self.datasets) if (name in self.new) == new]
        if not found:
            kind = "new to" if new else "seen by"
            raise NotMeasured(f"No data set is {kind} the Pearson tables.")
        return found

    def contrast(self, places: list[int], groups: list[int], rule: Rule, what: str) -> Contrast:
        """The share of some groups under Pearson less that under cosine."""

        def share(x: np.ndarray) -> np.ndarray:
            counts = x[:, :, places].sum(2)
            return counts[..., groups].sum(-1) / counts.sum(-1)

        cosine, pearson = self.tally.now(share).tolist()
        sizes = self.tally.sums[:, 0, places].sum((1, 2))
        found = self.tally.told(lambda x: share(x)[:, 1] - share(x)[:, 0], n=float(sizes.sum()), span=GAP, sizes=sizes)
        where = ", ".join(self.datasets[place] for place in places)
        words = f"{what} by Pearson less that by cosine, on {where}"
        return Contrast(words, found, rule, beside=f"{percent(pearson)} against {percent(cosine)}")


def fig18_nowhere(run: OriginsRun) -> list[Contrast]:
    """Pearson has less nowhere, on data like that its tables were made on."""
    methods = Methods(run)
    return [methods.contrast(methods.places(new=False), [0], Rule(Kind.BELOW), "share of nowhere")]


def fig18_python(run: OriginsRun) -> list[Contrast]:
    """Pearson has more nowhere on Python code, new to its tables."""
    methods = Methods(run)
    places = [place for place in methods.places(new=True) if methods.datasets[place] in PYTHON]
    if not places:
        raise NotMeasured(f"No data set of Python code is new to the Pearson tables ({', '.join(PYTHON)}).")
    return [methods.contrast(places, [0], ABOVE_0, "share of nowhere")]


def fig18_attention(run: OriginsRun) -> list[Contrast]:
    """Pearson finds more attention predecessors."""
    methods = Methods(run)
    every = list(range(len(methods.datasets)))
    return [methods.contrast(every, WITH_ATT, ABOVE_0, "share of features with an attention predecessor")]


def fig18_par(run: OriginsRun) -> list[Contrast]:
    """Over all data both find about as many predecessors."""
    methods = Methods(run)
    every = list(range(len(methods.datasets)))
    return [methods.contrast(every, [0], Rule(Kind.WITHIN, ON_PAR), "share of nowhere")]


def fig18_datasets(run: OriginsRun) -> list[Contrast]:
    """Under Pearson the shares depend more on the data set."""
    methods = Methods(run)
    if len(methods.datasets) < 2:
        raise NotMeasured("There is one data set only.")

    def apart(x: np.ndarray) -> np.ndarray:
        """Mean distance of data sets from their mean: cases by methods."""
        p = x / x.sum(-1, keepdims=True)
        return (np.abs(p - p.mean(2, keepdims=True)).sum(-1) / 2).mean(-1)

    beside = " against ".join(percent(value) for value in methods.tally.now(apart)[::-1].tolist())
    found = methods.tally.told(lambda x: apart(x)[:, 1] - apart(x)[:, 0], n=methods.n, span=GAP)
    words = "distance of data sets from their mean under Pearson less that under cosine"
    return [Contrast(words, found, ABOVE_0, beside=beside)]


def fig18_agreement(run: OriginsRun) -> list[Contrast]:
    """Both name the same residual predecessor more often than the same module predecessor."""
    groups_of(run, PEARSON)
    sums = np.zeros((len(run.texts[1]), len(PARTS), 2))
    for at, part in enumerate(PARTS):
        one, two = (run.matches.of_each(run.seen, method, part, "index") for method in (COSINE, PEARSON))
        both = np.isfinite(one) & np.isfinite(two)
        shape = (len(sums), 1)
        for place, values in enumerate(((one == two)[both].astype(np.float64), np.ones(int(both.sum())))):
            text = run.texts[0][both]
            sums[:, at, place] = by_text(text, np.zeros_like(text), values, shape)[:, 0]
    tally = Tally(sums, run.texts[1])
    res = PARTS.index(Part.RES)
    found: list[Contrast] = []
    for part in (Part.MLP, Part.ATT):
        at = PARTS.index(part)
        if not sums[:, [res, at], 1].sum(0).all():
            continue
        sides = [float(sums[:, p, 0].sum() / sums[:, p, 1].sum()) for p in (res, at)]
        estimate = tally.told(
            lambda x, at=at: x[:, res, 0] / x[:, res, 1] - x[:, at, 0] / x[:, at, 1],
            n=sums[:, at, 1].sum(),
            span=GAP,
            sizes=sums[:, [res, at], 1],
        )
        words = f"features for which both methods name the same RES predecessor, less the same {part.name} predecessor"
        found.append(Contrast(words, estimate, ABOVE_0, beside=" against ".join(map(percent, sides))))
    if not found:
        raise NotMeasured("No module was matched by both methods.")
    return found
