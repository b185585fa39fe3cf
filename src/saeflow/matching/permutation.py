"""One-to-one matching: the assignment of rows to rows with the largest sum of dot products.

    P = argmin_P sum |W_B - P W_A|^2  =  argmax_P sum_i a_i . b_P(i)          (section 2.3)

This is SAE Match (Balagansky et al. 2024, arXiv 2410.07656). The two sides of the equation agree if every row of
both sides gets a partner, or if all rows have the same norm; with more rows on one side and different norms, the
sum of dot products is what is maximised here.

The product of two dictionaries of 16,384 features has 268 million entries, and nearly all are too small to
matter. So the problem is solved on a core of pairs, and the solution is proved optimal for all pairs (the
core-oriented approach of Volgenant 1996, Computers & Operations Research 23):

1. Products: all of them once, in the number format that is fastest here, with a bound on their error (`screening`).
   They are kept if they take little memory, and computed again for every round otherwise.
2. Core: the best `candidates` columns of every row and rows of every column, and any one full matching.
3. Solve on the core (scipy's LAPJVsp).
4. Prices: the least p >= 0 under which no row prefers another column of the core to its own.
5. Bound: sum p + sum_i max_j (a_i . b_j - p_j) is at least the optimum for ANY p >= 0. The maximum runs over
   all columns, with exact products for those that may attain it. If the bound meets the value of the core's solution,
   that solution is optimal for the whole; if not, the pairs that violate it join the core, and steps 3 to 5 repeat.

With `absolute`, absolute dot products are summed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching, min_weight_full_bipartite_matching
from torch import Tensor

from saeflow.errors import InvalidArgument, SaeflowWarning, WidthMismatch
from saeflow.matching.screening import UNIT, Rounded, dots, rounded_for
from saeflow.matching.topk import full_precision
from saeflow.sources.weights import first_rows, row_peaks

CANDIDATES = 32
TOLERANCE = 1e-6
ROUNDS = 8
DEEP = 64
"""Columns that join the core per row and round at most."""
CROWDED = 4 * DEEP
"""A row with more columns that may be worth enough is multiplied exactly with all columns."""
KEPT_BYTES = 1 << 29
"""Products are kept up to this much memory: 16,384 x 16,384 in bfloat16."""
ROWS = 512
"""Rows of products processed together."""
SLACK = 0.5
"""Columns worth slightly less to a row than its own join too: less by up to this share of the mean price. They save
rounds: 2 were needed instead of 5, at 8,192 planted rows."""
ROUNDED = 1e-5
"""How much float32 may change a worth, relative to the terms it is computed from."""
DENSE_ENTRIES = 1 << 22
"""Up to this many products (2,048 x 2,048) the whole matrix is solved at once."""
DENSE_SHARE = 8
"""Where the core holds more than one in this many pairs, the dense solver takes over."""
DENSE_BYTES = 20
"""Peak memory of the dense solver in bytes per product: 5.4 GB were measured at 16,384 x 16,384."""
NO_PARTNER = -1
GRID = 1 << 26
"""Steps between the smallest and the largest product of a core: finer than float32 products."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """A one-to-one matching of rows, and how far it can be from the optimum.

    Attributes:
        index: The partner of each source row, -1 for rows of the larger side that are left over.
        score: The dot product with the partner, or its absolute value under `absolute`; -inf without a partner.
        value: The sum of the scores of all pairs.
        bound: Upper bound on the value of any assignment, from prices on all columns; `value` if solved densely.
        gap: (bound - value) / |bound|, 0 where both are 0. Up to the rounding of float32 products.
        exact: Whether it is optimal up to `tolerance`: bound - value is at most that share of the larger of |bound|
            and the sum of |score|.
        how: "dense", or "core" with its rounds and how many pairs it held.
    """

    index: Int64[np.ndarray, " n_source"]
    score: Float64[np.ndarray, " n_source"]
    value: float
    bound: float
    gap: float
    exact: bool
    how: str

    def inverse(self, n_target: int) -> Assignment:
        """The same pairs read from the other side, which has `n_target` rows.

        Raises:
            InvalidArgument: when a partner lies outside `n_target`.
        """
        if len(self.index) and self.index.max() >= n_target:
            raise InvalidArgument(f"row {self.index.max()} is a partner, beyond {n_target} rows of that side.")
        rows = np.flatnonzero(self.index != NO_PARTNER)
        index = np.full(n_target, NO_PARTNER, dtype=np.int64)
        score = np.full(n_target, -np.inf)
        index[self.index[rows]], score[self.index[rows]] = rows, self.score[rows]
        return Assignment(index, score, self.value, self.bound, self.gap, self.exact, self.how)


def assign(
    a: Float[Tensor, "n_source d_model"],
    b: Float[Tensor, "n_target d_in"],
    *,
    absolute: bool = False,
    candidates: int = CANDIDATES,
    tolerance: float = TOLERANCE,
    rounds: int = ROUNDS,
    dense_entries: int = DENSE_ENTRIES,
    memory: int = 8 << 30,
) -> Assignment:
    """Pair rows of `a` with rows of `b`, each at most once, so that the sum of dot products is largest.

    Every row of the smaller side gets a partner, even if their product is negative. Rows are float32 of any norm.
    Several assignments may reach the same sum: where rows are repeated, it is not determined which of them gets
    which partner.

    Args:
        a: Source rows.
        b: Target rows, of the same width.
        absolute: Sum absolute dot products: a row and its opposite are as good a pair as two equal rows.
        candidates: Best columns of each row, and best rows of each column, that the core starts with.
        tolerance: Relative gap that counts as `exact`. Products are float32, so gaps below 1e-7 are meaningless.
        rounds: How often the core may grow before the dense solver takes over.
        dense_entries: Up to this many products the dense solver is used at once.
        memory: Bytes the dense solver may take if the core does not converge. If it needs more, the best assignment
            found is returned with `exact` False and a warning that states the numbers.

    Raises:
        WidthMismatch: when the two differ in width.
        InvalidArgument: for a side without rows, values that are not finite, or products that overflow float32.
    """
    a, b = a.float(), b.float()
    _check(a, b)
    if len(a) > len(b):
        return assign(
            b,
            a,
            absolute=absolute,
            candidates=candidates,
            tolerance=tolerance,
            rounds=rounds,
            dense_entries=dense_entries,
            memory=memory,
        ).inverse(len(a))
    if len(a) * len(b) <= dense_entries:
        return _dense(a, b, absolute)
    needed = len(a) * len(b) * DENSE_BYTES
    largest = len(a) * len(b) // DENSE_SHARE if needed <= memory else len(a) * len(b)
    best = _by_core(a, b, absolute, candidates, tolerance, rounds, largest)
    if best.exact:
        return best
    if needed <= memory:
        return _dense(a, b, absolute)
    warnings.warn(
        f"the assignment of {len(a)} to {len(b)} rows is within {best.gap:.1e} of the best possible and was not "
        f"proved closer in {rounds} rounds. The dense solver would need {needed / 2**30:.1f} GiB and memory is "
        f"limited to {memory / 2**30:.1f}: raise `memory`, `candidates` or `rounds` if this is too far.",
        SaeflowWarning,
        stacklevel=2,
    )
    return best


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape[1] != b.shape[1]:
        raise WidthMismatch(
            f"rows of width {a.shape[1]} cannot be assigned to rows of width {b.shape[1]}. Both dictionaries must "
            "write into the same stream; project attention features first if they live in z."
        )
    peaks: list[float] = []
    for name, rows in (("source", a), ("target", b)):
        if not len(rows):
            raise InvalidArgument(f"the {name} has no rows to assign. Give one row or more on both sides.")
        peak = row_peaks(rows)
        bad = torch.nonzero(~torch.isfinite(peak)).flatten()
        if len(bad):
            raise InvalidArgument(
                f"the {name} has NaN or infinite values in {len(bad)} of {len(rows)} rows (first rows "
                f"{first_rows(bad)}). An assignment needs finite rows."
            )
        peaks.append(float(peak.max()))
    if peaks[0] * peaks[1] * a.shape[1] > float(np.finfo(np.float32).max) / 8:
        raise InvalidArgument(
            f"products of entries as large as {peaks[0]:.1e} and {peaks[1]:.1e} go beyond float32. Scale the rows."
        )


def _dense(a: Tensor, b: Tensor, absolute: bool) -> Assignment:
    """The whole matrix of products, solved by scipy."""
    # scipy solves in float64 and makes that copy itself, so large products need not be float64 here too
    products = a.double() @ b.double().T if len(a) * len(b) <= DENSE_ENTRIES else a @ b.T
    products = products.abs_() if absolute else products
    index = linear_sum_assignment(products.cpu().numpy(), maximize=True)[1].astype(np.int64)
    score = _products(a, b, np.arange(len(a)), index, absolute)
    value = float(score.sum())
    return Assignment(index, score, value, value, 0.0, exact=True, how="dense")


@dataclass(frozen=True, slots=True, eq=False)
class _Core:
    """Pairs of rows and columns with their products, sorted by row and column, each once."""

    row: Int64[np.ndarray, " n"]
    column: Int64[np.ndarray, " n"]
    score: Float64[np.ndarray, " n"]

    @staticmethod
    def of(row: np.ndarray, column: np.ndarray, score: np.ndarray, n_columns: int) -> _Core:
        """Sort pairs, and keep the first of equal ones."""
        key, first = np.unique(row.astype(np.int64) * n_columns + column, return_index=True)
        return _Core(key // n_columns, key % n_columns, score[first].astype(np.float64))

    def add(self, row: np.ndarray, column: np.ndarray, score: np.ndarray, n_columns: int) -> _Core:
        """The core with more pairs."""
        return _Core.of(
            np.concatenate([self.row, row]),
            np.concatenate([self.column, column]),
            np.concatenate([self.score, score]),
            n_columns,
        )


def _by_core(
    a: Tensor, b: Tensor, absolute: bool, candidates: int, tolerance: float, rounds: int, largest: int
) -> Assignment:
    """Steps 1 to 5 of the module docstring; `a` is the smaller side, `largest` the most pairs that a core may hold."""
    products = _AllProducts(a, b, absolute)
    core = _feasible(products.best(min(candidates, len(a))), a, b, absolute)
    bound, done = np.inf, 0
    while True:
        done += 1
        index, price = _solve(core, len(a), len(b))
        score = _products(a, b, np.arange(len(a)), index, absolute)
        own = score - price[index]
        row, column, worth = products.worth_most(price, own, SLACK * float(price.mean()), min(DEEP, len(b)))
        best = own.copy()
        np.maximum.at(best, row, worth)
        bound = min(bound, float(price.sum() + best.sum()))
        value = float(score.sum())
        size = max(abs(bound), float(np.abs(score).sum()))
        room = (bound - value) / size if size else 0.0
        # rounding leaves a gap even at the optimum: `tolerance` is good enough in the end, rounds aim at a tenth of it
        if room <= tolerance / 10 or done >= rounds or len(core.row) > largest:
            break
        before = len(core.row)
        core = core.add(row, column, worth + price[column], len(b))
        if len(core.row) == before:
            break
    gap = 0.0 if bound == value else max(bound - value, 0.0) / max(abs(bound), np.finfo(float).tiny)
    how = f"core of {len(core.row):,} pairs, {done} {'round' if done == 1 else 'rounds'}"
    return Assignment(index, score, value, max(bound, value), gap, bool(room <= tolerance), how)


class _AllProducts:
    """The products of all pairs from rounded rows, with a bound on their error."""

    def __init__(self, a: Tensor, b: Tensor, absolute: bool) -> None:
        """Choose the kind of product, and multiply now if all products are kept."""
        self._a, self._b, self._absolute = a.contiguous(), b.contiguous(), absolute
        low = rounded_for(a, b, 1, both=False)
        # int8 products are written in float32, which takes twice the memory of bfloat16
        self._left, self._right = (
            low if low[0].product != "int8" else (Rounded.of(a, "bfloat16"), Rounded.of(b, "bfloat16"))
        )
        largest = self._left.norm * self._right.norm.max()
        self._off = self._left.eps(self._right) + (UNIT[self._left.product] * largest * 1.01).float()
        """For every row, the largest error of a product."""
        self._kept: Tensor | None = None
        if len(a) * len(b) * self._left.written.itemsize <= KEPT_BYTES:
            self._kept = a.new_empty(len(a), len(b), dtype=self._left.written)
            self._multiply(slice(None), self._kept)

    def _multiply(self, rows: slice, out: Tensor) -> None:
        with full_precision():
            self._left.multiply(self._right, rows, slice(None), out)
        if self._absolute:
            out.abs_()

    def _slices(self) -> Iterator[tuple[slice, Float[Tensor, "rows n_target"]]]:
        """Yield some rows at a time, with their products."""
        n, m = len(self._a), len(self._b)
        if self._kept is not None:
            yield from ((slice(top, min(top + ROWS, n)), self._kept[top : top + ROWS]) for top in range(0, n, ROWS))
            return
        buffer = self._a.new_empty(ROWS, m, dtype=self._left.written)
        for top in range(0, n, ROWS):
            rows = slice(top, min(top + ROWS, n))
            some = buffer[: rows.stop - top]
            self._multiply(rows, some)
            yield rows, some

    def best(self, k: int) -> _Core:
        """Every row with its best `k` columns, and every column with its best `k` rows, up to rounding."""
        m = len(self._b)
        columns, score = list[Tensor](), torch.full((m, 0), -torch.inf).to(self._b)
        by_column = torch.empty(m, 0, dtype=torch.long, device=self._b.device)
        for rows, products in self._slices():
            columns.append(products.topk(k, dim=1).indices)
            found = products.T.contiguous().topk(min(k, len(products)), dim=1)
            score = torch.cat([score, found.values.float()], dim=1)
            by_column = torch.cat([by_column, found.indices + rows.start], dim=1)
            score, place = score.topk(min(k, score.shape[1]), dim=1)
            by_column = by_column.gather(1, place)
        row = np.concatenate([np.repeat(np.arange(len(self._a)), k), _numpy(by_column).ravel()])
        column = np.concatenate([_numpy(torch.cat(columns)).ravel(), np.repeat(np.arange(m), by_column.shape[1])])
        row, column = np.divmod(np.unique(row * m + column), m)
        return _Core(row, column, self._exact(row, column))

    def _exact(self, row: np.ndarray, column: np.ndarray) -> Float64[np.ndarray, " n"]:
        """The products of pairs in float32; `row` must ascend."""
        i, j = (torch.from_numpy(index).to(self._a.device) for index in (row, column))
        found = _numpy(dots(self._a, i, self._b, j)).astype(np.float64)
        return np.abs(found) if self._absolute else found

    def worth_most(
        self, price: np.ndarray, own: np.ndarray, slack: float, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs whose worth, product less price, is above the row's `own` worth, or at most `slack` below it.

        Gives the best `k` per row at most, as row, column and worth, in float64 where it decides.
        """
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        asked = torch.from_numpy(price).to(self._a)
        rounded = ROUNDED * (np.abs(own) + float(price.max()))
        least = torch.from_numpy(own - slack - rounded).to(self._a) - self._off
        for rows, products in self._slices():
            may = products - asked > least[rows, None]
            crowded = may.sum(dim=1) > CROWDED
            may[crowded] = False
            row, column = (_numpy(index) for index in torch.nonzero(may, as_tuple=True))
            row = row + rows.start
            worth = self._exact(row, column) - price[column]
            keep = worth > (own - slack)[row]
            found.append((row[keep], column[keep], worth[keep]))
            if crowded.any():
                found.append(self._of_whole_rows(torch.nonzero(crowded).flatten() + rows.start, price, own - slack, k))
        row, column, worth = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((-worth, row))
        row, column, worth = row[order], column[order], worth[order]
        some = np.arange(len(row)) - np.searchsorted(row, row) < k
        row, column, worth = row[some], column[some], worth[some]
        near = np.flatnonzero(worth > own[row] - ROUNDED * (np.abs(own[row]) + price[column]))
        worth[near] = _products(self._a, self._b, row[near], column[near], self._absolute) - price[column[near]]
        return row, column, worth

    def _of_whole_rows(
        self, rows: Tensor, price: np.ndarray, least: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`worth_most` for some rows, from their exact products with all columns."""
        with full_precision():
            products = self._a[rows] @ self._b.T
        products = products.abs_() if self._absolute else products
        # in float64, as prices are: where rows of `b` are equal, only prices tell their columns apart
        top = products.double().sub_(torch.from_numpy(price).to(products.device)).topk(k, dim=1)
        row = np.repeat(_numpy(rows), k)
        column, worth = _numpy(top.indices).ravel(), _numpy(top.values).ravel()
        keep = worth > least[row]
        return row[keep], column[keep], worth[keep]


def _feasible(core: _Core, a: Tensor, b: Tensor, absolute: bool) -> _Core:
    """The core with pairs for the rows that its maximum matching leaves out, so that a full matching exists."""
    n, m = len(a), len(b)
    graph = csr_array((np.ones(len(core.row), dtype=np.int8), (core.row, core.column)), shape=(n, m))
    partner = cast("np.ndarray", maximum_bipartite_matching(graph, perm_type="column"))
    row = np.flatnonzero(partner < 0)
    column = np.setdiff1d(np.arange(m), partner)[: len(row)]
    return core.add(row, column, _products(a, b, row, column, absolute), m)


def _solve(core: _Core, n: int, m: int) -> tuple[np.ndarray, Float64[np.ndarray, " n_target"]]:
    """The best full matching of the core: the column of each row, and the column prices under which it is best."""
    high, low = float(core.score.max()), float(core.score.min())
    # Costs lie on a grid, because LAPJV bids in steps as small as the smallest difference, and can take years if
    # costs span ten orders of magnitude. They start at 1, because scipy takes a weight of 0 for a missing pair.
    grid = (high - low) / GRID if high > low else 1.0
    cost = np.rint((high - core.score) / grid) + 1.0
    graph = cast("Any", csr_array((cost, (core.row, core.column)), shape=(n, m)))
    index = min_weight_full_bipartite_matching(graph)[1].astype(np.int64)
    place = np.searchsorted(core.row * m + core.column, np.arange(n) * m + index)
    return index, grid * _prices(core, index, cost[place][core.row] - cost, m)


def _prices(
    core: _Core, index: np.ndarray, excess: Float64[np.ndarray, " n"], m: int
) -> Float64[np.ndarray, " n_target"]:
    """The least prices p >= 0 under which no row prefers another column of the core to its own.

    They satisfy p_j >= p_own(i) + excess_ij for every pair (i, j) of the core, where excess_ij is how much more j is
    worth to i than its own column, in whole steps of the grid. These are longest paths, found by sweeps over all pairs
    until no price rises. The matching is optimal for the core, so no cycle rises and unassigned columns stay at 0.
    """
    order = np.argsort(core.column, kind="stable")
    column, own, excess = core.column[order], index[core.row[order]], excess[order]
    start = np.flatnonzero(np.r_[True, np.diff(column) > 0])
    there, price = column[start], np.zeros(m)
    for _ in range(2 * len(index) + 1):
        raised = np.maximum(price[there], np.maximum.reduceat(excess + price[own], start))
        if (raised == price[there]).all():
            break
        price[there] = raised
    return price


def _products(a: Tensor, b: Tensor, row: np.ndarray, column: np.ndarray, absolute: bool) -> Float64[np.ndarray, " n"]:
    """a[row] . b[column] in float64, or its absolute value, computed in slices that fit a cache."""
    parts, step = [np.zeros(0)], max(64, (1 << 20) // a.shape[1])
    for top in range(0, len(row), step):
        left = a[torch.from_numpy(row[top : top + step]).to(a.device)].double()
        right = b[torch.from_numpy(column[top : top + step]).to(b.device)].double()
        parts.append(_numpy(torch.bmm(left[:, None], right[:, :, None]).flatten()))
    found = np.concatenate(parts)
    return np.abs(found) if absolute else found


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
