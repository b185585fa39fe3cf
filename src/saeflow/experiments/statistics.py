"""Intervals and tests for experiments whose rows are not independent. No torch.

Features of one token, and tokens of one text, share a context: their rows say much the same thing. So what counts is
texts, each dataset by itself, since the datasets are chosen and not drawn. One method serves all numbers:

    sums a text  ->  the number without each text in turn  ->  its spread  ->  an interval

    spread      delete-one-text jackknife in each dataset, the best of the cluster-robust ones for few clusters
                (MacKinnon, Nielsen and Webb 2023, doi 10.1016/j.jeconom.2022.04.001)
    bounded     a rate, a mark, a difference of rates: the exact binomial interval, between its bounds, of as many
                independent rows as the spread is worth, fewer for few texts (Korn and Graubard 1998, Survey
                Methodology 24:193)
    any other   the number and t times its spread
    no spread   where all texts agree, a kind of text that none of n showed may still be 1 - 0.025^(1/n) of all (Clopper
                and Pearson 1934): that share at the bounds of the number. Without bounds there is no interval.

Texts count by their rows: n texts of which one has most of the rows are worth little more than one (Kish 1965).
scripts/coverage_of_intervals.py measures how often the intervals hold what they should.

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
"""The columns that name a text: what is drawn."""

Span: TypeAlias = tuple[float, float]
"""The least and the largest value that a number can have."""

RATE: Final[Span] = (0.0, 1.0)
"""Of a share of rows."""

GAP: Final[Span] = (-1.0, 1.0)
"""Of a difference of two shares."""

CHANGE: Final[Span] = (-math.inf, 1.0)
"""Of 1 - z_new / z_old: what grows has no bound."""

_HALVES: Final = 400
"""Random halves of the texts for a number that is chosen."""

_AT_ONCE: Final = 8_000_000
"""Numbers of replicated totals held at once: 64 MB."""

_ROUNDING: Final = 1e-11
"""Relative; a smaller spread is that of sums of floats."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rate, a mean or any other number with its 95 % interval; None where the rows do not give one.

    Attributes:
        value: the number.
        low: the lower end of its interval.
        high: the upper end.
        n: rows it comes from.
        texts: texts (or samples, features: whatever is drawn) with such rows; None where nothing is drawn.
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
    """The mean of what is a number; not a number where nothing is."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, values, 0.0).sum(axis) / there.sum(axis)


def ratio(x: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n"]:
    """Sums over counts: the mean of which both are totals."""
    return x[..., 0] / x[..., 1]


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Sums for each text (or feature, or seed: whatever is drawn).

    Attributes:
        sums: texts first, any shape after.
        datasets: the dataset of each text, as any integer; all of one when not given.

    Raises:
        InvalidArgument: when the datasets are not those of the texts.
    """

    sums: np.ndarray
    datasets: Sequence[int] | Int[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        """Check that both are of the same texts."""
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
            of: from totals with one more axis in front, a case each, to one number a case; the same for totals that
                are all twice as large.
            n: how many rows stand behind it.
            span: the least and the largest value it can have; `RATE` for a share of rows.
            sizes: rows of each text, or of each text on each side of a comparison, of which the scarcer one counts;
                the sums of each text when not given.
            chosen: whether `of` jumps, as the place of the largest does: halves of the texts then take the place of all
                but one (Shao and Wu 1989, doi 10.1214/aos/1176347263).
            level: of the interval.

        An interval needs two texts with anything in them on every side, and a number without any one of them.
        """
        return self._found(of, n, span, sizes, chosen, level)[0]

    def of_means(
        self,
        of: Callable[[np.ndarray], np.ndarray] = lambda means: means,
        *,
        span: Span | None = None,
        level: float = LEVEL,
    ) -> Estimate:
        """`of(means)` with its interval, of sums whose last axis is (total, rows): `estimate` with these rows."""
        sizes = self.sums[..., 1]
        return self.estimate(lambda x: of(ratio(x)), n=float(sizes.sum()), span=span, sizes=sizes, level=level)

    def now(self, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """`of(totals)` of the data themselves, of any shape; not a number where a cell is empty."""
        return np.asarray(self._apply(of, self.sums.sum(0)[None])[0])

    def difference(self, *, n: float = 0, span: Span | None = None) -> tuple[Estimate, float | None]:
        """The mean of a difference, whose sums are (difference, pairs), and the two-sided p that it is 0.

        p is that of a t with the spread of the interval, and no less than all texts agreeing in sign would give by
        chance, 2 / 2^texts. None where nothing can be said.
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
        """The estimate, its standard error (not a number where there is none), and degrees of freedom."""
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
    """Sum over texts of each column of `sums` over that of `counts`, with its interval.

    Args:
        sums: for each text, what is summed: successes, or values.
        counts: for each text, how many rows they come from; their sum is `n` of the estimate.
        datasets: the dataset of each text, as any integer.
        span: the least and the largest value of a row; `RATE` for successes, None where there are no bounds.

    Raises:
        InvalidArgument: when the texts are not those of the datasets.
    """
    both = np.stack([sums, counts], -1)
    return [
        Tally(both[:, column], datasets).estimate(n=total, span=span, sizes=counts[:, column])
        for column, total in enumerate(counts.sum(0).tolist())
    ]


def _strata(datasets: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Datasets as 0, 1, …; those of one text are taken together; a lone one joins the largest (collapsed strata)."""
    _, strata, texts = np.unique(datasets, return_inverse=True, return_counts=True)
    alone = np.flatnonzero(texts == 1)
    if len(alone) and len(texts) > 1:
        strata[np.isin(strata, alone)] = alone[0] if len(alone) > 1 else texts.argmax()
        strata = np.unique(strata, return_inverse=True)[1]
    return strata


_Replicates: TypeAlias = tuple[Callable[[slice], np.ndarray], Float[np.ndarray, " k"]]
"""Totals of some of the cases, and what the square of each case's distance from the number counts."""


def _all_but_one(
    totals: Float[np.ndarray, " n_columns"], of_text: Float[np.ndarray, "n n_columns"], strata: Int[np.ndarray, " n"]
) -> _Replicates:
    """Totals without each text in turn; the others of its dataset stand in for it."""
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
    """Totals of twice a random half of each dataset's texts; of an odd number one counts once."""
    rng = np.random.default_rng(0)
    more = np.zeros((_HALVES, len(strata)))
    for stratum in range(strata.max() + 1):
        here = np.flatnonzero(strata == stratum)
        signs = np.sign(np.arange(len(here)) - (len(here) - 1) / 2)
        more[:, here] = rng.permuted(np.tile(signs, (_HALVES, 1)), axis=1)
    return lambda at: totals + more[at] @ of_text, np.full(_HALVES, 1 / _HALVES)


def _carriers(moved: Float[np.ndarray, " n"]) -> float:
    """How many texts the spread rests on: as many as would, on average, have its kurtosis if they were normal.

    n normal values have sum(d^2)^2 / sum(d^4) near n (n + 1) / (3 (n - 1)) (Fisher 1930); Johnson and Rust (1992) take
    the degrees of freedom of a jackknife from it likewise. 2 at least: a number that hangs on one text.
    """
    fourth = float((moved**4).sum())
    if not fourth:
        return np.inf
    three = 3 * float((moved**2).sum()) ** 2 / fourth
    return max(2.0, (three - 1 + max(0.0, (three - 1) ** 2 - 4 * three) ** 0.5) / 2)


def _interval(
    value: float, spread: float, df: float, worth: float, span: Span | None, alpha: float
) -> tuple[float | None, float | None]:
    """The interval of a number: see the head of the module."""
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
    """Two-sided p of the Mann-Whitney U test, by its normal limit with ties and continuity corrected.

    Section 5.1 tests groups of at least 8 rows, where the limit holds; all equal values give 1.
    """
    if a.min() == a.max() == b.min() == b.max():
        return 1.0
    return float(stats.mannwhitneyu(a, b, alternative="two-sided", method="asymptotic").pvalue)


def by_text(
    texts: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"], shape: tuple[int, int]
) -> Float[np.ndarray, "n_source n_target"]:
    """Sum of `values` for each text (rows) and group (columns); `shape` is (texts, groups)."""
    flat = np.bincount(texts * shape[1] + groups, weights=values, minlength=shape[0] * shape[1])
    return flat.astype(np.float64).reshape(shape)  # numpy gives integers where there is no row


def text_codes(frame: pd.DataFrame) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"]]:
    """The text of each line as 0, 1, …, and the dataset of each text as 0, 1, …: what `Tally` needs."""
    texts = frame.groupby(TEXT, observed=True)
    return texts.ngroup().to_numpy(), pd.factorize(texts.size().index.get_level_values("dataset"))[0]


def means(frame: pd.DataFrame, by: Sequence[str], values: Mapping[str, Span | None]) -> pd.DataFrame:
    """The mean of each column of `values` in each group of `by`: NAME, NAME_low, NAME_high, NAME_n; not a number where
    nothing is known.

    Args:
        frame: one line per observation, with `dataset` and `text`; what is not a number is left out.
        by: columns that together name a group. Groups come in the order of their values (or categories).
        values: columns to average, with the bounds of their values; None for none.
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
    """`means` of the lines that are no control, and with the prefix `control_` of those that are."""
    own, controls = (means(frame[frame["control"] == side], by, values) for side in (False, True))
    both = own.join(controls.add_prefix("control_"))
    return both.astype(object).fillna({f"control_{name}_n": 0 for name in values})


def shares(frame: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """How the lines of each group of `by` fall to the categories of `column`: share, low, high, and n of the group.

    Args:
        frame: one line per observation, with `dataset` and `text`.
        by: columns that together name a group; none for all lines together.
        column: categories, all of which have a line in every group.
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
    """The mean of column `a` less column `b` over the lines that know both, with its interval and two-sided p."""
    known = frame[np.isfinite(frame[a]) & np.isfinite(frame[b])]
    each = pd.DataFrame({"difference": known[a] - known[b], "n": 1.0})
    sums = each.groupby([known[name] for name in TEXT], observed=True).sum()
    return Tally(sums.to_numpy(), text_codes(known)[1]).difference(n=len(known), span=span)


def with_all(frame: pd.DataFrame, column: str, name: str = "all") -> pd.DataFrame:
    """The lines twice: first with `name` in a column of categories, then as they are."""
    known = [name, *frame[column].cat.categories]
    every = frame.assign(**{column: pd.Categorical([name] * len(frame), known)})
    return pd.concat([every, frame.assign(**{column: pd.Categorical(frame[column], known)})])
