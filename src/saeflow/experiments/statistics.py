"""Intervals and tests for experiments whose rows are not independent. No torch.

Features of one token, and tokens of one text, share a context, so their rows are correlated. The independent units are
texts, stratified by dataset, since datasets are chosen and not drawn. One method serves all estimates:

    sums per text  ->  the estimate without each text in turn  ->  its spread (standard error)  ->  an interval

    spread      delete-one-text jackknife within each dataset, the best cluster-robust estimator for few clusters
                (MacKinnon, Nielsen and Webb 2023, doi 10.1016/j.jeconom.2022.04.001)
    bounded     for a rate, a mark or a difference of rates: the exact binomial interval, scaled to its bounds, for the
                effective number of independent rows that the spread implies, reduced for few texts (Korn and Graubard
                1998, Survey Methodology 24:193)
    any other   the estimate plus or minus t times its spread
    no spread   where all texts agree, a kind of text that none of n showed may still make up 1 - 0.025^(1/n) of all
                texts (Clopper and Pearson 1934): the interval allows for that share at either bound of the estimate.
                Without bounds there is no interval.

Texts are weighted by their rows: n texts of which one has most of the rows are worth little more than one (Kish 1965).
scripts/coverage_of_intervals.py measures the coverage of the intervals.

Rows of experiments are DataFrames with the columns `dataset` and `text`. Tables are queries on them:

    trials = sf.open_results(folder).frame()                   one line per row of the folder
    means(trials, ["strategy"], {"change": CHANGE})            change, change_low, change_high, change_n per strategy
    shares(seen, ["layer"], "cosine")                          share, low, high, n of each category per layer
    mean_difference(targets, "top-1", "random", GAP)           the difference of two columns on the same lines
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from saeflow.errors import InvalidArgument

LEVEL: Final = 0.95
TEXT: Final = ["dataset", "text"]
"""The columns that identify a text, the unit that is drawn."""

Span: TypeAlias = tuple[float, float]
"""The least and the largest value that an estimate can take."""

RATE: Final[Span] = (0.0, 1.0)
"""The span of a share of rows."""

GAP: Final[Span] = (-1.0, 1.0)
"""The span of a difference of two shares."""

CHANGE: Final[Span] = (-math.inf, 1.0)
"""The span of 1 - z_new / z_old, which has no lower bound, since activations may grow."""

_HALVES: Final = 400
"""How many random halves of the texts replace the jackknife if `chosen`."""

_AT_ONCE: Final = 8_000_000
"""How many numbers of replicated totals are held at once: 64 MB."""

_ROUNDING: Final = 1e-11
"""Relative deviations below this are floating-point noise and count as 0."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rate, a mean or any other number with its interval (95 % unless requested otherwise); None if unknown.

    Attributes:
        value: the estimate.
        low: the lower end of its interval.
        high: the upper end of its interval.
        n: the number of rows behind it.
        texts: the number of texts (or samples, features: whatever is drawn) with such rows; None if nothing is drawn.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    texts: int | None = None

    @property
    def interval(self) -> tuple[float | None, float | None, float | None]:
        """(value, low, high), for a table."""
        return self.value, self.low, self.high


def known_mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """The mean over finite values; NaN where there are none."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, values, 0.0).sum(axis) / there.sum(axis)


def ratio(x: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n"]:
    """Sums divided by counts: the means."""
    return x[..., 0] / x[..., 1]


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Sums for each text (or feature, or seed: whatever is drawn).

    Attributes:
        sums: one entry per text along the first axis; any shape after it.
        datasets: the dataset of each text, as any integer; None if all texts are of one dataset.

    Raises:
        InvalidArgument: when the numbers of texts and datasets differ.
    """

    sums: np.ndarray
    datasets: Sequence[int] | Int[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        """Check that there is one dataset per text."""
        if self.datasets is not None and len(self.sums) != len(self.datasets):
            raise InvalidArgument(
                f"{len(self.sums)} texts came with the datasets of {len(self.datasets)}. Give the dataset of each."
            )

    def estimate(
        self,
        of: Callable[[np.ndarray], np.ndarray] = ratio,
        *,
        n: float = 0,
        span: Span | None = None,
        sizes: np.ndarray | None = None,
        chosen: bool = False,
        level: float = LEVEL,
    ) -> Estimate:
        """`of(totals)` with its interval.

        Args:
            of: maps totals with an extra leading axis, one case per entry, to one number per case; doubling all totals
                must not change the result.
            n: how many rows are behind the estimate.
            span: the least and the largest value it can take; `RATE` for a share of rows.
            sizes: the rows of each text, or of each text on each side of a comparison, where the scarcer side counts;
                by default the absolute sums of each text.
            chosen: whether `of` is discontinuous, like an argmax: random halves of the texts then replace the
                jackknife (Shao and Wu 1989, doi 10.1214/aos/1176347263).
            level: the level of the interval.

        There is an interval only if every side has at least two texts with rows and every replicate is finite.
        """
        return self._found(of, n, span, sizes, chosen, level)[0]

    def of_means(
        self,
        of: Callable[[np.ndarray], np.ndarray] = lambda means: means,
        *,
        span: Span | None = None,
        level: float = LEVEL,
    ) -> Estimate:
        """`of(means)` with its interval, for sums whose last axis is (total, rows)."""
        sizes = self.sums[..., 1]
        return self.estimate(lambda x: of(ratio(x)), n=float(sizes.sum()), span=span, sizes=sizes, level=level)

    def now(self, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """`of(totals)` for all texts, of any shape; NaN where a cell is empty."""
        return np.asarray(self._apply(of, self.sums.sum(0)[None])[0])

    def difference(self, *, n: float = 0, span: Span | None = None) -> tuple[Estimate, float | None]:
        """The mean of a difference, from sums of (difference, pairs), and the two-sided p-value against 0.

        p is that of a t statistic with the spread of the interval, but at least 2 / 2^texts, the probability that all
        texts agree in sign by chance. None if the spread is undefined.
        """
        found, spread, df = self._found(ratio, n, span, self.sums[:, 1], chosen=False, level=LEVEL)
        if found.value is None or found.texts is None or found.texts < 2 or not np.isfinite(spread):
            return found, None
        if not found.value:
            return found, 1.0
        p = 2 * float(stats.t.sf(abs(found.value) / spread, df)) if spread else 0.0
        return found, max(p, 2.0 ** (1 - found.texts))

    def _found(
        self,
        of: Callable[[np.ndarray], np.ndarray],
        n: float,
        span: Span | None,
        sizes: np.ndarray | None,
        chosen: bool,
        level: float,
    ) -> tuple[Estimate, float, float]:
        """The estimate, its standard error (NaN if there is none), and the degrees of freedom."""
        flat = self.sums.reshape(len(self.sums), -1).astype(np.float64)
        value, rows = float(self.now(of)), round(n)
        sides = np.abs(flat).sum(1) if sizes is None else np.asarray(sizes, dtype=np.float64)
        sides = sides.reshape(len(flat), -1)
        texts = int(np.count_nonzero(sides, axis=0).min())
        if not np.isfinite(value):
            return Estimate(None, None, None, rows, texts), np.nan, 0.0
        there = np.flatnonzero(sides.any(1))
        nothing = Estimate(value, None, None, rows, texts), np.nan, 0.0
        if texts < 2:
            return nothing
        datasets = np.zeros(len(flat), np.int64) if self.datasets is None else np.asarray(self.datasets)
        strata = _strata(datasets[there])
        replicated, factors = (_halves if chosen else _all_but_one)(flat.sum(0), flat[there], strata)
        step = max(1, _AT_ONCE // max(1, flat.shape[1]))
        moved = (
            np.concatenate([self._apply(of, replicated(slice(at, at + step))) for at in range(0, len(factors), step)])
            - value
        )
        if not np.isfinite(moved).all():
            return nothing
        moved[np.abs(moved) < _ROUNDING * max(1.0, abs(value))] = 0.0
        spread = float((factors @ moved**2) ** 0.5)
        worth = float((sides.sum(0) ** 2 / (sides**2).sum(0)).min())
        df = max(1.0, worth - 1 - int(strata.max()))
        if (span is None or span[0] < 0) and not chosen:
            df = min(df, _carriers(moved))
        low, high = _interval(value, spread, df, worth, span, 1 - level)
        return Estimate(value, low, high, rows, texts), spread, df

    def _apply(self, of: Callable[[np.ndarray], np.ndarray], totals: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(of(totals.reshape(len(totals), *self.sums.shape[1:])), dtype=np.float64)


def mean_estimates(
    sums: Float[np.ndarray, "n k"],
    counts: Float[np.ndarray, "n k"],
    datasets: Sequence[int] | Int[np.ndarray, " n"],
    *,
    span: Span | None,
) -> list[Estimate]:
    """The mean of each column, total of `sums` divided by total of `counts`, with its interval.

    Args:
        sums: for each text, the sum of successes, or of values.
        counts: for each text, the number of rows behind it; the total is `n` of the estimate.
        datasets: the dataset of each text, as any integer.
        span: the least and the largest value of a row; `RATE` for successes, None without bounds.

    Raises:
        InvalidArgument: when the numbers of texts and datasets differ.
    """
    both = np.stack([sums, counts], -1)
    return [
        Tally(both[:, column], datasets).estimate(n=total, span=span, sizes=counts[:, column])
        for column, total in enumerate(counts.sum(0).tolist())
    ]


def _strata(datasets: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Datasets as strata 0, 1, …: those with one text are merged; a single such dataset joins the largest one.

    A stratum of one text would have no spread (collapsed strata).
    """
    _, strata, texts = np.unique(datasets, return_inverse=True, return_counts=True)
    alone = np.flatnonzero(texts == 1)
    if len(alone) and len(texts) > 1:
        strata[np.isin(strata, alone)] = alone[0] if len(alone) > 1 else texts.argmax()
        strata = np.unique(strata, return_inverse=True)[1]
    return strata


_Replicates: TypeAlias = tuple[Callable[[slice], np.ndarray], Float[np.ndarray, " k"]]
"""A function that returns the totals of some replicates, and the weight of each replicate's squared deviation."""


def _all_but_one(
    totals: Float[np.ndarray, " n_columns"], of_text: Float[np.ndarray, "n n_columns"], strata: Int[np.ndarray, " n"]
) -> _Replicates:
    """Jackknife replicates: totals without each text in turn, the others of its dataset reweighted to replace it."""
    texts = np.bincount(strata).astype(np.float64)
    of_stratum = np.zeros((len(texts), of_text.shape[1]))
    np.add.at(of_stratum, strata, of_text)
    own = texts[strata, None]

    def without(at: slice) -> np.ndarray:
        return totals + (of_stratum[strata[at]] / own[at] - of_text[at]) * own[at] / (own[at] - 1)

    return without, ((own - 1) / own)[:, 0]


def _halves(
    totals: Float[np.ndarray, " n_columns"], of_text: Float[np.ndarray, "n n_columns"], strata: Int[np.ndarray, " n"]
) -> _Replicates:
    """Half-sample replicates: a random half of each dataset's texts counts twice; with an odd number, one text once."""
    rng = np.random.default_rng(0)
    more = np.zeros((_HALVES, len(strata)))
    for stratum in range(strata.max() + 1):
        here = np.flatnonzero(strata == stratum)
        signs = np.sign(np.arange(len(here)) - (len(here) - 1) / 2)
        more[:, here] = rng.permuted(np.tile(signs, (_HALVES, 1)), axis=1)
    return lambda at: totals + more[at] @ of_text, np.full(_HALVES, 1 / _HALVES)


def _carriers(moved: Float[np.ndarray, " n"]) -> float:
    """How many texts the spread rests on: the number of normal deviations that would have its kurtosis on average.

    n normal values have sum(d^2)^2 / sum(d^4) near n (n + 1) / (3 (n - 1)) (Fisher 1930); Johnson and Rust (1992)
    likewise derive the degrees of freedom of a jackknife from it. At least 2, for an estimate that hangs on one text.
    """
    fourth = float((moved**4).sum())
    if not fourth:
        return np.inf
    three = 3 * float((moved**2).sum()) ** 2 / fourth
    return max(2.0, (three - 1 + max(0.0, (three - 1) ** 2 - 4 * three) ** 0.5) / 2)


def _interval(
    value: float, spread: float, df: float, worth: float, span: Span | None, alpha: float
) -> tuple[float | None, float | None]:
    """The interval of an estimate, as described at the top of this module."""
    if not spread:
        if span is None or not all(map(math.isfinite, span)):
            return None, None
        unseen = 1 - (alpha / 2) ** (1 / worth)
        return value + unseen * (span[0] - value), value + unseen * (span[1] - value)
    t = float(stats.t.ppf(1 - alpha / 2, df))
    if span is None or not all(map(math.isfinite, span)):
        low, high = span or (-math.inf, math.inf)
        return max(low, value - t * spread), min(high, value + t * spread)
    wide = span[1] - span[0]
    p = (value - span[0]) / wide
    n = p * (1 - p) * (wide / spread * float(stats.norm.ppf(1 - alpha / 2)) / t) ** 2
    low = float(stats.beta.ppf(alpha / 2, n * p, n * (1 - p) + 1)) if p > 0 else 0.0
    high = float(stats.beta.ppf(1 - alpha / 2, n * p + 1, n * (1 - p))) if p < 1 else 1.0
    return span[0] + wide * round(low, 9), span[0] + wide * round(high, 9)


def mann_whitney(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " k"]) -> float:
    """Two-sided p-value of the Mann-Whitney U test, by normal approximation with tie and continuity corrections.

    Section 5.1 tests groups of at least 8 rows, where the approximation holds; 1 if all values are equal.
    """
    if a.min() == a.max() == b.min() == b.max():
        return 1.0
    return float(stats.mannwhitneyu(a, b, alternative="two-sided", method="asymptotic").pvalue)


def by_text(
    texts: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"], shape: tuple[int, int]
) -> Float[np.ndarray, "n_source n_target"]:
    """Sum of `values` for each text (rows) and group (columns); `shape` is (texts, groups)."""
    flat = np.bincount(texts * shape[1] + groups, weights=values, minlength=shape[0] * shape[1])
    return flat.astype(np.float64).reshape(shape)  # without rows, numpy's bincount returns integers


def text_codes(frame: pd.DataFrame) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"]]:
    """The text of each line as 0, 1, …, and the dataset of each text as 0, 1, …, for `Tally`."""
    texts = frame.groupby(TEXT, observed=True)
    return texts.ngroup().to_numpy(), pd.factorize(texts.size().index.get_level_values("dataset"))[0]


def means(frame: pd.DataFrame, by: Sequence[str], values: Mapping[str, Span | None]) -> pd.DataFrame:
    """The mean of each column of `values` in each group of `by`: NAME, NAME_low, NAME_high, NAME_n; NaN if unknown.

    Args:
        frame: one line per observation, with `dataset` and `text`; values that are not finite are left out.
        by: columns that together identify a group. Groups are in the order of their values (or categories).
        values: columns to average, with the bounds of their values; None without bounds.
    """
    grouped = frame.groupby(list(by), observed=True)
    group, keys = grouped.ngroup().to_numpy(), grouped.size().index
    text, datasets = text_codes(frame)
    shape = len(datasets), len(keys)
    found: dict[str, list[float | None]] = {}
    for name, span in values.items():
        column = frame[name].to_numpy(dtype=np.float64)
        known = np.isfinite(column)
        at = text[known], group[known]
        sums, counts = (by_text(*at, each, shape) for each in (column[known], np.ones(int(known.sum()))))
        estimates = mean_estimates(sums, counts, datasets, span=span)
        found |= {
            name: [one.value for one in estimates],
            f"{name}_low": [one.low for one in estimates],
            f"{name}_high": [one.high for one in estimates],
            f"{name}_n": [one.n for one in estimates],
        }
    return (
        pd.DataFrame(found, index=keys, dtype=object).infer_objects().astype({f"{name}_n": np.int64 for name in values})
    )


def means_and_controls(frame: pd.DataFrame, by: Sequence[str], values: Mapping[str, Span | None]) -> pd.DataFrame:
    """`means` of the lines that are not controls, and, with the prefix `control_`, of those that are."""
    own, controls = (means(frame[frame["control"] == side], by, values) for side in (False, True))
    both = own.join(controls.add_prefix("control_"))
    return both.astype(object).fillna({f"control_{name}_n": 0 for name in values})


def shares(frame: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """The share of each category of `column` in each group of `by`: share, low, high, and n, the size of the group.

    Args:
        frame: one line per observation, with `dataset` and `text`.
        by: columns that together identify a group; empty for all lines together.
        column: a categorical column; the result has a line for every category in every group.
    """
    keys = frame.groupby(list(by), observed=True).ngroup().to_numpy() if by else np.zeros(len(frame), np.int64)
    names = (
        frame[list(by)].drop_duplicates().sort_values(list(by), ignore_index=True) if by else pd.DataFrame(index=[0])
    )
    text, datasets = text_codes(frame)
    categories = frame[column].cat.categories
    k = len(categories)
    cells = keys * k + frame[column].cat.codes.to_numpy()
    counts = by_text(text, cells, np.ones(len(frame)), (len(datasets), len(names) * k))
    totals = counts.reshape(len(datasets), -1, k).sum(-1).repeat(k, axis=1)
    found = names.loc[names.index.repeat(k)].reset_index(drop=True)
    found[column] = pd.Categorical(np.tile(categories, len(names)), categories)
    estimates = mean_estimates(counts, totals, datasets, span=RATE)
    columns: dict[str, Any] = {"share": [one.value for one in estimates], "low": [one.low for one in estimates]}
    columns |= {"high": [one.high for one in estimates], "n": [one.n for one in estimates]}
    return found.assign(**columns)


def mean_difference(frame: pd.DataFrame, a: str, b: str, span: Span | None) -> tuple[Estimate, float | None]:
    """The mean of column `a` minus column `b` over the lines with both, with its interval and two-sided p-value."""
    known = frame[np.isfinite(frame[a]) & np.isfinite(frame[b])]
    each = pd.DataFrame({"difference": known[a] - known[b], "n": 1.0})
    sums = each.groupby([known[name] for name in TEXT], observed=True).sum()
    return Tally(sums.to_numpy(), text_codes(known)[1]).difference(n=len(known), span=span)


def with_all(frame: pd.DataFrame, column: str, name: str = "all") -> pd.DataFrame:
    """The lines twice: first with `name` in a categorical column, then as they are."""
    known = [name, *frame[column].cat.categories]
    every = frame.assign(**{column: pd.Categorical([name] * len(frame), known)})
    return pd.concat([every, frame.assign(**{column: pd.Categorical(frame[column], known)})])
