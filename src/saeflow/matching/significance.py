"""From a null to cuts: which best matches of a table stand out, at a false-discovery rate. No torch.

Of the best matches of all features of a pair of sites, those whose p-value passes the step-up rule of
Benjamini and Hochberg (1995) are kept: of the edges that are kept, a share `fdr` at most is expected to be
false. p falls as the score rises, so the rule comes down to one cut for each pair of sites.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

from saeflow.errors import InvalidArgument
from saeflow.matching.null import NullDistribution


def p_values(null: NullDistribution, scores: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """`null.p_value` of every score."""
    first = np.searchsorted(-np.array(null.scores), -scores.astype(np.float64), side="right")
    return np.array([*null.ranks, null.n + 1])[first] / (null.n + 1)


def cut(null: NullDistribution, best: Float[np.ndarray, " n"], fdr: float) -> float:
    """The lowest of the `best` scores of a pair's features that is significant at the rate `fdr`.

    1.0, which only equal rows reach, when none is.

    Raises:
        InvalidArgument: when `fdr` is not between 0 and 1.
    """
    _check_rate(fdr)
    # a feature without a direction has no match, and is not tested
    ordered = np.sort(best[~np.isneginf(best)])[::-1]
    passed = p_values(null, ordered) <= fdr * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)
    kept = np.flatnonzero(passed)
    return min(float(ordered[kept[-1]]), 1.0) if len(kept) else 1.0


def rows_needed(null: NullDistribution, best: Float[np.ndarray, " n"], fdr: float) -> int | None:
    """How many null scores would tell, where `cut` keeps nothing for want of them; None where they are enough.

    p is never below 1 / (n + 1). Matches that beat every null score are kept only when n is at least

        N / (fdr u) - 1        N best matches, u of them above the whole null

    so that a null of n scores can keep nothing where fewer than N / (fdr (n + 1)) features have a counterpart. That few
    matches above the null may be chance (a Poisson count with mean N / (n + 1)) counts as enough.

    Raises:
        InvalidArgument: when `fdr` is not between 0 and 1.
    """
    best = best[~np.isneginf(best)]
    beyond = int((best > null.scores[0]).sum())
    by_chance = len(best) / (null.n + 1)
    if beyond <= by_chance + 3 * by_chance**0.5 + 1 or cut(null, best, fdr) < 1.0:
        return None
    needed = int(np.ceil(len(best) / (fdr * beyond))) - 1
    return needed if needed > null.n else None


def _check_rate(fdr: float) -> None:
    if not 0.0 < fdr < 1.0:
        raise InvalidArgument(f"fdr={fdr} is no false-discovery rate. Give a share between 0 and 1, such as 0.01.")
