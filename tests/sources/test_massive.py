"""Massive positions: a rule of the norms of a site, not of places in a text."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saeflow.errors import InvalidArgument
from saeflow.sources.massive import RATIO, is_massive, norm_limit, ordinary


@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 49), st.floats(1.1, 100))
def test_a_position_is_massive_above_the_ratio_of_the_median_in_any_unit(unit, place, above):
    h = unit * torch.nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    h[place] *= (RATIO * above) ** 0.5
    massive = is_massive(h, norm_limit(h))
    assert massive.nonzero().flatten().tolist() == [place]
    h[place] /= above**0.5 * 1.05
    assert not bool(is_massive(h, norm_limit(h)).any())


def test_the_shape_of_a_capture_is_kept_and_a_ratio_of_0_leaves_out_none():
    h = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    h[:, 0] *= 1000
    assert torch.equal(is_massive(h, norm_limit(h.flatten(0, 1))), torch.arange(5).eq(0).expand(3, 5))
    assert norm_limit(h.flatten(0, 1), 0) == math.inf
    h[:, 1:4] = 0
    assert norm_limit(h.flatten(0, 1)) == math.inf
    h[:, 1:4] = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(1))
    assert not bool(is_massive(h, math.inf).any())
    with pytest.raises(InvalidArgument, match="no position to take a median norm of"):
        norm_limit(h[:0, 0])


def test_a_batch_has_its_own_median_of_what_counts():
    h = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    real = torch.ones(3, 5, dtype=torch.bool)
    h[:, 0] *= 1000
    assert torch.equal(ordinary(h, real), torch.arange(5).ne(0).expand(3, 5))
    h[:, 2:] *= 1000  # what does not count moves no median
    real[:, 2:] = False
    assert torch.equal(ordinary(h, real), real & torch.arange(5).ne(0))
    assert not bool(ordinary(h, torch.zeros_like(real)).any())
