"""Features more active on some texts than on a background, with a check on texts held out of the choice.

1. Both kinds of text are split in two by a seed. The background is cut to the median length of the texts:
   a longer text gives every feature more places to fire.
2. On the first halves each feature gets an effect (Hedges' g of per-text mean activations), the shares of texts
   it fires on, and a rank test corrected for all features that were looked at.
3. Features that fire on enough texts and pass the test are ordered by effect: the candidates.
4. On the second halves each candidate's effect is measured again, and the candidates together sort texts from
   background: the area under the ROC curve says how well.

Hedges' g is from Hedges (1981), doi 10.3102/10769986006002107.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from scipy import stats

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.labels import Words, no_words
from saeflow.records import Progress
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.steering.activity import Activity, activity
from saeflow.steering.starts import MIN_SHARE, Candidate

FDR: Final = 0.05
"""False-discovery rate of the candidates."""

FEWEST: Final = 4
"""Texts of either kind that are needed: two in each half."""

_TESTED_AT_ONCE: Final = 2048
_ROUNDING: Final = 1e-5
"""What float32 sums over a text may lose, as a share of their size."""


@dataclass(frozen=True, slots=True)
class HeldOutCheck:
    """How well the candidates, as one set, tell held-out texts from held-out background.

    Attributes:
        auc: the chance that a text scores above a background text, ties counted half: 0.5 is no better than
            guessing, 1 is always. A text's score is the mean over candidates of its mean activation in standard
            deviations of the first halves.
        p: one-sided Mann-Whitney test of the same scores.
        texts: how many texts were held out.
        background: how many background texts were.
    """

    auc: float
    p: float
    texts: int
    background: int


@dataclass(frozen=True, slots=True)
class TextSearch:
    """What was found: candidates, the largest effect first, and the check; None without candidates or held-out texts.

    `looked_at` counts the features that the p-values are corrected for.
    """

    found: tuple[Candidate, ...]
    check: HeldOutCheck | None
    looked_at: int


def contrast(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    texts: Sequence[str],
    background: Sequence[str],
    *,
    sites: Iterable[Site] | None = None,
    limit: int = 20,
    min_share: float = MIN_SHARE,
    fdr: float = FDR,
    max_length: int = 128,
    hold_out: bool = True,
    seed: int = 0,
    words: Words = no_words,
    sites_at_once: int | None = None,
    progress: Progress | None = None,
) -> TextSearch:
    """Features more active on `texts` than on `background`, and whether that holds on texts not chosen with.

    Args:
        model: the model the dictionaries were trained on.
        dictionaries: by site.
        texts: examples of the topic; 4 or more, 2 without holding out.
        background: other texts, as many or more; best of many kinds.
        sites: where to look; all residual sites when not given.
        limit: how many features at most.
        min_share: the least share of the texts a feature fires on, 0 to 1.
        fdr: false-discovery rate of the list, in (0, 1].
        max_length: tokens of a text that are read.
        hold_out: keep half of both kinds for the check. Without it all are chosen with, and nothing says whether
            the effects replicate.
        seed: the halves are a function of it and of the number of texts.
        words: where labels come from.
        sites_at_once: dictionaries in memory at a time; all when not given.
        progress: is told (units done, units, what).

    Raises:
        InvalidArgument: for too few texts, no sites, or a setting outside its range.
        UnknownSite: for a site without a dictionary.
        WidthMismatch: for dictionaries that do not fit the model.
    """
    least = FEWEST if hold_out else FEWEST // 2
    if len(texts) < least or len(background) < least:
        raise InvalidArgument(
            f"{len(texts)} texts and {len(background)} of background are too few to compare. Give {least} or more of "
            "both; twenty texts make a list worth having."
        )
    if limit < 1 or not 0 <= min_share <= 1 or not 0 < fdr <= 1:
        raise InvalidArgument(
            f"limit = {limit}, min_share = {min_share}, fdr = {fdr}: give 1 or more, a share from 0 to 1, and a rate "
            "above 0 up to 1."
        )
    where = None if sites is None else tuple(sites)
    model = model.as_trained(dictionaries)
    on = activity(
        model, dictionaries, texts, sites=where, max_length=max_length, sites_at_once=sites_at_once, progress=progress
    )
    cut = int(np.median(on.lengths)) + model.prepend_bos
    off = activity(
        model,
        dictionaries,
        background,
        sites=on.sites,
        max_length=min(cut, max_length),
        sites_at_once=sites_at_once,
        progress=progress,
    )
    rng = np.random.default_rng(seed)
    halves = _Halves(on, off, _first_half(len(texts), rng, hold_out), _first_half(len(background), rng, hold_out))
    return halves.contrast(limit, min_share, fdr, words)


def _first_half(n: int, rng: np.random.Generator, hold_out: bool) -> Bool[np.ndarray, " n"]:
    """Which of `n` texts are chosen with: a random half, the larger one of an odd number."""
    first = np.ones(n, dtype=bool)
    if hold_out:
        first[rng.permutation(n)[: n // 2]] = False
    return first


@dataclass(frozen=True, eq=False)
class _Halves:
    """The activity on texts and background, and which of both are chosen with."""

    on: Activity
    off: Activity
    first_on: Bool[np.ndarray, " n"]
    first_off: Bool[np.ndarray, " k"]

    def contrast(self, limit: int, min_share: float, fdr: float, words: Words) -> TextSearch:
        sides = {site: self._side(site, first=True) for site in self.on.sites}
        p = corrected([side.p_values() for side in sides.values()])
        shares = {site: side.shares() for site, side in sides.items()}
        chosen: list[tuple[float, FeatureId, float]] = []
        for (site, side), of_site in zip(sides.items(), p, strict=True):
            effect = side.effects()
            kept = np.flatnonzero((effect > 0) & (of_site <= fdr) & (shares[site][0] >= min_share))
            chosen += [(float(effect[i]), FeatureId(site, i), float(of_site[i])) for i in kept.tolist()]
        chosen = sorted(chosen, key=lambda row: (-row[0], row[1]))[:limit]
        features = [feature for _, feature, _ in chosen]
        again = self._again(features)
        found = tuple(
            _told(feature, effect, shares[feature.site], chance, again.get(feature), words)
            for effect, feature, chance in chosen
        )
        looked_at = sum(len(of_site) for of_site in p)
        return TextSearch(found, self._check(features, sides) if features else None, looked_at)

    def _side(self, site: Site, *, first: bool) -> Side:
        on = self.on.means[site][np.flatnonzero(self.first_on == first)]
        off = self.off.means[site][np.flatnonzero(self.first_off == first)]
        return Side(sp.csc_array(on), sp.csc_array(off))

    def _again(self, features: Sequence[FeatureId]) -> dict[FeatureId, float]:
        """The effects on what was held out; empty where nothing was."""
        if self.first_on.all():
            return {}
        effects = {site: self._side(site, first=False).effects() for site in {f.site for f in features}}
        return {feature: float(effects[feature.site][feature.index]) for feature in features}

    def _check(self, features: Sequence[FeatureId], sides: Mapping[Site, Side]) -> HeldOutCheck | None:
        if self.first_on.all():
            return None
        scores = [np.zeros(int((~self.first_on).sum())), np.zeros(int((~self.first_off).sum()))]
        for site in sorted({feature.site for feature in features}):
            index = np.array([feature.index for feature in features if feature.site == site])
            spread = sides[site].spread()[index]
            later = self._side(site, first=False)
            scores[0] += (later.on[:, index].toarray() / spread).sum(axis=1)
            scores[1] += (later.off[:, index].toarray() / spread).sum(axis=1)
        test = stats.mannwhitneyu(scores[0], scores[1], alternative="greater", method="asymptotic")
        size = len(scores[0]) * len(scores[1])
        return HeldOutCheck(float(test.statistic) / size, float(test.pvalue), len(scores[0]), len(scores[1]))


@dataclass(frozen=True, eq=False)
class Side:
    """Mean activations of the features of one site, texts by features, on the texts and on the background."""

    on: sp.csc_array
    off: sp.csc_array

    def shares(self) -> tuple[Float[np.ndarray, " n_features"], Float[np.ndarray, " n_features"]]:
        """The share of texts, and of background texts, that each feature fires on."""
        on, off = (np.asarray(side.count_nonzero(axis=0)) for side in (self.on, self.off))
        return np.asarray(on / _rows(self.on)), np.asarray(off / _rows(self.off))

    def spread(self) -> Float[np.ndarray, " n_features"]:
        """The pooled standard deviation of each feature, and no less than the rounding of its sums.

        Infinite for a feature that is silent on all texts, whose effect is 0.
        """
        n, k = _rows(self.on), _rows(self.off)
        pooled = np.sqrt(((n - 1) * _variance(self.on) + (k - 1) * _variance(self.off)) / (n + k - 2))
        least = np.maximum(pooled, self._rounding())
        return np.where(least > 0, least, np.inf)

    def effects(self) -> Float[np.ndarray, " n_features"]:
        """Hedges' g of every feature: above 0 where the texts have more.

        0 where the means differ by no more than the rounding of their sums: a feature that is equally active on
        every text.
        """
        n = _rows(self.on) + _rows(self.off)
        difference = _mean(self.on) - _mean(self.off)
        difference[abs(difference) <= self._rounding()] = 0.0
        return (1 - 3 / (4 * n - 9)) * difference / self.spread()

    def _rounding(self) -> Float[np.ndarray, " n_features"]:
        return _ROUNDING * np.maximum(abs(_mean(self.on)), abs(_mean(self.off)))

    def p_values(self) -> Float[np.ndarray, " n_features"]:
        """One-sided Mann-Whitney p of every feature, by its normal limit with ties and continuity corrected.

        1 for a feature whose mean is not higher on the texts: it is looked at, and counts in the correction.
        """
        p = np.ones(_columns(self.on))
        higher = np.flatnonzero(self.effects() > 0)
        for start in range(0, len(higher), _TESTED_AT_ONCE):
            some = higher[start : start + _TESTED_AT_ONCE]
            test = stats.mannwhitneyu(
                self.on[:, some].toarray(),
                self.off[:, some].toarray(),
                alternative="greater",
                method="asymptotic",
                axis=0,
            )
            p[some] = test.pvalue
        return p


def corrected(p: Sequence[Float[np.ndarray, " _"]]) -> list[Float[np.ndarray, " _"]]:
    """p-values of several sites corrected together (Benjamini and Hochberg 1995)."""
    whole = np.asarray(stats.false_discovery_control(np.concatenate(p)))
    return np.split(whole, np.cumsum([len(of_site) for of_site in p])[:-1])


def _rows(matrix: sp.csc_array) -> int:
    return cast("tuple[int, int]", matrix.shape)[0]


def _columns(matrix: sp.csc_array) -> int:
    return cast("tuple[int, int]", matrix.shape)[1]


def _mean(matrix: sp.csc_array) -> Float[np.ndarray, " n_features"]:
    return np.asarray(matrix.sum(axis=0), dtype=np.float64) / _rows(matrix)


def _variance(matrix: sp.csc_array) -> Float[np.ndarray, " n_features"]:
    """Of the columns, with n - 1; two passes over what is stored, so that nothing cancels."""
    n, width, mean = _rows(matrix), _columns(matrix), _mean(matrix)
    stored = np.diff(matrix.indptr)
    column: Int[np.ndarray, " k"] = np.repeat(np.arange(width), stored)
    squares = np.bincount(column, weights=(matrix.data - mean[column]) ** 2, minlength=width)
    return (squares + (n - stored) * mean**2) / (n - 1)


def _told(
    feature: FeatureId,
    effect: float,
    shares: tuple[Float[np.ndarray, " n_features"], Float[np.ndarray, " n_features"]],
    p: float,
    again: float | None,
    words: Words,
) -> Candidate:
    on, off = (float(share[feature.index]) for share in shares)
    known = words.get(feature)
    held_out = "" if again is None else f", {again:.2f} on those held out"
    why = f"fires on {on:.0%} of the texts and {off:.0%} of the background; g = {effect:.2f}{held_out}"
    return Candidate(feature, "" if known is None else known.label, effect, on, off, p, why, again)
