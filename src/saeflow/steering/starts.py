"""Find the features a theme starts from: by words, or by example texts (appendix B begins with such a set).

    by words    match the query against a feature's label, the tokens it fires on and those it promotes
    by texts    find features that are more active on example texts than on a background of other texts

Both return candidates: only steering shows whether a feature that fires on a topic also makes the model write about it
(Arad et al. 2025, arXiv 2505.20063). Only the search by texts imports torch and scipy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from jaxtyping import Bool, Float, Int

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.labels import FeatureWords, Words, no_words
from saeflow.plain_types import Progress

if TYPE_CHECKING:
    import scipy.sparse as sp

    from saeflow.sources.dictionary import Dictionary
    from saeflow.sources.model import LanguageModel


@dataclass(frozen=True, slots=True)
class Candidate:
    """A feature that may start a theme.

    Attributes:
        feature: the feature.
        label: what is known about it, in one line; empty if nothing is.
        effect: the score that the list is sorted by. By texts: Hedges' g, the difference between the per-text mean
            activations on texts and background in pooled standard deviations, with the small-sample correction. By
            words: the mean over the terms of the query of how well each is matched, from 0 to 1.2.
        share: by texts, the share of the texts it fires on; by words, the share of the terms that are matched.
        background: by texts, the share of the background texts it fires on; by words, the share of tokens it is
            active on, NaN if unknown.
        p: by texts, from a one-sided Mann-Whitney test of per-text mean activations, corrected for the number of
            features examined (Benjamini and Hochberg 1995); None by words.
        why: the reason for the score, in words.
        replicated: by texts, `effect` on the held-out texts; None without held-out texts, and by words.
    """

    feature: FeatureId
    label: str
    effect: float
    share: float
    background: float
    p: float | None
    why: str
    replicated: float | None = None


# --- by words --------------------------------------------------------------------------------------------------------

WHOLE: Final = 1.0
PREFIX: Final = 0.6
INSIDE: Final = 0.1
"""Scores of a whole word, a common beginning and a match inside a word; the bonus for places is below their gaps."""

_SHORTEST_PREFIX: Final = 3


def find_by_words(words: Words, query: str, sites: Iterable[Site], limit: int = 20) -> list[Candidate]:
    """Features whose words match the terms of `query`, best first.

    Terms are words separated by spaces or commas; case does not matter. A term is matched by a whole word (1.0), by a
    word that begins with it or a piece that it begins with, of at least 3 letters (0.6: "forces" matches "force",
    " veloc" matches "velocity"), or inside a word (0.1). Matches in several places, and early in a list of tokens, add
    at most 0.2. So a whole word ranks above any prefix, and a prefix above any match inside a word.

    Args:
        words: what is known about features, such as `open_words(atlas.folder)`.
        query: the terms.
        sites: where to look.
        limit: how many features at most.

    Raises:
        InvalidArgument: for a query without terms, no sites, a limit below 1, or sites without any words.
        BadFile: when the words cannot be read.
    """
    terms = tuple(dict.fromkeys(_pieces(query)))
    if not terms:
        raise InvalidArgument(f"the query {query!r} holds no word. Give one or more, such as 'force energy'.")
    wanted = tuple(dict.fromkeys(sites))
    if not wanted or limit < 1:
        raise InvalidArgument(f"{len(wanted)} sites and limit = {limit} find nothing. Give 1 or more of both.")
    hits: list[Candidate] = []
    some = False
    for site in wanted:
        rows = words.site(site)
        some = some or bool(rows)
        for index, known in enumerate(rows):
            if known is None:
                continue
            met = [_met(known, term) for term in terms]
            if not any(score for score, _ in met):
                continue
            effect = sum(score for score, _ in met) / len(terms)
            share = sum(score > 0 for score, _ in met) / len(terms)
            frequency = math.nan if known.frequency is None else known.frequency
            why = "; ".join(f"{term}: {', '.join(where)}" for term, (_, where) in zip(terms, met, strict=True) if where)
            feature = FeatureId(site, index)
            hits.append(Candidate(feature, known.label, round(effect, 6), share, frequency, None, why))
    if not some:
        raise InvalidArgument(
            f"nothing is known of features at {', '.join(map(str, wanted))}. Words lie in the folder `words` of an "
            "atlas; without them, find features by example texts."
        )
    return sorted(hits, key=lambda hit: (-hit.effect, hit.feature))[:limit]


def _met(known: FeatureWords, term: str) -> tuple[float, list[str]]:
    """How well a feature's label, the tokens it fires on and those it promotes match a term; and where they do.

    The score is the best level, plus a bonus for each place in proportion to its own level.
    """
    found: list[tuple[float, float, str]] = []
    places = {"label": (known.label,), "fires on": known.tokens, "promotes": known.promotes}
    for place, entries in places.items():
        levels = [max((_level(piece, term) for piece in _pieces(entry)), default=0.0) for entry in entries]
        best = max(levels, default=0.0)
        if best:
            rank = levels.index(best)
            found.append((best, 0.2 / (1 + 0.1 * rank), f"{place} {entries[rank].strip()!r}"))
    if not found:
        return 0.0, []
    best = max(level for level, _, _ in found)
    score = best + sum(bonus * level / best for level, bonus, _ in found) / len(places)
    return score, [where for _, _, where in found]


def _level(piece: str, term: str) -> float:
    """How well one word matches one term."""
    if piece == term:
        return WHOLE
    begins = piece.startswith(term) and len(term) >= _SHORTEST_PREFIX
    begun = term.startswith(piece) and len(piece) >= _SHORTEST_PREFIX
    if begins or begun:
        return PREFIX
    return INSIDE if term in piece else 0.0


def _pieces(text: str) -> list[str]:
    """The words of a text in lower case; symbols ("=", "$") count only in a text without words."""
    found = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.casefold())
    return found or text.casefold().replace(",", " ").split()


# --- by texts --------------------------------------------------------------------------------------------------------

FEWEST: Final = 4
"""The fewest texts of either kind: two in each half."""

_TESTED_AT_ONCE: Final = 2048
_ROUNDING: Final = 1e-5
"""Bound on the relative rounding error of float32 sums over a text."""


@dataclass(frozen=True, slots=True)
class HeldOutCheck:
    """How well the candidates together separate held-out texts from held-out background texts.

    Attributes:
        auc: the probability that a text scores above a background text, ties counted half: 0.5 is chance, 1 is
            always. A text's score is the sum over candidates of its mean activation, in standard deviations of the
            first halves.
        p: of a one-sided Mann-Whitney test of these scores.
        texts: how many texts were held out.
        background: how many background texts were held out.
    """

    auc: float
    p: float
    texts: int
    background: int


@dataclass(frozen=True, slots=True)
class TextSearch:
    """The candidates, largest effect first, and their check, which is None without candidates or held-out texts.

    `looked_at` counts the features that the p-values are corrected for.
    """

    found: tuple[Candidate, ...]
    check: HeldOutCheck | None
    looked_at: int


def find_by_texts(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    texts: Sequence[str],
    background: Sequence[str],
    *,
    sites: Iterable[Site] | None = None,
    limit: int = 20,
    min_share: float = 0.25,
    fdr: float = 0.05,
    max_length: int = 128,
    hold_out: bool = True,
    seed: int = 0,
    words: Words = no_words,
    progress: Progress | None = None,
) -> TextSearch:
    """Features more active on `texts` than on `background`, and whether this replicates on held-out texts.

    1. Both kinds of text are split in half at random. Background texts are truncated to the median length of the
       texts, since a longer text gives every feature more places to fire.
    2. On the first halves each feature gets an effect (Hedges' g of per-text mean activations), the shares of texts
       it fires on, and a rank test corrected for all features examined.
    3. The candidates are the features that fire on enough texts and pass the test, sorted by effect.
    4. On the second halves each candidate's effect is measured again, and the area under the ROC curve shows how well
       the candidates together separate texts from background.

    Hedges' g is from Hedges (1981), doi 10.3102/10769986006002107.

    Args:
        model: the model the dictionaries were trained on.
        dictionaries: by site.
        texts: examples of the topic; at least 4, or 2 without holding out. A useful list takes about twenty.
        background: other texts, as many or more, preferably of many kinds.
        sites: where to look; all residual sites by default.
        limit: how many features at most.
        min_share: the smallest share of the texts that a feature must fire on, 0 to 1.
        fdr: false-discovery rate of the list, in (0, 1].
        max_length: tokens read from each text.
        hold_out: keep half of both kinds for the check. Otherwise the choice uses all texts, and nothing shows
            whether the effects replicate.
        seed: with the number of texts, determines the halves.
        words: where labels come from.
        progress: called with (units done, units, what).

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
    from scipy import stats
    from scipy.sparse import csc_array

    from saeflow.steering.activity import activity

    # 1. activities, and the halves
    where = None if sites is None else tuple(sites)
    model = model.as_trained(dictionaries)
    on = activity(model, dictionaries, texts, sites=where, max_length=max_length, progress=progress)
    cut = min(int(np.median(on.lengths)) + model.prepend_bos, max_length)
    off = activity(model, dictionaries, background, sites=on.sites, max_length=cut, progress=progress)
    rng = np.random.default_rng(seed)
    first_on, first_off = _first_half(len(texts), rng, hold_out), _first_half(len(background), rng, hold_out)

    def side(site: Site, *, first: bool) -> Side:
        halves = on.means[site][np.flatnonzero(first_on == first)], off.means[site][np.flatnonzero(first_off == first)]
        return Side(*map(csc_array, halves))

    # 2. tests of each feature on the first halves
    sides = {site: side(site, first=True) for site in on.sites}
    p = dict(zip(sides, corrected([one.p_values() for one in sides.values()]), strict=True))
    effects = {site: one.effects() for site, one in sides.items()}
    shares = {site: one.shares() for site, one in sides.items()}
    # 3. the candidates
    chosen: list[FeatureId] = []
    for site in sides:
        kept = (effects[site] > 0) & (p[site] <= fdr) & (shares[site][0] >= min_share)
        chosen += [FeatureId(site, index) for index in np.flatnonzero(kept).tolist()]
    chosen = sorted(chosen, key=lambda feature: (-effects[feature.site][feature.index], feature))[:limit]
    # 4. the second halves
    later = {site: side(site, first=False) for site in sorted({feature.site for feature in chosen})} if hold_out else {}
    effects_later = {site: one.effects() for site, one in later.items()}
    check = None
    if later:
        n, k = int((~first_on).sum()), int((~first_off).sum())
        scores_on, scores_off = np.zeros(n), np.zeros(k)
        for site, one in later.items():
            index = np.array([feature.index for feature in chosen if feature.site == site])
            spread = sides[site].spread()[index]
            scores_on += (one.on[:, index].toarray() / spread).sum(axis=1)
            scores_off += (one.off[:, index].toarray() / spread).sum(axis=1)
        test = stats.mannwhitneyu(scores_on, scores_off, alternative="greater", method="asymptotic")
        check = HeldOutCheck(float(test.statistic) / (n * k), float(test.pvalue), n, k)
    found: list[Candidate] = []
    for feature in chosen:
        site, index, known = feature.site, feature.index, words.get(feature)
        effect, (share, other) = float(effects[site][index]), (float(of_kind[index]) for of_kind in shares[site])
        again = float(effects_later[site][index]) if hold_out else None
        held_out = "" if again is None else f", {again:.2f} on those held out"
        why = f"fires on {share:.0%} of the texts and {other:.0%} of the background; g = {effect:.2f}{held_out}"
        label = "" if known is None else known.label
        found.append(Candidate(feature, label, effect, share, other, float(p[site][index]), why, again))
    return TextSearch(tuple(found), check, sum(map(len, p.values())))


def _first_half(n: int, rng: np.random.Generator, hold_out: bool) -> Bool[np.ndarray, " n"]:
    """Which of `n` texts the choice uses: a random half, the larger one if `n` is odd; all without holding out."""
    first = np.ones(n, dtype=bool)
    if hold_out:
        first[rng.permutation(n)[: n // 2]] = False
    return first


@dataclass(frozen=True, eq=False)
class Side:
    """Mean activations of the features of one site on the texts and on the background, each texts by features."""

    on: sp.csc_array
    off: sp.csc_array

    def shares(self) -> tuple[Float[np.ndarray, " n_features"], Float[np.ndarray, " n_features"]]:
        """The share of texts, and of background texts, that each feature fires on."""
        on, off = (np.asarray(side.count_nonzero(axis=0)) / _shape(side)[0] for side in (self.on, self.off))
        return on, off

    def spread(self) -> Float[np.ndarray, " n_features"]:
        """The pooled standard deviation of each feature, but at least the rounding error of its sums.

        Infinite for a feature that is silent on all texts, so that its effect is 0.
        """
        n, k = _shape(self.on)[0], _shape(self.off)[0]
        pooled = np.sqrt(((n - 1) * _variance(self.on) + (k - 1) * _variance(self.off)) / (n + k - 2))
        least = np.maximum(pooled, self._rounding())
        return np.where(least > 0, least, np.inf)

    def effects(self) -> Float[np.ndarray, " n_features"]:
        """Hedges' g of every feature, above 0 if it is more active on the texts.

        0 where the means differ by no more than the rounding error of their sums, as for a feature that is equally
        active on every text.
        """
        n = _shape(self.on)[0] + _shape(self.off)[0]
        difference = _mean(self.on) - _mean(self.off)
        difference[abs(difference) <= self._rounding()] = 0.0
        return (1 - 3 / (4 * n - 9)) * difference / self.spread()

    def _rounding(self) -> Float[np.ndarray, " n_features"]:
        return _ROUNDING * np.maximum(abs(_mean(self.on)), abs(_mean(self.off)))

    def p_values(self) -> Float[np.ndarray, " n_features"]:
        """One-sided Mann-Whitney p of every feature, by the normal approximation with tie and continuity corrections.

        1 for a feature whose mean is not higher on the texts: it still counts in the correction for multiple tests.
        """
        from scipy import stats

        p = np.ones(_shape(self.on)[1])
        higher = np.flatnonzero(self.effects() > 0)
        for start in range(0, len(higher), _TESTED_AT_ONCE):
            some = higher[start : start + _TESTED_AT_ONCE]
            on, off = self.on[:, some].toarray(), self.off[:, some].toarray()
            p[some] = stats.mannwhitneyu(on, off, alternative="greater", method="asymptotic", axis=0).pvalue
        return p


def corrected(p: Sequence[Float[np.ndarray, " _"]]) -> list[Float[np.ndarray, " _"]]:
    """Correct the p-values of several sites together (Benjamini and Hochberg 1995)."""
    from scipy import stats

    whole = np.asarray(stats.false_discovery_control(np.concatenate(p)))
    return np.split(whole, np.cumsum([len(of_site) for of_site in p])[:-1])


def _shape(matrix: sp.csc_array) -> tuple[int, int]:
    """Numbers of texts and features."""
    return cast("tuple[int, int]", matrix.shape)


def _mean(matrix: sp.csc_array) -> Float[np.ndarray, " n_features"]:
    return np.asarray(matrix.sum(axis=0), dtype=np.float64) / _shape(matrix)[0]


def _variance(matrix: sp.csc_array) -> Float[np.ndarray, " n_features"]:
    """Sample variance (n - 1) of each column; two passes over the stored values avoid cancellation."""
    (n, width), mean = _shape(matrix), _mean(matrix)
    stored = np.diff(matrix.indptr)
    column: Int[np.ndarray, " k"] = np.repeat(np.arange(width), stored)
    squares = np.bincount(column, weights=(matrix.data - mean[column]) ** 2, minlength=width)
    return (squares + (n - stored) * mean**2) / (n - 1)
