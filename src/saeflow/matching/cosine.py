"""Cosine top-k between two dictionaries, exact and tiled (section 3.2).

    T(A -> B) = I[x > 0]( top_k( W_dec(A)^T W_dec(B) ) ),   rows of unit norm

The similarity matrix is never whole in memory: a tile of ROWS x COLUMNS products is ranked along both
axes and merged into the running best of its rows and of its columns, so that one pass over the product
answers both directions. The indicator is left to the reader of the table: scores are kept, signs and all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.ids import Site
from saeflow.matching.table import MatchTable
from saeflow.sources.dictionary import AttentionWriter, Dictionary

ROWS = 1024
COLUMNS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """Best `k` columns of each row, best first."""

    index: Int[Tensor, "n k"]
    score: Float[Tensor, "n k"]


def top_k_both(
    a: Float[Tensor, "n_source d_model"],
    b: Float[Tensor, "n_target d_in"],
    k: int,
    *,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> tuple[TopK, TopK]:
    """The `k` best rows of `b` for each row of `a`, and of `a` for each row of `b`.

    Inputs are unit rows in float32 on one device. Where two scores are equal to the bit the lower index
    comes first, except at place `k`, where either may be kept.

    Raises:
        WidthMismatch: when the two differ in width.
        InvalidArgument: when `k` is not between 1 and the smaller number of rows.
    """
    _check(a, b, k)
    forward = _empty(len(a), k, a)
    backward = _empty(len(b), k, b)
    for top in range(0, len(a), rows):
        block = slice(top, min(top + rows, len(a)))
        for left in range(0, len(b), columns):
            strip = slice(left, min(left + columns, len(b)))
            tile = a[block] @ b[strip].T
            _merge(forward, block, tile, left)
            _merge(backward, strip, tile.T, top)
    return forward, backward


@dataclass(frozen=True, eq=False)
class Directions:
    """What the features of one site write: unit rows, and a fingerprint of them."""

    site: Site
    rows: Float[Tensor, "n_features d_model"]

    @staticmethod
    def of(dictionary: Dictionary, projector: AttentionWriter | None = None) -> Directions:
        """The directions of a dictionary; one that lives in z needs the model as `projector`.

        Raises:
            WidthMismatch: when it lives in z and no fitting model is given.
            BadFile: when a row is zero or not finite.
        """
        return Directions(dictionary.site, dictionary.directions(projector).float())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the rows in float32."""
        return hashlib.sha256(self.rows.cpu().contiguous().numpy().data).hexdigest()


def match_both(source: Directions, target: Directions, *, k: int = 5) -> tuple[MatchTable, MatchTable]:
    """Match two sites in one pass: (source -> target, target -> source).

    Raises:
        WidthMismatch: when the two write into spaces of different width.
        InvalidArgument: when `k` is out of range.
    """
    forward, backward = top_k_both(source.rows, target.rows, k)
    return _table(forward, source, target), _table(backward, target, source)


def _check(a: Tensor, b: Tensor, k: int) -> None:
    if a.shape[1] != b.shape[1]:
        raise WidthMismatch(
            f"rows of width {a.shape[1]} cannot be matched to rows of width {b.shape[1]}. Both dictionaries must "
            "write into the same stream; project attention features first if they live in z."
        )
    smaller = min(len(a), len(b))
    if not 1 <= k <= smaller:
        raise InvalidArgument(f"k={k} matches were asked of {smaller} rows. Give k between 1 and {smaller}.")


def _empty(n: int, k: int, like: Tensor) -> TopK:
    index = torch.full((n, k), -1, dtype=torch.int64, device=like.device)
    return TopK(index, torch.full((n, k), -torch.inf, dtype=like.dtype, device=like.device))


def _merge(best: TopK, where: slice, tile: Tensor, offset: int) -> None:
    """Fold the columns of `tile`, which start at `offset`, into the running best of rows `where`."""
    k = best.index.shape[1]
    score, index = tile.topk(min(k, tile.shape[1]), dim=1)
    # Earlier columns come first, so that the stable sort puts the lower index first among equals.
    index, order = index.sort(dim=1)
    score = torch.cat([best.score[where], score.gather(1, order)], dim=1)
    index = torch.cat([best.index[where], index + offset], dim=1)
    score, order = score.sort(dim=1, descending=True, stable=True)
    best.score[where] = score[:, :k]
    best.index[where] = index.gather(1, order)[:, :k]


def _table(top: TopK, source: Directions, target: Directions) -> MatchTable:
    return MatchTable(
        source=source.site,
        target=target.site,
        method="cosine",
        n_target=len(target.rows),
        index=top.index.to(torch.int32).cpu().numpy(),
        score=top.score.float().cpu().numpy(),
        made_from=(source.fingerprint, target.fingerprint),
    )
