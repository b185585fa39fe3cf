"""The tables of a comparison: the results of `pairs` as rows. "A in B" stands for matches of A's features in B."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from saeflow.comparison.pairs import ComparedDictionary, PairMatches, duplicates, splits, word_overlap
from saeflow.comparison.settings import ComparisonSettings
from saeflow.experiments.results import SummaryTable
from saeflow.ids import FeatureId
from saeflow.matching.permutation import NO_PARTNER
from saeflow.matching.table import cut, p_values

ABOVE: Final = (0.5, 0.7, 0.9)
BIN: Final = 0.05
"""Width of a bin of cosines."""
BEYOND: Final = "beyond the paper"
PW_MCC: Final = "Song et al. 2025, arXiv 2505.20254"
Rows = Iterable[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class _TableOfPairs:
    """A table with rows for every pair, from both sides if `both`; its note may hold placeholders for settings."""

    name: str
    title: str
    note: str
    columns: str
    rows: Callable[[PairMatches], Rows]
    both: bool = True


def pair_tables(
    pairs: Sequence[PairMatches],
    every: Sequence[PairMatches],
    dictionaries: Sequence[ComparedDictionary],
    settings: ComparisonSettings,
) -> dict[str, SummaryTable]:
    """Make all tables for `pairs`, "pairs" itself for `every` pair; words and density only where they are known."""
    told = {
        "shared": f"{settings.shared:g}",
        "chance": f"the null {settings.null!r} at a false-discovery rate of {settings.fdr:g}",
        "duplicate": f"{settings.duplicate:g}",
    }
    both = [way for pair in pairs for way in (pair, pair.swapped())]
    found: dict[str, SummaryTable] = {}
    for table in TABLES:
        some = both if table.both else every if table.name == "pairs" else pairs
        rows = (row for pair in some for row in table.rows(pair))
        note = table.note.format_map(told)
        found[table.name] = SummaryTable.of(table.name, table.title, BEYOND, note, table.columns, rows)
    found["duplicates"] = SummaryTable.of(
        "duplicates",
        "Features that point the same way within one dictionary",
        BEYOND,
        f"Pairs with a cosine of at least {told['duplicate']}.",
        "in, feature, other, cosine, words, words of the other",
        (row for side in dictionaries for row in _duplicate_rows(side, settings)),
    )
    for name in ("words", "compare_density"):
        if not found[name].rows:
            del found[name]
    return found


def title_of(pair: PairMatches) -> str:
    """The name of a pair in figures, from either side."""
    return " and ".join(sorted((pair.a.name, pair.b.name)))


def kinds(pair: PairMatches) -> list[str]:
    """For each feature of A: "shared", "related", "only", or "no direction"."""
    near = pair.signed.score >= pair.settings.shared
    found = np.where(near, "shared", np.where(pair.forward.significant, "related", "only"))
    return np.where(np.isneginf(pair.forward.best), "no direction", found).tolist()


def _pair_rows(pair: PairMatches) -> Rows:
    reached = sum(value >= pair.pw_mcc for value in pair.rotated)
    p = (1 + reached) / (1 + len(pair.rotated)) if pair.rotated else None
    yield (
        pair.a.name,
        pair.b.name,
        str(pair.a.site),
        str(pair.b.site),
        pair.a.dictionary.n_features,
        pair.b.dictionary.n_features,
        pair.pw_mcc,
        float(np.mean(pair.rotated)) if pair.rotated else None,
        p,
        pair.mcc_signed,
        _mean(pair.forward.best),
        _mean(pair.backward.best),
        int(pair.mutual.sum()),
        int((pair.signed.score >= pair.settings.shared).sum()),
        pair.absolute.gap,
    )


def _score_rows(pair: PairMatches) -> Rows:
    back = pair.swapped()
    for measure, sign, score, density, way in (
        ("A in B", "signed", pair.forward.best, pair.a.density, pair.forward),
        ("B in A", "signed", pair.backward.best, pair.b.density, pair.backward),
        ("one to one", "signed", pair.signed.score, pair.a.density, None),
        ("A in B", "absolute", pair.forward.absolute, pair.a.density, None),
        ("B in A", "absolute", pair.backward.absolute, pair.b.density, None),
        ("one to one", "absolute", back.absolute.score, pair.b.density, None),
    ):
        there = np.isfinite(score)
        known = there & np.isfinite(density)
        weight = density[known].sum()
        weighted = float((density[known] * score[known]).sum() / weight) if weight > 0 else None
        shares = [float(np.mean(score[there] > line)) if there.any() else None for line in ABOVE]
        chance = [None if way is None or not way.nulls else way.nulls[kind].quantile(0.5) for kind in _kinds_of(pair)]
        yield (pair.a.name, pair.b.name, measure, sign, int(there.sum()), _mean(score), *shares, weighted, *chance)


def _kinds_of(pair: PairMatches) -> tuple[str, str]:
    return "rotation", pair.settings.null


def _bins(pair: PairMatches) -> Rows:
    edges = np.arange(0.0, 1.0 + BIN / 2, BIN)
    of = f"{pair.a.name} in {pair.b.name}"
    for measure, score in (("best match", pair.forward.best), ("partner", pair.signed.score)):
        there = score[np.isfinite(score)].clip(0.0, 1.0 - 1e-9)
        counts = np.histogram(there, edges)[0] / max(len(there), 1)
        yield from ((title_of(pair), of, measure, low, share) for low, share in zip(edges, counts, strict=False))
    for measure, kind in zip(("rotation", "chance"), _kinds_of(pair), strict=True):
        if kind in pair.forward.nulls:
            above = p_values(pair.forward.nulls[kind], edges)
            above[0] = 1.0
            shares = above[:-1] - above[1:]
            yield from ((title_of(pair), of, measure, low, share) for low, share in zip(edges, shares, strict=False))


def _kind_rows(pair: PairMatches) -> Rows:
    found = kinds(pair)
    n = len(found) - found.count("no direction")
    shares = [found.count(kind) / n if n else None for kind in ("shared", "related", "only")]
    yield (pair.a.name, pair.b.name, n, *shares, found.count("no direction"))


def _density_rows(pair: PairMatches) -> Rows:
    density, best, partner = pair.a.density, pair.forward.best, pair.signed.score
    fires = np.isfinite(density) & (density > 0) & np.isfinite(best)
    decade = np.floor(np.log10(density, where=fires, out=np.full(len(density), np.nan)))
    for low in np.unique(decade[fires]).tolist():
        some = fires & (decade == low)
        row = (int(some.sum()), _mean(partner[some]), _mean(best[some]))
        yield (title_of(pair), f"{pair.a.name} in {pair.b.name}", 10.0**low, *row)


def _null_rows(pair: PairMatches) -> Rows:
    best = pair.forward.best
    for kind, null in pair.forward.nulls.items():
        limit = cut(null, best, pair.settings.fdr)
        share = float(np.mean(best[np.isfinite(best)] >= limit))
        yield (pair.a.name, pair.b.name, kind, null.n, null.quantile(0.5), null.quantile(0.99), limit, share)


def _word_rows(pair: PairMatches) -> Rows:
    found = word_overlap(pair.a, pair.b, pair.signed.index)
    known = np.isfinite(found)
    if not known.any():
        return
    shared = known & (pair.signed.score >= pair.settings.shared)
    order = np.random.default_rng(pair.settings.seed).permutation(pair.signed.index[known])
    dealt = np.full_like(pair.signed.index, NO_PARTNER)
    dealt[known] = order
    again = word_overlap(pair.a, pair.b, dealt)
    counts = (int(known.sum()), _mean(found[known]), int(shared.sum()), _mean(found[shared]))
    yield (pair.a.name, pair.b.name, *counts, _mean(again[np.isfinite(again)]))


def _split_rows(pair: PairMatches) -> Rows:
    for one in splits(pair):
        parts = " ".join(map(str, one.parts))
        cosines = " ".join(f"{cosine:.2f}" for cosine in one.cosines)
        said = "; ".join(label for part in one.parts if (label := pair.b.label(part)))
        own = (_id(pair.a, one.feature), pair.a.label(one.feature))
        yield (pair.a.name, pair.b.name, *own, parts, cosines, one.best, one.span, one.chance, said)


def _only_rows(pair: PairMatches) -> Rows:
    rows = [row for row, kind in enumerate(kinds(pair)) if kind == "only"]
    for row in sorted(rows, key=lambda row: float(pair.forward.best[row])):
        best = int(pair.forward.index[row, 0])
        own = (_id(pair.a, row), float(pair.forward.best[row]), pair.a.density[row], pair.a.label(row))
        yield (pair.a.name, pair.b.name, *own, _id(pair.b, best), pair.b.label(best))


def _duplicate_rows(side: ComparedDictionary, settings: ComparisonSettings) -> Rows:
    for row, other, cosine in duplicates(side, settings):
        yield side.name, _id(side, row), _id(side, other), cosine, side.label(row), side.label(other)


def _feature_rows(pair: PairMatches) -> Iterator[Sequence[Any]]:
    significant, mutual = pair.forward.significant, pair.mutual
    for row, kind in enumerate(kinds(pair)):
        there = kind != "no direction"
        best = int(pair.forward.index[row, 0])
        cells: list[Any] = [pair.a.name, pair.b.name, _id(pair.a, row)]
        cells += [_id(pair.b, best), float(pair.forward.best[row]), float(pair.forward.p[row])] if there else [None] * 3
        cells += [bool(significant[row]), bool(mutual[row])]
        for found in (pair.signed, pair.absolute):
            partner = int(found.index[row])
            cells += [None, None] if partner == NO_PARTNER else [_id(pair.b, partner), float(found.score[row])]
        said = pair.b.label(best) if there else ""
        yield [*cells, kind, float(pair.a.density[row]), pair.a.label(row), said]


def _id(side: ComparedDictionary, row: int) -> str:
    return str(FeatureId(side.site, row))


def _mean(values: Float[np.ndarray, " n"]) -> float | None:
    there = values[np.isfinite(values)]
    return float(there.mean(dtype=np.float64)) if len(there) else None


TABLES: Final = (
    _TableOfPairs(
        "pairs",
        "How much two dictionaries share",
        f"PW-MCC is the mean |cosine| of partners one to one ({PW_MCC}); rotated is its mean after random rotations "
        "of all of A, p how often these reach it; signed pairs by signed cosines. A in B is the mean of the best "
        "cosines of A's features. shared counts partners whose cosine is at least {shared}. gap says how far the "
        "pairs are from the best possible, relative: 0 is proved.",
        "a, b, site a, site b, features a, features b, pw_mcc, rotated, p, signed, a in b, b in a, mutual, shared, gap",
        _pair_rows,
        both=False,
    ),
    _TableOfPairs(
        "compare_scores",
        "Cosines of matches",
        "Mean cosine of the best match of every feature, and of its partner one to one; |cosine| looks at opposite "
        "rows too. by density weights features by how often they fire, where words say it. rotation and chance are "
        "medians of best matches without a counterpart. Features without a direction are left out.",
        "a, b, measure, sign, n, mean, above 0.5, above 0.7, above 0.9, by density, rotation q50, chance q50",
        _score_rows,
        both=False,
    ),
    _TableOfPairs(
        "compare_cosines",
        "How cosines of matches are distributed",
        f"Shares of features by the cosine of their match, in bins of {BIN:g}; those below 0 are in the first. "
        "rotation and chance are what best matches of rows score that have no counterpart: after a random rotation, "
        "and under {chance}.",
        "pair, of, measure, low, share",
        _bins,
    ),
    _TableOfPairs(
        "compare_kinds",
        "What is in both, and what in one alone",
        "shared: the partner one to one has a cosine of at least {shared}. related: it has not, and the best match "
        "stands out from {chance}. only: neither. Shares of the features with a direction.",
        "a, b, n, shared, related, only, no direction",
        _kind_rows,
    ),
    _TableOfPairs(
        "compare_density",
        "Matches by how often a feature fires",
        "Mean cosine of partners one to one, and of best matches, by decades of the share of tokens that a feature "
        "fires on.",
        "pair, of, low, n, partner, best",
        _density_rows,
    ),
    _TableOfPairs(
        "nulls",
        "What best matches score by chance",
        "Quantiles of best scores of rows without a counterpart; cut is the lowest significant best match at the "
        "false-discovery rate of the comparison, significant the share of features that reach it. A rotation is no "
        "valid null where all rows share directions: see Thresholds by layer.",
        "a, b, null, n, q50, q99, cut, significant",
        _null_rows,
    ),
    _TableOfPairs(
        "words",
        "Whether partners fire on the same tokens",
        "Mean overlap (Jaccard) of the strongest tokens of partners one to one, for all pairs with words on both "
        "sides, for those that are shared, and for partners dealt out anew.",
        "a, b, n, overlap, n shared, overlap of shared, overlap by chance",
        _word_rows,
        both=False,
    ),
    _TableOfPairs(
        "splits",
        "Features that several of the other dictionary share",
        "A feature, and the features of the other dictionary whose best match it is and stands out from {chance}. "
        "best is the squared cosine of its best match, span the share of its squared norm in the span of the parts, "
        "chance what as many random rows would add to best. Seen from the other side it is a merge.",
        "of, in, feature, words, parts, cosines, best, span, chance, words of the parts",
        _split_rows,
    ),
    _TableOfPairs(
        "only",
        "Features of one dictionary alone",
        "Features whose best match does not stand out from {chance} and whose partner is below {shared}; those that "
        "match worst first.",
        "of, in, feature, cosine, density, words, best, words of the best",
        _only_rows,
    ),
    _TableOfPairs(
        "features",
        "Every feature with its matches",
        "best: the nearest feature of the other dictionary. partner: one to one, with the largest sum of cosines; "
        "|partner| with that of absolute cosines. kind: as in the table of what is in both.",
        "of, in, feature, best, cosine, p, significant, mutual, partner, partner cosine, |partner|, |partner "
        "cosine|, kind, density, words, words of the best",
        _feature_rows,
    ),
)
"""The tables of pairs, in order."""
