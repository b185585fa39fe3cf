"""Pearson correlation of sparse activations, a few best for each feature (appendix C.4).

    r = (n Sxy - Sx Sy) / sqrt((n Sxx - Sx^2) (n Syy - Sy^2))        sums over n tokens, in float64

The sums of products Sxy of one source feature with all targets are one sparse product over the tokens
it fires on; a block of sources is correlated, ranked along both axes and forgotten. The matrix of all
pairs is never whole in memory, and a pair that never fires together has its exact, slightly negative r.

A feature that never fires, or fires alike on every token, has no correlation with anything. Such a
feature matches nothing: it is no match of any other, and has none itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from saeflow.errors import InvalidArgument, WidthMismatch

BLOCK = 256
"""Sources correlated before they are ranked: 32 MiB of float64 against 16,384 targets."""
_FIRST, _MOST_WAITING = 16, 4_000_000
_CONSTANT = 1e-9
"""Where variance / mean square is below this, float32 activations do not tell it from 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """The best `k` columns of each row, best first, and their scores."""

    index: Int32[np.ndarray, "n k"]
    score: Float32[np.ndarray, "n k"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over `n` tokens of every feature's activation and of its square."""

    n: int
    total: Float64[np.ndarray, " n_features"]
    squares: Float64[np.ndarray, " n_features"]

    @staticmethod
    def of(acts: sp.csc_array) -> Moments:
        """The moments of activations, tokens by features."""
        n, _ = size(acts)
        every = np.ones(n)
        squared = sp.csc_array((acts.data.astype(np.float64) ** 2, acts.indices, acts.indptr), shape=acts.shape)
        total, squares = acts.T @ every, squared.T @ every
        return Moments(n, total, squares)

    @cached_property
    def spread(self) -> Float64[np.ndarray, " n_features"]:
        """sqrt(n Sxx - Sx^2), n times the standard deviation; 0 for a constant feature."""
        variance = self.n * self.squares - self.total**2
        return np.sqrt(np.where(variance > _CONSTANT * self.n * self.squares, variance, 0.0))

    @property
    def constant(self) -> Bool[np.ndarray, " n_features"]:
        """Which features have no correlation: they never fire, or fire alike on every token."""
        return self.spread == 0.0


def top_correlations(x: sp.csc_array, y: sp.csc_array, k: int, *, block: int = BLOCK) -> tuple[Ranked, Ranked]:
    """The `k` columns of `y` that correlate best with each column of `x`, and the other way round.

    Scores are r in [-1, 1]. Where two are equal to the bit the lower index comes first, except at place
    `k`, where either may be kept. Index 0 with score -inf stands where there is no match: for a constant column,
    and where fewer than `k` columns of the other side vary. No score is NaN.

    Args:
        x: activations, tokens by source features, each at most once a token.
        y: activations of the target features on the same tokens.
        k: how many matches of each feature to keep.
        block: sources in memory at a time, against all targets; the answer does not depend on it.

    Raises:
        WidthMismatch: when the two have not the same number of tokens.
        InvalidArgument: when `k` is not between 1 and the smaller number of features, or `block` below 1.
    """
    _check(x, y, k, block)
    pairs = _Correlation(Moments.of(x), Moments.of(y), x, sp.csr_array(y))
    forward: list[Ranked] = []
    (_, n_source), (_, n_target) = size(x), size(y)
    backward = _Best(n_target, k)
    for start in range(0, n_source, block):
        r = pairs.rows(start, min(start + block, n_source))
        forward.append(_rank(r, k))
        backward.add(r, start)
    index = np.concatenate([part.index for part in forward])
    score = np.concatenate([part.score for part in forward])
    return _filled(Ranked(index, score)), _filled(backward.ranked())


@dataclass(frozen=True, eq=False)
class _Correlation:
    """r of any block of source features with every target, -inf where it is not defined."""

    mx: Moments
    my: Moments
    x: sp.csc_array
    y: sp.csr_array

    def rows(self, start: int, stop: int) -> Float64[np.ndarray, "n_source n_target"]:
        """r of the sources from `start` to `stop`."""
        by_x, by_y = _inverse(self.mx.spread), _inverse(self.my.spread)
        mean_y, undefined = self.my.total * by_y, np.flatnonzero(self.my.constant)
        out = np.empty((stop - start, len(by_y)))
        for i in range(start, stop):
            row = out[i - start]
            if self.mx.constant[i]:
                row[:] = -np.inf
                continue
            here = slice(self.x.indptr[i], self.x.indptr[i + 1])
            # Only the tokens the source fires on: their rows of y, weighted and summed in one pass.
            fired, value = self.x.indices[here], self.x.data[here].astype(np.float64)
            np.multiply(self.y[fired].T @ (value * (self.mx.n * by_x[i])), by_y, out=row)
            row -= mean_y * (self.mx.total[i] * by_x[i])
            row[undefined] = -np.inf
        return out


class _Best:
    """The best `k` sources of every target so far.

    Candidates that beat the k-th best of their target wait in a list, and are ranked when the sources seen
    have doubled: as often as the k-th best still moves much.
    """

    def __init__(self, n: int, k: int) -> None:
        self._index: Int64[np.ndarray, "n k"] = np.full((n, k), -1, dtype=np.int64)
        self._score: Float64[np.ndarray, "n k"] = np.full((n, k), -np.inf)
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._seen, self._next = 0, _FIRST

    def add(self, r: Float64[np.ndarray, "n_source n_target"], offset: int) -> None:
        """Take in a block of sources, which start at `offset`."""
        done = 0
        while done < len(r):
            # The first blocks are short: until a target has k matches every source is a candidate.
            part = r[done : done + max(self._next - self._seen, 1)]
            source, target = np.nonzero(part > self._score[:, -1].copy())
            self._waiting.append((target, source + (offset + done), part[source, target]))
            self._seen, done = self._seen + len(part), done + len(part)
            waiting = sum(len(found[0]) for found in self._waiting)
            if self._seen >= self._next or waiting > _MOST_WAITING:
                self._rank()

    def _rank(self) -> None:
        n, k = self._index.shape
        self._next = 2 * self._seen
        target = np.concatenate([np.repeat(np.arange(n), k), *(found[0] for found in self._waiting)])
        index = np.concatenate([self._index.ravel(), *(found[1] for found in self._waiting)])
        score = np.concatenate([self._score.ravel(), *(found[2] for found in self._waiting)])
        order = np.lexsort((index, -score, target))
        kept = order[np.searchsorted(target[order], np.arange(n))[:, None] + np.arange(k)]
        self._index, self._score = index[kept], score[kept]
        self._waiting.clear()

    def ranked(self) -> Ranked:
        """The answer, with -inf where fewer than `k` sources have a correlation."""
        self._rank()
        return Ranked(self._index.astype(np.int32), _as_scores(self._score))


def _rank(r: Float64[np.ndarray, "n_source n_target"], k: int) -> Ranked:
    score, index = (found.numpy() for found in torch.from_numpy(r).topk(k, dim=1))
    order = np.lexsort((index, -score), axis=1)
    index, score = np.take_along_axis(index, order, 1), np.take_along_axis(score, order, 1)
    return Ranked(index.astype(np.int32), _as_scores(score))


def _as_scores(r: Float64[np.ndarray, "n k"]) -> Float32[np.ndarray, "n k"]:
    """r as it is stored; rounding may leave |r| a little above 1, which no correlation is."""
    return np.where(np.isfinite(r), np.clip(r, -1.0, 1.0), r).astype(np.float32)


def _inverse(spread: Float64[np.ndarray, " n_features"]) -> Float64[np.ndarray, " n_features"]:
    return np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0.0)


def _filled(found: Ranked) -> Ranked:
    """The same with index 0 where there is no correlation."""
    return Ranked(np.where(np.isneginf(found.score), 0, found.index).astype(np.int32), found.score)


def size(acts: sp.csc_array | sp.csr_array) -> tuple[int, int]:
    """Tokens and features of activations."""
    return cast("tuple[int, int]", acts.shape)


def _check(x: sp.csc_array, y: sp.csc_array, k: int, block: int) -> None:
    (n, n_source), (m, n_target) = size(x), size(y)
    if n != m:
        raise WidthMismatch(
            f"activations on {n} tokens cannot be correlated with activations on {m}. Encode the same tokens at "
            "both sites."
        )
    if n == 0:
        raise InvalidArgument("there are no tokens to correlate over. Give texts with at least two tokens.")
    smaller = min(n_source, n_target)
    if not 1 <= k <= smaller:
        raise InvalidArgument(f"k={k} matches were asked of {smaller} features. Give k between 1 and {smaller}.")
    if block < 1:
        raise InvalidArgument(f"block={block} holds no feature. Give 1 or more.")
