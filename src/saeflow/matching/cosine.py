"""Cosine top-k (section 3.2): exact, both directions from one product, without the whole matrix in memory.

    T(A -> B) = I[x > 0]( top_k( W_dec(A)^T W_dec(B) ) ),   rows of unit norm

The indicator is left to the reader of the table: scores are kept, signs and all.

    1. A tile of products a[rows] @ b[columns].T is computed in float32.
    2. Along each axis the tile is cut into groups that interleave, and every group is reduced to its largest
       product: an elementwise maximum of slices, which reads the tile once at the speed of memory.
    3. The first tile of a line: its k largest products lie in the k groups with the largest maxima, so
       k * g products are ranked instead of all.
    4. Every later tile: only groups whose maximum is above the line's k-th best so far are looked at.

Steps 2 to 4 run along rows and along columns of the same tile, so that one product answers both
directions. Where the processor multiplies bfloat16 matrices in hardware, `screening` does less work in
step 1 and gives the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.matching import screening
from saeflow.matching.running import TopK, empty, merge, ordered
from saeflow.matching.tiles import GATHERED, Lines, tiles

ROWS = 1024
COLUMNS = 16384


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
    forward, backward = empty(len(a), k, a), empty(len(b), k, b)
    _search(a, b, (forward, backward), rows, columns, screened)
    return ordered(forward), ordered(backward)


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
    forward = empty(len(a), k, a)
    _search(a, b, (forward, None), rows, columns, screened)
    return ordered(forward)


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
        screened = screening.pays(a, b)
    with full_precision():
        if screened:
            screening.search(a, b, best, rows, columns)
            return
        k = best[0].index.shape[1]
        for block, strip, tile in tiles(a, b, k, rows, columns):
            _fold(best[0].part(block), tile.rows(), strip.start)
            if best[1] is not None:
                _fold(best[1].part(strip), tile.columns(), block.start)


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
        merge(best, some_lines[which], columns[which, place] + offset, found[which, place])


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


@contextmanager
def full_precision() -> Generator[None]:
    """Products in true float32, whatever the caller allows its own (TF32 on a GPU, bfloat16 on a CPU)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
