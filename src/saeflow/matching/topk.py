"""The k largest cosines of every feature (section 3.2): exact, both directions from one product.

    T(A -> B) = I[x > 0]( top_k( W_dec(A)^T W_dec(B) ) ),   rows of unit norm

The indicator is left to the reader of the table: scores keep their signs. The whole matrix is never in memory:

    1. A tile of products a[rows] @ b[columns].T is computed.
    2. Along each axis the tile is divided into interleaved groups, and every group is reduced to its largest
       product: an elementwise maximum of slices, which reads the tile once at the speed of memory.
    3. At least k products of a line reach its k-th largest group maximum, so this is the first cut; later the cut is
       the k-th best product so far. Only groups whose maximum exceeds the cut are examined.
    4. Products in them that exceed the cut join the k best of their line.

Steps 2 to 4 run along rows and along columns of the same tile, so that one product serves both directions.

    5. Finally these candidates are ranked by separate dot products in float32.

Tiles may be multiplied in bfloat16 or int8 where that is faster (`screening`): cuts are then lowered by a bound on the
rounding error. Since step 5 is the same for every kind of product, including float32, the answer is the same to the
bit whatever the kind, the tiles and the number of threads.
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
from saeflow.matching.rows import check_k
from saeflow.matching.screening import GATHERED, UNIT, Product, Rounded, dots, rounded_for, widened

__all__ = ["TopColumns", "full_precision", "top_k", "top_k_both"]

ROWS = 1024
COLUMNS = 16384
LARGEST = torch.finfo(torch.float32).max
SKEW = 16
"""Padding after each row of the tile buffer, so that the entries of a column do not all map to one cache set."""


@dataclass(frozen=True, slots=True, eq=False)
class TopColumns:
    """Best `k` columns of each row, best first."""

    index: Int[Tensor, "n k"]
    score: Float[Tensor, "n k"]

    @staticmethod
    def none(n: int, k: int, device: torch.device) -> TopColumns:
        """An empty result: every index is -1 and every score minus infinity."""
        return TopColumns(torch.full((n, k), -1, device=device), torch.full((n, k), -torch.inf, device=device))

    def part(self, lines: slice) -> TopColumns:
        """Some lines, sharing memory with the whole."""
        return TopColumns(self.index[lines], self.score[lines])


def top_k_both(
    a: Float[Tensor, "n_source d_model"],
    b: Float[Tensor, "n_target d_in"],
    k: int,
    *,
    rows: int = ROWS,
    columns: int = COLUMNS,
    product: Product | None = None,
) -> tuple[TopColumns, TopColumns]:
    """The `k` largest products of each row of `a` with the rows of `b`, and of each row of `b` with those of `a`.

    Takes any finite float32 rows on one device; for unit rows the products are cosines. If two scores are equal
    to the bit the lower index comes first, except at place `k`, where either may be kept.

    Args:
        a: Rows to match.
        b: Rows to match them to.
        k: How many to keep, for both directions.
        rows: Rows of `a` in a tile.
        columns: Rows of `b` in a tile.
        product: The format in which candidates are found, "float32", "bfloat16" or "int8"; by default the fastest
            here for these rows. The answer is the same to the bit.

    Raises:
        WidthMismatch: when the two differ in width.
        InvalidArgument: when `k` is not between 1 and the smaller number of rows, or a value is not finite.
    """
    forward, backward = _search(a, b, k, min(len(a), len(b)), rows, columns, product, both=True)
    return forward.result(), backward.result()


def top_k(
    a: Float[Tensor, "n_source d_model"],
    b: Float[Tensor, "n_target d_in"],
    k: int,
    *,
    rows: int = ROWS,
    columns: int = COLUMNS,
    product: Product | None = None,
) -> TopColumns:
    """The first half of `top_k_both`: for each row of `a` its `k` best rows of `b`.

    Raises:
        WidthMismatch: when the two differ in width.
        InvalidArgument: when `k` is not between 1 and the number of rows of `b`, or a value is not finite.
    """
    return _search(a, b, k, len(b), rows, columns, product, both=False)[0].result()


def _search(
    a: Tensor, b: Tensor, k: int, most: int, rows: int, columns: int, product: Product | None, *, both: bool
) -> list[_Best]:
    if a.shape[1] != b.shape[1]:
        raise WidthMismatch(
            f"rows of width {a.shape[1]} cannot be matched to rows of width {b.shape[1]}. Both dictionaries must "
            "write into the same stream; project attention features first if they live in z."
        )
    check_k(k, most)
    for name, side in (("first", a), ("second", b)):
        # a sum is finite only if every value is, and takes no copy
        if not math.isfinite(side.sum(dim=1).sum()):
            bad = int((~side.isfinite().all(dim=1)).sum())
            if bad:
                raise InvalidArgument(
                    f"{bad} of the {len(side)} rows of the {name} matrix hold NaN or infinity. Mend or leave out "
                    "these rows."
                )
    a, b = a.contiguous(), b.contiguous()
    with full_precision():
        low_a, low_b = rounded_for(a, b, k, product, both=both)
        found = [_Best(a, b, k, low_a, low_b)]
        if both:
            found.append(_Best(b, a, k, low_b, low_a))
        for block, strip, tile in tiles(low_a, low_b, k, rows, columns):
            found[0].add(tile.rows(), block, strip.start)
            if both:
                found[1].add(tile.columns(), strip, block.start)
    return found


@contextmanager
def full_precision() -> Generator[None]:
    """Compute products in true float32, whatever the caller has allowed (TF32 on a GPU, bfloat16 on a CPU).

    Products of bfloat16 are summed in float32 too.
    """
    before, cuda = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul
    reduced = cuda.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    cuda.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        cuda.allow_bf16_reduced_precision_reduction = reduced


# Tiles of a product a @ b.T, and the groups that their rows and columns are divided into


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """The rows or the columns of a tile, each divided into groups.

    Group j of a line holds its places j, j + n_groups, j + 2 n_groups…, so that all maxima of a tile are one
    elementwise maximum over slices.

    Attributes:
        products: The tile with one line per row; a transposed view if the lines are its columns.
        group_size: Products in a group.
    """

    products: Float[Tensor, "n m"]
    group_size: int

    @property
    def n_groups(self) -> int:
        """Groups in a line."""
        return self.products.shape[1] // self.group_size

    def maxima(self) -> Float[Tensor, "n groups"]:
        """The largest product of every group."""
        grouped = (self.group_size, self.n_groups)
        if self.products.stride(1) == 1:
            return self.products.unflatten(1, grouped).amax(1)
        return self.products.T.unflatten(0, grouped).amax(0).T

    def of_groups(self, line: Int[Tensor, " found"], group: Int[Tensor, " found"]) -> Float[Tensor, "found group_size"]:
        """The products of some groups; number i of group j is at place j + i n_groups of its line."""
        grouped = (self.group_size, self.n_groups)
        if self.products.stride(1) == 1:
            return self.products.unflatten(1, grouped)[line, :, group]
        return self.products.T.unflatten(0, grouped)[:, group, line].T


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """A tile of products, padded with -inf to whole groups along both axes."""

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


def tiles(a: Rounded, b: Rounded, k: int, rows: int, columns: int) -> Iterator[tuple[slice, slice, Tile]]:
    """Yield every tile of a @ b.T with the rows and columns it covers; all tiles share one buffer."""
    height, width = min(rows, len(a.rows)), min(columns, len(b.rows))
    tall, wide = _padded(height, k), _padded(width, k)
    buffer = torch.full((tall, wide + SKEW), -torch.inf, dtype=a.written, device=a.rows.device)[:, :wide]
    for top in range(0, len(a.rows), height):
        for left in range(0, len(b.rows), width):
            n, m = min(height, len(a.rows) - top), min(width, len(b.rows) - left)
            block, strip = slice(top, top + n), slice(left, left + m)
            a.multiply(b, block, strip, buffer[:n, :m])
            buffer[n:].fill_(-torch.inf)
            buffer[:, m:].fill_(-torch.inf)
            yield block, strip, Tile(buffer, n, m, k)


def group_size(m: int, k: int) -> int:
    """The group size g for lines of about `m` products: scanning m / g maxima should cost what ranking k * g does."""
    return 2 ** max(2, min(6, round(math.log2(math.sqrt(m / k) + 1))))


def _padded(m: int, k: int) -> int:
    """The least length of `m` or more that is a multiple of its own group size."""
    for length in range(m, 2 * m + 64):
        if length % group_size(length, k) == 0:
            return length
    raise AssertionError(f"no length from {m} is whole groups")


# The best of every line so far, and how new products join them


class _Best:
    """The best of the lines of one side so far, while tiles come in."""

    def __init__(self, own: Tensor, other: Tensor, k: int, low: Rounded, low_other: Rounded) -> None:
        """Start empty; `own` holds the rows that lines stand for, `other` the rows to find their best among."""
        self.own, self.other = own, other
        self.eps, self.unit = low.eps(low_other), UNIT[low.product]
        self.in_tiles, self.exact = (TopColumns.none(len(own), k, own.device) for _ in range(2))
        """The k best by products of the tiles, and the k best by separate dot products."""
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        """Candidates: lines, columns and products of the tiles."""

    def add(self, lines: Lines, block: slice, offset: int) -> None:
        """Take in the lines `block` of a tile whose first column is `offset`."""
        best, k = self.in_tiles.part(block), self.exact.index.shape[1]
        maxima = lines.maxima().float()
        reached = best.score[:, -1]
        if maxima.shape[1] >= k and bool((reached == -torch.inf).any()):
            reached = torch.maximum(reached, maxima.topk(k, dim=1).values[:, -1])  # reached by k products at least
        cut = self._cut(reached, block)
        # "not below", so that a NaN is examined too
        line, group = torch.nonzero(~(maxima <= cut[:, None]), as_tuple=True)
        size = max(1, GATHERED // lines.group_size)
        for some_lines, some_groups in zip(line.split(size), group.split(size), strict=True):
            found = lines.of_groups(some_lines, some_groups)
            which, number = torch.nonzero(~(found <= cut[some_lines, None]), as_tuple=True)
            column = some_groups[which] + number * lines.n_groups + offset
            chosen, score = some_lines[which], found[which, number].float()
            _merge(best, chosen, column, score)
            self.waiting.append((chosen + block.start, column, score))
            if sum(len(part[0]) for part in self.waiting) > GATHERED:
                self._rank()

    def _cut(self, reached: Tensor, lines: slice) -> Tensor:
        """The cut that a product of a tile must exceed, if the k-th best of them is `reached` so far."""
        exact = widened(self.exact.score[lines, -1], self.eps[lines], self.unit, rounded=False)
        cut = torch.maximum(exact, widened(reached, self.eps[lines], self.unit, rounded=True))
        return cut.nan_to_num(nan=LARGEST, posinf=torch.inf, neginf=-torch.inf)  # overflow: inf - inf is NaN

    def _rank(self) -> None:
        """Rank the candidates that still exceed their cut."""
        line, column, score = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting.clear()
        # the k best by products of the tiles come first: their exact products give a cut with half the margin
        first = score >= self.in_tiles.score[line, -1]
        for some in (first, ~first):
            kept = some & ~(score <= self._cut(self.in_tiles.score[:, -1], slice(None))[line])
            place = (line[kept] * len(self.other) + column[kept]).sort().values
            lines, columns = place // len(self.other), place % len(self.other)
            _merge(self.exact, lines, columns, dots(self.own, lines, self.other, columns))

    def result(self) -> TopColumns:
        """The best of every line, best first, and the lower index first among equal scores."""
        if self.waiting:
            self._rank()
        index, order = self.exact.index.sort(dim=1)
        score, again = self.exact.score.gather(1, order).sort(dim=1, descending=True, stable=True)
        return TopColumns(index.gather(1, again), score)


def _merge(
    best: TopColumns, line: Int[Tensor, " found"], index: Int[Tensor, " found"], score: Float[Tensor, " found"]
) -> None:
    """Merge candidates, any number per line, into the running best in place; `line` must ascend."""
    if not len(line):
        return
    k = best.index.shape[1]
    lines, counts = torch.unique_consecutive(line, return_counts=True)
    which = torch.arange(len(lines), device=line.device).repeat_interleave(counts)
    place = torch.arange(len(line), device=line.device) - (counts.cumsum(0) - counts)[which]
    # most lines have few candidates; lines with more take several turns
    step, most = max(k, 16), int(counts.max())
    for first in range(0, most, step):
        width = min(step, most - first)
        some = (place >= first) & (place < first + width) if most > step else slice(None)
        there = counts > first
        row, column = (there.cumsum(0) - 1)[which[some]], k + place[some] - first
        known = lines[there]
        scores = torch.nn.functional.pad(best.score[known], (0, width), value=-torch.inf)
        indices = torch.nn.functional.pad(best.index[known], (0, width), value=-1)
        scores[row, column], indices[row, column] = score[some], index[some]
        top = scores.topk(k, dim=1)
        best.score[known], best.index[known] = top.values, indices.gather(1, top.indices)
