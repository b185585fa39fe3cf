"""Massive positions: tokens whose hidden state has so large a norm that it dominates any mean or variance over tokens.

In SmolLM2 135M the residual stream of a text's first token has a norm of 25,000 from layer 11 on, where the median is
132. Its squared norm is 35,000 times the median: one such token in 256 has over 99 % of the variance, and a mean norm,
variance or FVE that includes it describes only that token. Gemma 3 and Llama have such positions too (Sun et al. 2024,
arXiv 2402.17762).

The rule depends on the norm, not on the position: at a site, a position is massive when its squared norm is more than
`RATIO` times the median squared norm of the site.

    limit = norm_limit(h[real])                    once per site, from many positions
    kept = real & ~is_massive(h, limit)
    kept = ordinary(h, real)                       both steps, for texts that are read batch by batch

Measured at 24 sites of SmolLM2 on 12,000 tokens of novels and an encyclopaedia, the rule excludes the first token of a
text (0.4 % of tokens) from layer 11 on, and at two early MLPs up to 2 %, among them many ` the` whose squared norm is
hundreds of times the median.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeflow.errors import InvalidArgument

RATIO: Final = 100.0
"""A position is massive above this many times the median squared norm, that is above ten times the usual norm."""


def norm_limit(h: Float[Tensor, "n d"], ratio: float = RATIO) -> float:
    """The squared norm above which a position of this site is massive.

    Infinite, so that nothing is massive, for a ratio of 0 or a median of 0 (half of the positions are zeros).

    Raises:
        InvalidArgument: when `h` has no position.
    """
    if not ratio:
        return math.inf
    if not len(h):
        raise InvalidArgument("there is no position to take a median norm of. Give texts with more tokens.")
    return ratio * float(_squared_norms(h).median()) or math.inf


def is_massive(h: Float[Tensor, "*batch d"], limit: float) -> Bool[Tensor, "*batch"]:
    """Which positions are massive, given `norm_limit` at their site."""
    if math.isinf(limit):
        return torch.zeros(h.shape[:-1], dtype=torch.bool, device=h.device)
    return _squared_norms(h) > limit


def ordinary(h: Float[Tensor, "batch pos d"], real: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Which of the positions that count are not massive, judged by the median over these positions themselves.

    Nothing is carried from batch to batch, so a resumed run excludes the same positions. The median over a few dozen
    tokens is within 10 or 20 % of the site's, while massive squared norms are hundreds or thousands of medians.
    """
    return real & ~is_massive(h, norm_limit(h[real])) if bool(real.any()) else real


def _squared_norms(h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    return h.float().square().sum(dim=-1)
