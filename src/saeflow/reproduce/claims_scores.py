"""Claims of sections 4.2, 5.1, 6 and C.1: what scores say of activity (figures 3, 4, 12b, 14). Nothing is edited."""

from __future__ import annotations

import itertools
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np

from saeflow.experiments.groups import LABELS, PARTS, Origin
from saeflow.experiments.origins_tables import ALPHA, FEWEST_TESTED
from saeflow.experiments.statistics import GAP, RATE, Estimate, Tally, by_text, known_mean, mann_whitney, ratio
from saeflow.ids import Part
from saeflow.reproduce.claims_origins import ATT, COSINE, MLP, RES, groups_of, percent
from saeflow.reproduce.evidence import OriginsRun
from saeflow.reproduce.verdicts import ABOVE_0, Contrast, Kind, NotMeasured, Rule, Unit

SCORE: Final = {Part.RES: "s(R)", Part.MLP: "s(M)", Part.ATT: "s(A)"}
BINS: Final = 50
"""Of scores over [-1, 1], for ranks."""


# --- figures 3, 12b: scores of groups ---------------------------------------------------------------------------------


def score_means(run: OriginsRun) -> Tally:
    """Sum and number of each score in each group: parts by groups by two."""
    groups = groups_of(run, COSINE)
    columns: list[np.ndarray] = []
    for part in PARTS:
        scores = run.matches.of_each(run.seen, COSINE, part)
        known = np.isfinite(scores)
        shape = (len(run.texts[1]), 8)
        sums = by_text(run.texts[0][known], groups[known], scores[known], shape)
        counts = by_text(run.texts[0][known], groups[known], np.ones(int(known.sum())), shape)
        columns.append(np.stack([sums, counts], -1))
    return Tally(np.stack(columns, 1), run.texts[1])


def score_between(run: OriginsRun, part: Part, a: int, b: int) -> Contrast:
    """Mean score of a part in one group less that in another."""
    tally, at = score_means(run), PARTS.index(part)

    def mean(x: np.ndarray, group: int) -> np.ndarray:
        return x[:, at, group, 0] / x[:, at, group, 1]

    sizes = tally.sums[:, at, [a, b], 1]
    found = tally.told(lambda x: mean(x, a) - mean(x, b), n=float(sizes.sum()), sizes=sizes)
    one, two = (float(tally.now(lambda x, g=g: mean(x, g))) for g in (a, b))
    beside = f"{one:.3f} against {two:.3f}"
    words = f"mean {SCORE[part]} in {_from(a)} less that in {_from(b)}"
    return Contrast(words, found, ABOVE_0, Unit.NUMBER, beside=beside)


def _from(value: int) -> str:
    return f"From {LABELS[value]}"


def fig3_groups(run: OriginsRun) -> list[Contrast]:
    """High s(M) and low s(R) go with an MLP predecessor, and the other way round."""
    return [score_between(run, Part.MLP, MLP, RES), score_between(run, Part.RES, RES, MLP)]


def fig12_scores(run: OriginsRun) -> list[Contrast]:
    """Each group of one part is above nowhere in that part's score."""
    return [
        score_between(run, part, Origin[part.name].value, 0)
        for part in PARTS
        if np.isfinite(run.matches.of_each(run.seen, COSINE, part)).any()
    ]


def fig3_proxy(run: OriginsRun) -> list[Contrast]:
    """How well a score tells that the matched predecessor is active, within layers."""
    groups = groups_of(run, COSINE)
    found: list[Contrast] = []
    for part in PARTS:
        scores = run.matches.of_each(run.seen, COSINE, part)
        known = np.isfinite(scores)
        if not known.any():
            continue
        bins = np.clip(((scores[known] + 1) / 2 * BINS).astype(np.int64), 0, BINS - 1)
        on = ((groups[known] & Origin[part.name].value) > 0).astype(np.int64)
        layer = np.searchsorted(run.layers, run.layer[known])
        shape = (len(run.layers), 2, BINS)
        code = (layer * 2 + on) * BINS + bins
        sums = by_text(run.texts[0][known], code, np.ones(len(code)), (len(run.texts[1]), int(np.prod(shape))))
        tally = Tally(sums.reshape(-1, *shape), run.texts[1])
        estimate = tally.told(auc, n=float(known.sum()), span=RATE)
        words = f"area under the curve of {SCORE[part]} for an active {part.name} predecessor"
        found.append(Contrast(words, estimate, Rule(Kind.ABOVE, 0.5), Unit.LEVEL, beside="0.5 is chance"))
    if not found:
        raise NotMeasured("No score is known.")
    return found


def auc(x: np.ndarray) -> np.ndarray:
    """Chance that an active case scores above an inactive one, ties half; the mean over layers that have both.

    `x` has cases, layers, (inactive, active), bins.
    """
    off, on = x[:, :, 0], x[:, :, 1]
    below = np.cumsum(off, -1) - off / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return known_mean((on * below).sum(-1) / (on.sum(-1) * off.sum(-1)), -1)


# --- figures 4, 14: tests between groups ------------------------------------------------------------------------------


_TESTS: WeakKeyDictionary[OriginsRun, tuple[np.ndarray, list[tuple[int, int]]]] = WeakKeyDictionary()


def tested(run: OriginsRun) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Mann-Whitney tests: cells of a data set and layer by pairs of groups by scores; 1 passed, 0 not, NaN untested.

    Three claims rest on them: they are made once a run.
    """
    if run not in _TESTS:
        _TESTS[run] = _tests(run)
    return _TESTS[run]


def _tests(run: OriginsRun) -> tuple[np.ndarray, list[tuple[int, int]]]:
    groups = groups_of(run, COSINE)
    pairs = list(itertools.combinations(range(8), 2))
    cells = list(itertools.product(range(len(run.datasets)), run.layers))
    passed = np.full((len(cells), len(pairs), len(PARTS)), np.nan)
    for at, part in enumerate(PARTS):
        scores = run.matches.of_each(run.seen, COSINE, part)
        for number, (dataset, layer) in enumerate(cells):
            here = (run.dataset == dataset) & (run.layer == layer) & np.isfinite(scores)
            values = [scores[here & (groups == group)] for group in range(8)]
            for place, (a, b) in enumerate(pairs):
                if min(len(values[a]), len(values[b])) >= FEWEST_TESTED:
                    passed[number, place, at] = mann_whitney(values[a], values[b]) < ALPHA
    return passed, pairs


def rate_between(passed: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[Tally, float, str]:
    """Shares of passed tests among two sets of (pair, score), cells drawn; with n and both shares in words."""
    columns = [
        np.stack([np.nansum(np.where(m, passed, np.nan), (1, 2)), (np.isfinite(passed) & m).sum((1, 2))], -1)
        for m in (a, b)
    ]
    sums = np.stack(columns, 1).astype(np.float64)
    tally = Tally(sums)
    one, two = tally.now(ratio).tolist()
    return tally, float(sums[..., 1].sum()), f"{percent(one)} against {percent(two)} of the tests"


def _gap(tally: Tally, n: float) -> Estimate:
    return tally.told(lambda x: ratio(x)[:, 0] - ratio(x)[:, 1], n=n, span=GAP, sizes=tally.sums[..., 1])


def fig4_active_in_one(run: OriginsRun) -> list[Contrast]:
    """A module active in one group only parts them by its score more often than one active in both, or neither."""
    passed, pairs = tested(run)
    found: list[Contrast] = []
    for at, part in enumerate(PARTS):
        bit = Origin[part.name].value
        n_on = np.array([bool(a & bit) + bool(b & bit) for a, b in pairs])
        score = np.arange(len(PARTS)) == at
        for n, what in ((2, "in both"), (0, "in neither")):
            masks = [((n_on == k)[:, None] & score) for k in (1, n)]
            tally, size, beside = rate_between(passed, *masks)
            words = f"tests passed on {SCORE[part]} where {part.name} is active in one group, less where {what}"
            found.append(Contrast(words, _gap(tally, size), ABOVE_0, beside=beside))
    return found


def fig4_alike(run: OriginsRun) -> list[Contrast]:
    """Groups alike in the activity of a module are mostly not told apart by its score."""
    passed, pairs = tested(run)
    found: list[Contrast] = []
    for at, part in enumerate(PARTS):
        bit = Origin[part.name].value
        same = np.array([bool(a & bit) == bool(b & bit) for a, b in pairs])
        mask = same[:, None] & (np.arange(len(PARTS)) == at)
        tally, size, _ = rate_between(passed, mask, mask)
        words = f"tests passed on {SCORE[part]} where {part.name} is active in both groups or in neither"
        found.append(
            Contrast(
                words,
                tally.told(lambda x: ratio(x)[:, 0], n=size / 2, span=RATE, sizes=tally.sums[:, 0, 1]),
                Rule(Kind.BELOW, 0.5),
                Unit.SHARE,
            )
        )
    return found


def fig4_mlp_and_att(run: OriginsRun) -> list[Contrast]:
    """From MLP and From MLP & ATT differ by s(A) more often than by s(R) and s(M)."""
    passed, pairs = tested(run)
    pair = np.array([set(p) == {MLP, MLP | ATT} for p in pairs])[:, None]
    order = [PARTS.index(part) for part in (Part.RES, Part.MLP, Part.ATT)]
    masks = [pair & (np.arange(len(PARTS)) == at) for at in order]
    found: list[Contrast] = []
    for other, name in ((0, "s(R)"), (1, "s(M)")):
        tally, size, beside = rate_between(passed, masks[2], masks[other])
        estimate = _gap(tally, size)
        found.append(Contrast(f"tests passed by s(A) less those by {name}", estimate, ABOVE_0, beside=beside))
    return found
