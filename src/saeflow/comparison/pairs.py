"""Measure two dictionaries against each other: matches both ways, one-to-one partners, chance, splits, duplicates.

Every score is the signed cosine of two unit-norm rows, unless called absolute. Two measures of what two share:

    mean max cosine   mean_i max_j  a_i . b_j                    of A in B, and of B in A
    PW-MCC            1/n max_M sum_{(i, j) in M} |a_i . b_j|      n = min(n_A, n_B), M one to one

PW-MCC is the pairwise dictionary mean correlation coefficient of Song et al. 2025 (arXiv 2505.20254, section 3), over
one-to-one matchings M of features, found by the Hungarian algorithm. The paper uses absolute cosines, its published
code (github.com/xiangchensong/sae-feature-consistency, `MCC`) signed ones. Both are reported. Features without a
direction (a row of zeros) do not count in n_A and n_B.

A split is a feature of one dictionary that is the best match of several of the other. How well they explain it is the
share of its squared norm in their span, 1 for a linear combination of them:

    span = |P a|^2,   P the projection onto the span of the rows of b whose best match is a
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64

from saeflow.comparison.settings import ComparisonSettings
from saeflow.ids import Site
from saeflow.labels.words import FeatureWords
from saeflow.matching.calibration import draw_null
from saeflow.matching.methods import EdgeEnd, Rows, assigned, best_rows_both, rows_of, sides_of
from saeflow.matching.null import NullDistribution
from saeflow.matching.permutation import Assignment
from saeflow.matching.table import cut, p_values
from saeflow.matching.topk import top_k
from saeflow.sources.dictionary import AttentionWriter, Dictionary
from saeflow.sources.weights import row_peaks

CHILDREN: Final = 8
"""Maximum number of parts of a split: the nearest are kept."""
GAIN: Final = 0.1
"""Minimum share of the squared norm that the span of a split has to explain beyond the best match."""


@dataclass(frozen=True, eq=False)
class ComparedDictionary:
    """A dictionary in a comparison, with what is known about its features.

    Attributes:
        name: its name in tables.
        dictionary: the dictionary.
        words: words of every feature, in order; empty where nothing is known.
        projector: the model, needed for a dictionary that lives in z.
    """

    name: str
    dictionary: Dictionary
    words: Sequence[FeatureWords | None] = ()
    projector: AttentionWriter | None = None

    @cached_property
    def _rows(self) -> dict[tuple[EdgeEnd, str], Rows]:
        return {}

    def rows(self, end: EdgeEnd, method: str) -> Rows:
        """The rows that a method compares, at unit norm; zeros for a feature without a direction."""
        if (end, method) not in self._rows:
            rows = rows_of(self.dictionary, end, method, self.projector)
            if method != "cosine":
                # divide by the peak first: the squared norm of tiny or huge rows leaves the range of float32
                peaks = row_peaks(rows.rows)[:, None]
                unit = torch.nn.functional.normalize(rows.rows / torch.where(peaks > 0, peaks, 1), dim=1)
                rows = Rows(rows.site, unit)
            self._rows[end, method] = rows
            self.dictionary.unload()
        return self._rows[end, method]

    @property
    def site(self) -> Site:
        """Its site."""
        return self.dictionary.site

    @cached_property
    def density(self) -> Float64[np.ndarray, " n_features"]:
        """The share of tokens that each feature fires on, from its words; NaN where it was not counted."""
        found = np.full(self.dictionary.n_features, np.nan)
        known = [(row, words.frequency) for row, words in enumerate(self.words[: len(found)]) if words is not None]
        for row, frequency in known:
            found[row] = np.nan if frequency is None else frequency
        if known and all(frequency is not None for _, frequency in known):
            found[np.isnan(found)] = 0.0  # all others were counted: a feature without words never fired
        return found

    def label(self, row: int) -> str:
        """The label of a feature, "" if it has none."""
        words = self.words[row] if row < len(self.words) else None
        return "" if words is None else words.label


@dataclass(frozen=True, eq=False)
class OneWay:
    """The matches of every feature of one dictionary in another.

    Attributes:
        index: the `k` best matches, best first; 0 where there is none.
        score: their cosines, -inf where there is none.
        absolute: the largest |cosine|, -inf where there is none.
        nulls: what best matches score by chance, for each kind of null.
        cut: the lowest best-match score that is significant; 1 if none is.
        kind: the kind of null that `cut` and `p` refer to.
    """

    index: Int64[np.ndarray, "n k"]
    score: Float32[np.ndarray, "n k"]
    absolute: Float32[np.ndarray, " n"]
    nulls: Mapping[str, NullDistribution]
    cut: float
    kind: str

    @property
    def best(self) -> Float32[np.ndarray, " n"]:
        """The cosine of the best match."""
        return self.score[:, 0]

    @cached_property
    def p(self) -> Float64[np.ndarray, " n"]:
        """The p-value of the best match, 1 where there is none."""
        null = self.nulls.get(self.kind)
        return np.ones(len(self.best)) if null is None else p_values(null, self.best)

    @property
    def known(self) -> Float32[np.ndarray, " n_matched"]:
        """The cosine of the best match, of features that have one."""
        return self.best[np.isfinite(self.best)]

    @property
    def significant(self) -> Bool[np.ndarray, " n"]:
        """Whether the best match stands out from chance."""
        return self.best >= self.cut if self.nulls else np.zeros(len(self.best), dtype=bool)


@dataclass(frozen=True, eq=False)
class PairMatches:
    """Two dictionaries with all matches between them.

    Attributes:
        a, b: the dictionaries.
        forward: matches of A's features in B.
        backward: matches of B's features in A.
        signed: one-to-one partners of A's features with the largest sum of cosines.
        absolute: one-to-one partners of A's features with the largest sum of |cosines|.
        n: features with a direction, of the side that has fewer.
        rotated: PW-MCC after random rotations of A.
        settings: how they were compared.
    """

    a: ComparedDictionary
    b: ComparedDictionary
    forward: OneWay
    backward: OneWay
    signed: Assignment
    absolute: Assignment
    n: int
    rotated: tuple[float, ...]
    settings: ComparisonSettings

    @property
    def pw_mcc(self) -> float:
        """PW-MCC by absolute cosines, in [0, 1]; NaN where a side has no feature with a direction."""
        return self.absolute.value / self.n if self.n else float("nan")

    @property
    def mcc_signed(self) -> float:
        """PW-MCC by signed cosines, in [-1, 1]; NaN as for `pw_mcc`."""
        return self.signed.value / self.n if self.n else float("nan")

    @property
    def mutual(self) -> Bool[np.ndarray, " n_a"]:
        """Whether a feature of A and its best match are each other's best match."""
        there = np.isfinite(self.forward.best)
        return there & (self.backward.index[self.forward.index[:, 0], 0] == np.arange(len(there)))

    def swapped(self) -> PairMatches:
        """The same matches with A and B exchanged."""
        n = len(self.b.density)
        signed, absolute = self.signed.inverse(n), self.absolute.inverse(n)
        return PairMatches(
            self.b, self.a, self.backward, self.forward, signed, absolute, self.n, self.rotated, self.settings
        )


def match_dictionaries(a: ComparedDictionary, b: ComparedDictionary, settings: ComparisonSettings) -> PairMatches:
    """Match two dictionaries both ways and one to one, with the nulls of both.

    Raises:
        WidthMismatch: when the two do not write into one stream, or one lives in z and has no projector.
        InvalidArgument: for an unknown method, or one that needs what a dictionary lacks.
        BadFile: when a tensor of a file is bad.
    """
    # 1. the rows
    one, other = _rows_of_both(a, b, settings)
    # 2. the best matches both ways, by cosine and by |cosine|
    k = max(1, min(settings.k, len(one.rows), len(other.rows)))
    found = best_rows_both(one, other, k, settings.method)
    opposite = best_rows_both(one, Rows(other.site, -other.rows), 1, settings.method)
    ways: list[OneWay] = []
    for top, below, source, target in zip(found, opposite, (one, other), (other, one), strict=True):
        score = top.score.cpu().numpy()
        absolute = np.maximum(score[:, 0], below.score[:, 0].cpu().numpy())
        nulls = _nulls(source, target, settings)
        limit = cut(nulls[settings.null], score[:, 0], settings.fdr) if nulls else 1.0
        ways.append(OneWay(top.index.cpu().numpy(), score, absolute, nulls, limit, settings.null))
    # 3. one-to-one partners, and PW-MCC after random rotations of all of A
    n = min(len(one.matched), len(other.matched))
    signed, absolute_pairs = assigned(one, other), assigned(one, other, absolute=True)
    generator, rotated = torch.Generator().manual_seed(settings.seed), list[float]()
    for _ in range(settings.whole_rotations if n else 0):
        width = one.rows.shape[1]
        turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
        q = turn.Q * turn.R.diagonal().sign()  # uniform over orthogonal matrices (Mezzadri 2007)
        turned = Rows(one.site, (one.rows.double() @ q.to(one.rows.device)).float())
        rotated.append(assigned(turned, other, absolute=True).value / n)
    return PairMatches(a, b, ways[0], ways[1], signed, absolute_pairs, n, tuple(rotated), settings)


def _rows_of_both(a: ComparedDictionary, b: ComparedDictionary, settings: ComparisonSettings) -> tuple[Rows, Rows]:
    """The rows of both: the earlier site is the parent, as in an atlas; at the same site A is the child."""
    (_, first), (_, second) = sides_of((a.site, b.site))
    return a.rows(first, settings.method), b.rows(second, settings.method)


def _nulls(source: Rows, target: Rows, settings: ComparisonSettings) -> dict[str, NullDistribution]:
    """The null that decides significance and the rotation null; none if a side has no feature with a direction."""
    if not len(source.matched) or not len(target.matched):
        return {}
    how = {"rows": settings.rows, "rotations": settings.rotations, "seed": settings.seed}
    return {kind: draw_null(source, target, kind, **how) for kind in dict.fromkeys(("rotation", settings.null))}


@dataclass(frozen=True, slots=True)
class Split:
    """A feature that is split over several features of another dictionary.

    Attributes:
        feature: the row that is split.
        parts: rows of the other dictionary whose best match is this feature, nearest first.
        cosines: their cosines with it.
        best: the squared cosine of its best match, in [0, 1].
        span: the share of its squared norm in the span of the parts, in [0, 1].
        chance: what random rows, one fewer than the parts, would explain beyond `best`.
    """

    feature: int
    parts: tuple[int, ...]
    cosines: tuple[float, ...]
    best: float
    span: float
    chance: float


def splits(pair: PairMatches) -> list[Split]:
    """Features of A that are split over several features of B, by how much the span explains beyond the best match.

    The parts are features of B whose best match is the feature of A and is significant, the eight nearest. Their span
    has to explain at least a tenth of the squared norm more than the best match of the feature does.
    """
    # 1. parts: the features of B by their best match in A
    named, score = pair.backward.index[:, 0], pair.backward.best
    parts: dict[int, list[int]] = {}
    for row in np.argsort(-score, kind="stable").tolist():
        if pair.backward.significant[row] and len(parts.setdefault(int(named[row]), [])) < CHILDREN:
            parts[int(named[row])].append(row)
    several = [(feature, rows) for feature, rows in parts.items() if len(rows) > 1]
    if not several:
        return []
    # 2. spans: v G^+ v, with G the Gram matrix of the parts and v their products with the feature; zero rows pad
    one, other = (side.rows for side in _rows_of_both(pair.a, pair.b, pair.settings))
    width, found = one.shape[1], list[Split]()
    for start in range(0, len(several), 512):
        some = several[start : start + 512]
        stack = other.new_zeros(len(some), CHILDREN, width, dtype=torch.float64)
        for i, (_, rows) in enumerate(some):
            stack[i, : len(rows)] = other[rows].double()
        own = one[[feature for feature, _ in some]].double()
        v = torch.einsum("nkd,nd->nk", stack, own)
        inverse = torch.linalg.pinv(stack @ stack.mT, rtol=1e-9, hermitian=True)
        span = torch.einsum("nk,nkl,nl->n", v, inverse, v).clamp(0, 1).tolist()
        # 3. compare with the best match and with random rows
        for (feature, rows), explained, cosines in zip(some, span, v.tolist(), strict=True):
            best = max(float(pair.forward.absolute[feature]) ** 2, *(c * c for c in cosines[: len(rows)]))
            chance = (1 - best) * (len(rows) - 1) / max(width - 1, 1)
            if explained - best >= GAIN:
                cells = tuple(cosines[: len(rows)])
                found.append(Split(feature, tuple(rows), cells, min(best, 1.0), explained, chance))
    return sorted(found, key=lambda split: (split.best - split.span, split.feature))


def duplicates(side: ComparedDictionary, settings: ComparisonSettings) -> list[tuple[int, int, float]]:
    """Features that point the same way as another of their dictionary: (feature, other, cosine), highest first."""
    rows = side.rows(EdgeEnd.CHILD, settings.method)
    if len(rows.matched) < 2:
        return []
    live = np.arange(len(rows.rows)) if rows.live is None else rows.live.cpu().numpy()
    top = top_k(rows.matched, rows.matched, 2)
    index, score = top.index.cpu().numpy(), top.score.cpu().numpy()
    own = np.arange(len(index))
    place = np.where(index[:, 0] == own, 1, 0)
    other, cosine = index[own, place], score[own, place]
    found = [
        (int(live[i]), int(live[other[i]]), float(cosine[i])) for i in np.flatnonzero(cosine >= settings.duplicate)
    ]
    return sorted(found, key=lambda row: (-row[2], row[0]))


def word_overlap(
    a: ComparedDictionary, b: ComparedDictionary, partner: Int64[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The Jaccard overlap of the strongest tokens of each feature of A and of its partner, NaN if unknown.

    Partners are numbered as in an `Assignment`, -1 for none.
    """
    found = np.full(len(partner), np.nan)
    sets = [[_tokens(words) for words in side.words] for side in (a, b)]
    for row, other in enumerate(partner.tolist()):
        if other < 0 or row >= len(sets[0]) or other >= len(sets[1]):
            continue
        one, two = sets[0][row], sets[1][other]
        if one and two:
            found[row] = len(one & two) / len(one | two)
    return found


def _tokens(words: FeatureWords | None) -> frozenset[str]:
    return frozenset() if words is None else frozenset(token.strip().lower() for token in words.tokens if token.strip())
