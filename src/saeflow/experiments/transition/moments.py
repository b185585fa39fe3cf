"""Sums over tokens of what a transition sees, and the ridge regressions that bound it from above (appendix F).

    G = sum z z^T     C = sum z (h_B - b_dec)^T     one pass over the texts, no activation is kept
    M = (G + strength * diag G)^-1 C                the T W_dec(B) of least squares, for one strength

The decoder's rows of B span what T W_dec(B) can be: M is projected onto their span, which changes nothing where there
are as many independent rows as dimensions. T itself is then M W_dec(B)^+. A feature that was never active has a row
of zeros. Beside it stands the best affine map of h_A itself, which no T can tell apart from more context but which
says how much of h_B any linear function of the stream reaches.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import scipy.linalg as la
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float64
from torch import Tensor

STRENGTHS: Final = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge strengths that are tried, as shares of each feature's own sum of squares."""

_AT_ONCE: Final = 1024


class Moments:
    """Running sums for one pair of sites, in float64."""

    def __init__(self, n_source: int, n_target: int, width: int, d_out: int) -> None:
        """All zero: `width` is that of h_A, `d_out` that of h_B."""
        self.n = 0
        self.gram: Float64[np.ndarray, "n_source n_source"] = np.zeros((n_source, n_source))
        self.cross: Float64[np.ndarray, "n_source d_out"] = np.zeros((n_source, d_out))
        # h_A with a 1 behind it, for the affine map
        self.stream: Float64[np.ndarray, "d_in d_in"] = np.zeros((width + 1, width + 1))
        self.stream_cross: Float64[np.ndarray, "d_in d_out"] = np.zeros((width + 1, d_out))
        self.truth: Float64[np.ndarray, " d_out"] = np.zeros(d_out)
        self.active: tuple[Tensor, Tensor] = (torch.zeros(n_source), torch.zeros(n_target))
        self.total: tuple[Tensor, Tensor] = (torch.zeros(n_source), torch.zeros(n_target))

    def add(
        self,
        h: Float[Tensor, "n width"],
        z: Float[Tensor, "n n_source"],
        y: Float[Tensor, "n n_target"],
        truth: Float[Tensor, "n d_out"],
        b_dec: Float[Tensor, " d_out"],
    ) -> None:
        """Take in some tokens: the stream and the activations at A, the activations of B and the stream there."""
        self.n += len(h)
        for place, acts in enumerate((z, y)):
            self.active[place].add_((acts > 0).sum(dim=0).cpu())
            self.total[place].add_(acts.sum(dim=0).float().cpu())
        for some in torch.arange(len(h)).split(_AT_ONCE):
            here = some.to(h.device)
            self._add(h[here], z[here], truth[here], b_dec)

    def _add(self, h: Tensor, z: Tensor, truth: Tensor, b_dec: Tensor) -> None:
        acts = sp.csr_array(z.double().cpu().numpy())
        there = truth.double().cpu().numpy()
        products = sp.coo_array(acts.T @ acts)
        self.gram[products.row, products.col] += products.data  # each pair once, so that no sum is lost
        rest = there - b_dec.double().cpu().numpy()
        self.cross += acts.T @ rest
        self.truth += there.sum(axis=0)
        stream = np.concatenate([h.double().cpu().numpy(), np.ones((len(h), 1))], axis=1)
        self.stream += stream.T @ stream
        self.stream_cross += stream.T @ there

    @property
    def mean(self) -> Float[Tensor, " d_out"]:
        """The mean of h_B, over all tokens taken in."""
        return torch.from_numpy(self.truth / max(self.n, 1)).float()

    def least_squares(
        self, strength: float, W_dec: Float[Tensor, "n_target d_out"]
    ) -> Float[Tensor, "n_source d_out"]:
        """T W_dec(B) of ridge regression: what each feature of A adds to h_B, in the span of B's decoder rows."""
        found = ridge(self.gram, self.cross, strength)
        basis = la.orth(W_dec.double().cpu().numpy().T)
        return torch.from_numpy(found @ basis @ basis.T).float()

    def affine(self, strength: float) -> Float[Tensor, "d_in d_out"]:
        """The best affine map of h_A: its rows, and the constant as the last one, which ridge leaves alone."""
        centred, mean = _centred(self.stream, self.stream_cross, self.n)
        slope = ridge(*centred, strength)
        return torch.from_numpy(np.concatenate([slope, (mean[1] - mean[0] @ slope)[None]])).float()


def ridge(
    gram: Float64[np.ndarray, "n n"], cross: Float64[np.ndarray, "n k"], strength: float
) -> Float64[np.ndarray, "n k"]:
    """(G + strength * diag G)^-1 C; rows of zeros where the diagonal is 0.

    Solved with every variable at unit size, so that a strength means the same for all.

    Raises:
        numpy.linalg.LinAlgError: for a strength too small to make G positive definite.
    """
    size = np.sqrt(np.clip(np.diag(gram), 0, None))
    used = np.flatnonzero(size > 0)
    out = np.zeros_like(cross)
    if len(used):
        scaled = gram[np.ix_(used, used)] / size[used, None] / size[None, used]
        scaled[np.diag_indices_from(scaled)] = 1 + strength
        solved = la.cho_solve(la.cho_factor(scaled), cross[used] / size[used, None])
        out[used] = solved / size[used, None]
    return out


def _centred(
    gram: Float64[np.ndarray, "n n"], cross: Float64[np.ndarray, "n k"], n: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Second moments about the means, and the means, from sums with a 1 as the last variable."""
    of_x, of_y = gram[-1, :-1] / n, cross[-1] / n
    about = gram[:-1, :-1] - n * np.outer(of_x, of_x), cross[:-1] - n * np.outer(of_x, of_y)
    return about, (of_x, of_y)
