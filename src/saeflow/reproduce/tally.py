"""Any function of sums over texts, with its interval: what contrasts of claims are made from. No torch.

    sums a text  ->  totals, and totals of each bootstrap draw  ->  function  ->  estimate

A claim compares shares, means, distances or ranks of several cells at once, so their separate intervals do not serve:
the comparison itself is drawn. The draws are those of the summary tables (`Resampling`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from saeflow.errors import InvalidArgument
from saeflow.experiments.statistics import LEVEL, Estimate

_AT_ONCE: Final = 8_000_000
"""Numbers of drawn totals held at once: 64 MB."""


def known_mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """The mean of what is a number; not a number where nothing is."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, values, 0.0).sum(axis) / there.sum(axis)


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Sums for each text (or feature, or seed: whatever is resampled).

    Attributes:
        sums: texts first, any shape after.
        weights: draws by texts: how often each text is drawn.
    """

    sums: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        """Check that both are of the same texts.

        Raises:
            InvalidArgument: when they are not.
        """
        if self.weights.ndim != 2 or len(self.sums) != self.weights.shape[1]:
            raise InvalidArgument(
                f"{len(self.sums)} texts were given to draws of shape {self.weights.shape}. Make the draws from "
                "these texts."
            )

    def told(self, of: Callable[[np.ndarray], np.ndarray], *, n: float = 0, level: float = LEVEL) -> Estimate:
        """`of(totals)` with its percentile interval.

        Args:
            of: from totals with one more axis in front, a draw each, to one number a draw.
            n: how many rows stand behind it.
            level: of the interval.

        The interval needs two texts with anything in them, and a number from more than half of the draws.
        """
        flat = self.sums.reshape(len(self.sums), -1)
        value = float(self.now(of))
        rows = round(n)
        if not np.isfinite(value):
            return Estimate(None, None, None, rows)
        if np.count_nonzero(np.any(flat != 0, axis=1)) < 2:
            return Estimate(value, None, None, rows)
        step = max(1, _AT_ONCE // max(1, flat.shape[1]))
        drawn = np.concatenate(
            [self._apply(of, self.weights[i : i + step] @ flat) for i in range(0, len(self.weights), step)]
        )
        drawn = drawn[np.isfinite(drawn)]
        if 2 * len(drawn) <= len(self.weights):
            return Estimate(value, None, None, rows)
        low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2)).tolist()
        return Estimate(value, low, high, rows)

    def now(self, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """`of(totals)` of the data themselves, of any shape; not a number where a cell is empty."""
        return self._apply(of, self.sums.sum(0)[None])[0]

    def _apply(self, of: Callable[[np.ndarray], np.ndarray], totals: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(of(totals.reshape(len(totals), *self.sums.shape[1:])), dtype=np.float64)
