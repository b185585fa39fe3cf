"""Intervals and tests for experiments whose rows are not independent. No torch.

Features of one token, and tokens of one text, share a context: their rows say much the same thing. So the
unit that is resampled is the text (the cluster bootstrap of Field and Welsh 2007, doi
10.1111/j.1467-9868.2007.00593.x), each dataset by itself, since the datasets are chosen and not drawn. All
draws of all rates are one product of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from saeflow.errors import InvalidArgument

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rate or a mean with its 95 % interval; None where the rows do not give one.

    The interval needs rows of two texts. `n` counts rows.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def interval(self) -> tuple[float | None, float | None, float | None]:
        """(value, low, high), for a table."""
        return self.value, self.low, self.high


@dataclass(frozen=True, slots=True, eq=False)
class Resampling:
    """How often each text is drawn in each bootstrap draw; made once, used for every rate of a summary.

    Attributes:
        weights: draws by texts; within a dataset, the row of a draw sums to the number of its texts.
    """

    weights: Float[np.ndarray, "k n"]

    @staticmethod
    def of(datasets: Sequence[int], *, seed: int = 0, draws: int = DRAWS) -> Resampling:
        """Draw texts with replacement, as many as there are, within each dataset.

        Args:
            datasets: the dataset of each text, as any integer.
            seed: the draws are a function of it and of `datasets`.
            draws: how many bootstrap draws.

        Raises:
            InvalidArgument: for no draws.
        """
        if draws < 1:
            raise InvalidArgument(
                f"{draws} bootstrap draws give no interval. Give 1 or more, such as {DRAWS}."
            )
        of_text = np.asarray(datasets, dtype=np.int64)
        weights = np.zeros((draws, len(of_text)))
        rng = np.random.default_rng(seed)
        for dataset in np.unique(of_text):
            here = np.flatnonzero(of_text == dataset)
            weights[:, here] = rng.multinomial(len(here), np.full(len(here), 1 / len(here)), size=draws)
        return Resampling(weights)

    def ratios(
        self,
        numerator: Float[np.ndarray, "n k"],
        denominator: Float[np.ndarray, "n k"],
    ) -> list[Estimate]:
        """Sum over texts of each column of `numerator` over that of `denominator`, with percentile intervals.

        Args:
            numerator: for each text, what is summed: successes, or values.
            denominator: for each text, how many rows they come from; their sum is `n` of the estimate.

        Raises:
            InvalidArgument: when the texts are not those of the draws.
        """
        if len(numerator) != self.weights.shape[1]:
            raise InvalidArgument(
                f"{len(numerator)} texts were given to draws of {self.weights.shape[1]}. Make the draws from "
                "these texts."
            )
        top, bottom = numerator.sum(0), denominator.sum(0)
        counts = np.rint(bottom).astype(np.int64)
        texts = np.count_nonzero(denominator, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = top / bottom
            drawn = (self.weights @ numerator) / (self.weights @ denominator)
        found: list[Estimate] = []
        for column, value in enumerate(values.tolist()):
            if not bottom[column]:
                found.append(Estimate(None, None, None, int(counts[column])))
                continue
            low = high = None
            if texts[column] > 1:
                kept = drawn[:, column]
                low, high = np.quantile(kept[np.isfinite(kept)], ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
            found.append(Estimate(value, low, high, int(counts[column])))
        return found

    def difference(
        self, a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], denominator: Float[np.ndarray, " n"]
    ) -> tuple[Estimate, float | None]:
        """Mean of a - b over pairs, and the two-sided p that it is 0.

        Args:
            a: for each text, the sum of one side of its pairs.
            b: the same of the other side.
            denominator: for each text, how many pairs.

        The p is twice the smaller share of draws on either side of 0, counting the data as one draw more
        (Davison and Hinkley 1997, section 4.4), and no less than all texts agreeing in sign would give by chance,
        2 / 2^texts. None where there is no interval.
        """
        estimate = self.ratios((a - b)[:, None], denominator[:, None])[0]
        if estimate.low is None:
            return estimate, None
        drawn = self.weights @ (a - b)
        least = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        chance = 2.0 ** (1 - int(np.count_nonzero(denominator)))
        return estimate, min(1.0, max(chance, 2 * (1 + least) / (1 + len(drawn))))


def mann_whitney(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " k"]) -> float:
    """Two-sided p of the Mann-Whitney U test, by its normal limit with ties and continuity corrected.

    Section 5.1 tests groups of at least 8 rows, where the limit holds; all equal values give 1.
    """
    if a.min() == a.max() == b.min() == b.max():
        return 1.0
    return float(stats.mannwhitneyu(a, b, alternative="two-sided", method="asymptotic").pvalue)


def by_text(
    texts: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    shape: tuple[int, int],
) -> Float[np.ndarray, "n_source n_target"]:
    """Sum of `values` for each text (rows) and group (columns); `shape` is (texts, groups)."""
    flat = np.bincount(texts * shape[1] + groups, weights=values, minlength=shape[0] * shape[1])
    return flat.astype(np.float64).reshape(shape)  # numpy gives integers where there is no row
