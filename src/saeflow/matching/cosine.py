"""Cosine top-k between two dictionaries (section 3.2).

    T(A -> B) = I[x > 0]( top_k( W_dec(A)^T W_dec(B) ) ),   rows of unit norm

The indicator is left to the reader of the table: scores are kept, signs and all. How the products are ranked
is in `topk`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.ids import Site
from saeflow.matching.running import TopK
from saeflow.matching.table import MatchTable
from saeflow.matching.topk import top_k, top_k_both
from saeflow.sources.dictionary import AttentionWriter, Dictionary

__all__ = ["Directions", "TopK", "match_both", "top_k", "top_k_both"]


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
