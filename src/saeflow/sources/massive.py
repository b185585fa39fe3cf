"""Massive positions: tokens whose hidden state is so long that no mean or variance over all tokens means anything.

In SmolLM2 135M the residual stream of a text's first token has a norm of 25,000 from layer 11 on, where the median is
132. Its squared norm is 35,000 medians: one such token in 256 has over 99 % of the variance, and a mean norm, a
variance or an FVE that includes it describes that token alone. Gemma 3 and Llama have such positions too (Sun et al.
2024, arXiv 2402.17762).

The rule is measured, not positional: at a site, a position is massive when its squared norm is more than `RATIO` times
the median squared norm of the site.

    limit = norm_limit(h[real])                    once per site, from many positions
    kept = real & ~is_massive(h, limit)
    kept = ordinary(h, real)                       both, for texts that are read batch by batch

At 24 sites of SmolLM2, 12,000 tokens of novels and encyclopaedia, the rule leaves out the first token of a text (0.4 %)
from layer 11 on, and at two early MLPs up to 2 %, among them many ` the` with the squared norm of hundreds of medians.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeflow.errors import InvalidArgument

RATIO: Final = 100.0
"""A squared norm of more than this many medians is massive: ten times the usual length."""


def norm_limit(h: Float[Tensor, "n d"], ratio: float = RATIO) -> float:
    """The squared norm above which a position of this site is massive.

    Infinite for a ratio of 0, and where half of the positions are zeros: a multiple of nothing is no limit.

    Raises:
        InvalidArgument: when there is no position.
    """
    if not ratio:
        return math.inf
    if not len(h):
        raise InvalidArgument("there is no position to take a median norm of. Give texts with more tokens.")
    return ratio * float(_squared_norms(h).median()) or math.inf


def is_massive(h: Float[Tensor, "*batch d"], limit: float) -> Bool[Tensor, "*batch"]:
    """Which positions are massive, given the `norm_limit` of their site."""
    if math.isinf(limit):
        return torch.zeros(h.shape[:-1], dtype=torch.bool, device=h.device)
    return _squared_norms(h) > limit


def ordinary(h: Float[Tensor, "batch pos d"], real: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Which of the positions that count are not massive, by the median of these positions themselves.

    Nothing is carried from batch to batch: a run that resumes leaves out the same positions. The median of a few dozen
    tokens is within a tenth or two of the site's, and massive norms are hundreds or thousands of medians.
    """
    return real & ~is_massive(h, norm_limit(h[real])) if bool(real.any()) else real


def _squared_norms(h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    return h.float().square().sum(dim=-1)
