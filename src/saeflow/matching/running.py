"""The best of every line so far, and how new candidates join them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """Best `k` columns of each row, best first."""

    index: Int[Tensor, "n k"]
    score: Float[Tensor, "n k"]

    def part(self, lines: slice) -> TopK:
        """Some lines, sharing memory with the whole."""
        return TopK(self.index[lines], self.score[lines])


def empty(n: int, k: int, like: Tensor) -> TopK:
    """Nothing found yet, for `n` lines: every score is -inf."""
    index = torch.full((n, k), -1, dtype=torch.int64, device=like.device)
    return TopK(index, torch.full((n, k), -torch.inf, dtype=torch.float32, device=like.device))


def ordered(best: TopK) -> TopK:
    """Best first, and the lower index first among equals."""
    index, order = best.index.sort(dim=1)
    score, again = best.score.gather(1, order).sort(dim=1, descending=True, stable=True)
    return TopK(index.gather(1, again), score)


def merge(
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
