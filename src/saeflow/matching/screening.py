"""Exact top-k with most of the work in bfloat16, for processors that multiply bfloat16 matrices in hardware.

Products of rows rounded to bfloat16 find candidates, and only these are computed in float32. A bound on
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

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.matching.running import TopK, merge
from saeflow.matching.tiles import GATHERED, Lines, tiles

U32 = 2.0**-24
U16 = 2.0**-8
TINY = 1e-30
"""What products lose where hardware takes subnormal numbers for zero; far below any bound it is added to."""
SMALLEST = 1024
"""Rows and width from which the products outweigh what screening adds."""


def pays(a: Tensor, b: Tensor) -> bool:
    """Whether screening is faster here: bfloat16 matrix units in a CPU, and matrices large enough to use them."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    large = min(len(a), len(b)) >= SMALLEST and a.shape[1] * 4 >= SMALLEST
    return a.device.type == "cpu" and large and supported is not None and bool(supported())


def search(
    a: Float[Tensor, "n_source d_model"],
    b: Float[Tensor, "n_target d_model"],
    best: tuple[TopK, TopK | None],
    rows: int,
    columns: int,
) -> None:
    """Fold the products of all rows of `a` with all rows of `b` into `best`, along rows and, if asked, columns."""
    k = best[0].index.shape[1]
    low_a, low_b = a.bfloat16(), b.bfloat16()
    eps_a, eps_b = bounds(a, low_a, b, low_b)
    for block, strip, tile in tiles(low_a, low_b, k, rows, columns):
        one, other = a[block], b[strip]
        _fold(best[0].part(block), tile.rows(), eps_a[block], one, other, strip.start)
        if best[1] is not None:
            _fold(best[1].part(strip), tile.columns(), eps_b[strip], other, one, block.start)


def bounds(
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
    whole, error = (
        rows.new_empty(len(rows), dtype=torch.float64),
        rows.new_empty(len(rows), dtype=torch.float64),
    )
    for top in range(0, len(rows), SMALLEST):
        some = slice(top, top + SMALLEST)
        exact = rows[some].double()
        whole[some] = torch.linalg.vector_norm(exact, dim=1)
        error[some] = torch.linalg.vector_norm(exact - low[some].double(), dim=1)
    return whole, error


def _fold(best: TopK, lines: Lines, eps: Tensor, own: Tensor, other: Tensor, offset: int) -> None:
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
        merge(best, chosen, column + offset, _products(own, chosen, other, column))


def _products(one: Tensor, i: Tensor, other: Tensor, j: Tensor) -> Float[Tensor, " found"]:
    """one[i] . other[j] in float32, a few at a time."""
    out = one.new_empty(len(i))
    size = max(1, GATHERED // one.shape[1])
    for top in range(0, len(i), size):
        some = slice(top, top + size)
        out[some] = torch.linalg.vecdot(one[i[some]], other[j[some]])
    return out
