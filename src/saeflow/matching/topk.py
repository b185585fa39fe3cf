"""The k largest cosines of every feature (section 3.2): exact, both directions from one product.

    T(A -> B) = I[x > 0]( top_k( W_dec(A)^T W_dec(B) ) ),   rows of unit norm

The indicator is left to the reader of the table: scores are kept, signs and all. The whole matrix is never in memory:

    1. A tile of products a[rows] @ b[columns].T is computed in float32.
    2. Along each axis the tile is cut into groups that interleave, and every group is reduced to its largest
       product: an elementwise maximum of slices, which reads the tile once at the speed of memory.
    3. The first tile of a line: its k largest products lie in the k groups with the largest maxima, so
       k * g products are ranked instead of all.
    4. Every later tile: only groups whose maximum is above the line's k-th best so far are looked at.

Steps 2 to 4 run along rows and along columns of the same tile, so that one product answers both directions.

Screening does less work in step 1, and gives the same answer, where the processor multiplies bfloat16 matrices in
hardware. Products of rows rounded to bfloat16 find candidates, and only these are computed in float32. A bound on
the difference makes the result exact. With x the product as float32 computes it, S the one that bfloat16
gives, and a~ the row rounded to bfloat16:

    |a.b - a~.b~|      <= |a - a~| |b| + |a~| |b - b~|             Cauchy-Schwarz, rounding norms measured
    rounding of sums   <= gamma |a| |b| on either side             gamma = n u / (1 - n u), u = 2^-24
    S = S' (1 + e)        |e| <= 2^-8                              S' is rounded to bfloat16 when written

The second line holds for any order of summation (Higham 2002, section 3.1): a product of two bfloat16 numbers is
exact in float32, so that only the n - 1 additions round, and the float32 product rounds n times more. So
every column whose x reaches t has S >= (t - eps) (1 - 2^-8), where eps is the sum of the first two lines;
those below are left out, the others are ranked by x. t is the line's k-th best so far.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import InvalidArgument, WidthMismatch

__all__ = ["TopK", "full_precision", "top_k", "top_k_both"]

ROWS = 1024
COLUMNS = 16384
GATHERED = 1 << 22
"""Products ranked at a time: bounds the memory that ranking takes."""
SKEW = 16
"""Products between two rows of a buffer, so that a column does not fall on one set of the cache."""
U32 = 2.0**-24
U16 = 2.0**-8
TINY = 1e-30
"""What products lose where hardware takes subnormal numbers for zero; far below any bound it is added to."""
SMALLEST = 1024
"""Rows and width from which the products outweigh what screening adds."""


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """Best `k` columns of each row, best first."""

    index: Int[Tensor, "n k"]
    score: Float[Tensor, "n k"]

    def part(self, lines: slice) -> TopK:
        """Some lines, sharing memory with the whole."""
        return TopK(self.index[lines], self.score[lines])


def top_k_both(
    a: Float[Tensor, "n_source d_model"],
    b: Float[Tensor, "n_target d_in"],
    k: int,
    *,
    rows: int = ROWS,
    columns: int = COLUMNS,
    screened: bool | None = None,
) -> tuple[TopK, TopK]:
    """The `k` largest products of each row of `a` with the rows of `b`, and of each row of `b` with those of `a`.

    Any finite float32 rows on one device; for unit rows the products are cosines. Where two scores are equal
    to the bit the lower index comes first, except at place `k`, where either may be kept.

    Args:
        a: Rows to match.
        b: Rows to match them to.
        k: How many to keep, for both directions.
        rows: Rows of `a` in a tile.
        columns: Rows of `b` in a tile.
        screened: Find candidates in bfloat16 and rank them in float32; by default where that is faster.

    Raises:
        WidthMismatch: when the two differ in width.
        InvalidArgument: when `k` is not between 1 and the smaller number of rows, or a value is not finite.
    """
    _check(a, b, k, min(len(a), len(b)))
    forward, backward = _empty(len(a), k, a), _empty(len(b), k, b)
    _search(a, b, (forward, backward), rows, columns, screened)
    return _ordered(forward), _ordered(backward)


def top_k(
    a: Float[Tensor, "n_source d_model"],
    b: Float[Tensor, "n_target d_in"],
    k: int,
    *,
    rows: int = ROWS,
    columns: int = COLUMNS,
    screened: bool | None = None,
) -> TopK:
    """The first half of `top_k_both`: for each row of `a` its `k` best rows of `b`.

    Raises:
        WidthMismatch: when the two differ in width.
        InvalidArgument: when `k` is not between 1 and the number of rows of `b`, or a value is not finite.
    """
    _check(a, b, k, len(b))
    forward = _empty(len(a), k, a)
    _search(a, b, (forward, None), rows, columns, screened)
    return _ordered(forward)


def _check(a: Tensor, b: Tensor, k: int, most: int) -> None:
    if a.shape[1] != b.shape[1]:
        raise WidthMismatch(
            f"rows of width {a.shape[1]} cannot be matched to rows of width {b.shape[1]}. Both dictionaries must "
            "write into the same stream; project attention features first if they live in z."
        )
    if not 1 <= k <= most:
        raise InvalidArgument(f"k={k} matches were asked of {most} rows. Give k between 1 and {most}.")
    for name, side in (("first", a), ("second", b)):
        # a sum is finite only where every value is, and takes no copy
        if not math.isfinite(side.sum(dim=1).sum()):
            bad = int((~side.isfinite().all(dim=1)).sum())
            if bad:
                raise InvalidArgument(
                    f"{bad} of the {len(side)} rows of the {name} matrix hold NaN or infinity. Mend or leave out "
                    "these rows."
                )


def _search(
    a: Tensor, b: Tensor, best: tuple[TopK, TopK | None], rows: int, columns: int, screened: bool | None
) -> None:
    if screened is None:
        screened = _screening_pays(a, b)
    with full_precision():
        if screened:
            _search_screened(a, b, best, rows, columns)
            return
        k = best[0].index.shape[1]
        for block, strip, tile in tiles(a, b, k, rows, columns):
            _fold(best[0].part(block), tile.rows(), strip.start)
            if best[1] is not None:
                _fold(best[1].part(strip), tile.columns(), block.start)


@contextmanager
def full_precision() -> Generator[None]:
    """Products in true float32, whatever the caller allows its own (TF32 on a GPU, bfloat16 on a CPU)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# Tiles of a product a @ b.T, and the groups that their rows and columns are cut into


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """The rows or the columns of a tile, each cut into groups.

    Group j of a line holds its places j, j + n_groups, j + 2 n_groups…, so that all maxima of a tile are one
    elementwise maximum over slices.

    Attributes:
        products: The tile with one line a row; a transposed view where the lines are its columns.
        group_size: Products in a group.
    """

    products: Float[Tensor, "n m"]
    group_size: int

    @property
    def n_groups(self) -> int:
        """Groups of a line."""
        return self.products.shape[1] // self.group_size

    def maxima(self) -> Float[Tensor, "n groups"]:
        """The largest product of every group."""
        grouped = (self.group_size, self.n_groups)
        if self.products.stride(1) == 1:
            return self.products.unflatten(1, grouped).amax(1)
        return self.products.T.unflatten(0, grouped).amax(0).T

    def of_groups(
        self, line: Int[Tensor, "*which"], group: Int[Tensor, "*which2"]
    ) -> tuple[Float[Tensor, "*which3"], Int[Tensor, "*which3"]]:
        """The products of some groups, and their places in the line; one more axis than `group`."""
        steps = torch.arange(self.group_size, device=group.device) * self.n_groups
        places = group[..., None] + steps
        return self.products[line[..., None].expand_as(places), places], places


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """A tile of products, filled up with -inf to whole groups along both axes."""

    products: Float[Tensor, "height width"]
    n_rows: int
    n_columns: int
    k: int

    def rows(self) -> Lines:
        """Its rows as lines."""
        return Lines(self.products[: self.n_rows], group_size(self.products.shape[1], self.k))

    def columns(self) -> Lines:
        """Its columns as lines."""
        return Lines(self.products[:, : self.n_columns].T, group_size(self.products.shape[0], self.k))


def tiles(a: Tensor, b: Tensor, k: int, rows: int, columns: int) -> Iterator[tuple[slice, slice, Tile]]:
    """Every tile of a @ b.T with the rows and columns it stands for, one after the other in one buffer."""
    height, width = min(rows, len(a)), min(columns, len(b))
    tall, wide = _padded(height, k), _padded(width, k)
    buffer = a.new_full((tall, wide + SKEW), -torch.inf)[:, :wide]
    for top in range(0, len(a), height):
        for left in range(0, len(b), width):
            n, m = min(height, len(a) - top), min(width, len(b) - left)
            torch.mm(a[top : top + n], b[left : left + m].T, out=buffer[:n, :m])
            buffer[n:].fill_(-torch.inf)
            buffer[:, m:].fill_(-torch.inf)
            yield slice(top, top + n), slice(left, left + m), Tile(buffer, n, m, k)


def group_size(m: int, k: int) -> int:
    """Products in a group of a line of about `m`: looking at m / g maxima should cost what ranking k * g does."""
    return 2 ** max(2, min(6, round(math.log2(math.sqrt(m / k) + 1))))


def _padded(m: int, k: int) -> int:
    """The least length from `m` up that is whole groups of its own group size."""
    for length in range(m, 2 * m + 64):
        if length % group_size(length, k) == 0:
            return length
    raise AssertionError(f"no length from {m} is whole groups")


# The best of every line so far, and how new products join them


def _empty(n: int, k: int, like: Tensor) -> TopK:
    """Nothing found yet, for `n` lines: every score is -inf."""
    index = torch.full((n, k), -1, dtype=torch.int64, device=like.device)
    return TopK(index, torch.full((n, k), -torch.inf, dtype=torch.float32, device=like.device))


def _ordered(best: TopK) -> TopK:
    """Best first, and the lower index first among equals."""
    index, order = best.index.sort(dim=1)
    score, again = best.score.gather(1, order).sort(dim=1, descending=True, stable=True)
    return TopK(index.gather(1, again), score)


def _merge(
    best: TopK, line: Int[Tensor, " found"], index: Int[Tensor, " found"], score: Float[Tensor, " found"]
) -> None:
    """Fold candidates, any number a line in any order, into the running best, in place."""
    if not len(line):
        return
    k = best.index.shape[1]
    # by line, best first: the second sort is stable
    order = score.sort(descending=True).indices
    order = order[line[order].sort(stable=True).indices]
    line, index, score = line[order], index[order], score[order]
    lines, counts = torch.unique_consecutive(line, return_counts=True)
    which = torch.arange(len(lines), device=line.device).repeat_interleave(counts)
    rank = torch.arange(len(line), device=line.device) - (counts.cumsum(0) - counts)[which]
    kept = rank < k
    row, column = which[kept], k + rank[kept]
    scores = score.new_full((len(lines), 2 * k), -torch.inf)
    indices = index.new_full((len(lines), 2 * k), -1)
    scores[:, :k], indices[:, :k] = best.score[lines], best.index[lines]
    scores[row, column], indices[row, column] = score[kept], index[kept]
    top = scores.topk(k, dim=1)
    best.score[lines] = top.values
    best.index[lines] = indices.gather(1, top.indices)


def _fold(best: TopK, lines: Lines, offset: int) -> None:
    """Fold the products of a tile into the running best of its lines; `offset` is its first column."""
    if bool((best.score[:, 0] == -torch.inf).all()):
        _start(best, lines, offset)
        return
    line, group = torch.nonzero(lines.maxima() > best.score[:, -1:], as_tuple=True)
    size = max(1, GATHERED // lines.group_size)
    for some_lines, some_groups in zip(line.split(size), group.split(size), strict=True):
        found, columns = lines.of_groups(some_lines, some_groups)
        which, place = torch.nonzero(found > best.score[some_lines, -1:], as_tuple=True)
        _merge(best, some_lines[which], columns[which, place] + offset, found[which, place])


def _start(best: TopK, lines: Lines, offset: int) -> None:
    """The best of lines that nothing is known of: those of the k groups with the largest maxima."""
    k = best.index.shape[1]
    maxima = lines.maxima()
    top = maxima.topk(min(k, maxima.shape[1]), dim=1, sorted=False).indices
    for some in torch.arange(len(top), device=top.device).split(max(1, GATHERED // (lines.group_size * k))):
        found, columns = lines.of_groups(some[:, None], top[some])
        kept = found.flatten(1).topk(min(k, found[0].numel()), dim=1)
        best.score[some, : kept.values.shape[1]] = kept.values
        best.index[some, : kept.values.shape[1]] = columns.flatten(1).gather(1, kept.indices) + offset


# Screening: candidates in bfloat16, ranked in float32


def _screening_pays(a: Tensor, b: Tensor) -> bool:
    """Whether screening is faster here: bfloat16 matrix units in a CPU, and matrices large enough to use them."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    large = min(len(a), len(b)) >= SMALLEST and a.shape[1] * 4 >= SMALLEST
    return a.device.type == "cpu" and large and supported is not None and bool(supported())


def _search_screened(
    a: Float[Tensor, "n_source d_model"],
    b: Float[Tensor, "n_target d_model"],
    best: tuple[TopK, TopK | None],
    rows: int,
    columns: int,
) -> None:
    """Fold the products of all rows of `a` with all rows of `b` into `best`, along rows and, if asked, columns."""
    k = best[0].index.shape[1]
    low_a, low_b = a.bfloat16(), b.bfloat16()
    eps_a, eps_b = screening_bounds(a, low_a, b, low_b)
    for block, strip, tile in tiles(low_a, low_b, k, rows, columns):
        one, other = a[block], b[strip]
        _fold_screened(best[0].part(block), tile.rows(), eps_a[block], one, other, strip.start)
        if best[1] is not None:
            _fold_screened(best[1].part(strip), tile.columns(), eps_b[strip], other, one, block.start)


def screening_bounds(
    a: Float[Tensor, "n_source d_model"], low_a: Tensor, b: Float[Tensor, "n_target d_model"], low_b: Tensor
) -> tuple[Float[Tensor, " n_source"], Float[Tensor, " n_target"]]:
    """For every row of either side, how far its bfloat16 products with any row of the other may be off.

    Before they are rounded to bfloat16 themselves; norms are taken in float64 and rounded up.
    """
    n = a.shape[1] + 2
    gamma = n * U32 / (1 - n * U32)
    whole_a, error_a = _norms(a, low_a)
    whole_b, error_b = _norms(b, low_b)

    def bound(whole: Tensor, error: Tensor, wholes: Tensor, errors: Tensor) -> Tensor:
        # |a~| <= |a| + |a - a~|
        eps = (
            error * wholes.max()
            + (whole + error) * errors.max()
            + 2 * gamma * (whole + error) * (wholes.max() + errors.max())
        )
        return (eps * (1 + 1e-6) + TINY).float()

    return bound(whole_a, error_a, whole_b, error_b), bound(whole_b, error_b, whole_a, error_a)


def _norms(rows: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of every row, and of what rounding took from it, in float64."""
    whole, error = (rows.new_empty(len(rows), dtype=torch.float64), rows.new_empty(len(rows), dtype=torch.float64))
    for top in range(0, len(rows), SMALLEST):
        some = slice(top, top + SMALLEST)
        exact = rows[some].double()
        whole[some] = torch.linalg.vector_norm(exact, dim=1)
        error[some] = torch.linalg.vector_norm(exact - low[some].double(), dim=1)
    return whole, error


def _fold_screened(best: TopK, lines: Lines, eps: Tensor, own: Tensor, other: Tensor, offset: int) -> None:
    """Rank the candidates of a tile in float32: `own` and `other` are the rows its lines and places stand for."""
    k = best.index.shape[1]
    maxima = lines.maxima().float()
    reached = best.score[:, -1]
    if bool((best.score[:, 0] == -torch.inf).all()):
        # The k-th largest maximum is the bfloat16 product of k columns at least.
        low = maxima.topk(min(k, maxima.shape[1]), dim=1).values[:, -1]
        reached = low - U16 * low.abs() - eps if maxima.shape[1] >= k else reached
    cut = reached - eps
    cut = cut - U16 * cut.abs() - TINY
    line, group = torch.nonzero(maxima >= cut[:, None], as_tuple=True)
    size = max(1, GATHERED // lines.group_size)
    for some_lines, some_groups in zip(line.split(size), group.split(size), strict=True):
        found, places = lines.of_groups(some_lines, some_groups)
        which, place = torch.nonzero((found >= cut[some_lines, None]) & (places < len(other)), as_tuple=True)
        chosen, column = some_lines[which], places[which, place]
        _merge(best, chosen, column + offset, _products_of(own, chosen, other, column))


def _products_of(one: Tensor, i: Tensor, other: Tensor, j: Tensor) -> Float[Tensor, " found"]:
    """one[i] . other[j] in float32, a few at a time."""
    out = one.new_empty(len(i))
    size = max(1, GATHERED // one.shape[1])
    for top in range(0, len(i), size):
        some = slice(top, top + size)
        out[some] = torch.linalg.vecdot(one[i[some]], other[j[some]])
    return out
