"""Matching two dictionaries by cosine; how products are ranked is tested in test_topk."""

import numpy as np
import pytest
import torch

from saeflow.errors import InvalidArgument
from saeflow.ids import Part, Site
from saeflow.matching.methods import match

from .planted import dictionary


def unit(n, d, seed):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def test_the_norm_of_rows_does_not_matter():
    rows = unit(30, 24, 6)
    scaled = rows * torch.linspace(0.1, 9, 30)[:, None]
    source = dictionary(Site(1, Part.RES), unit(20, 24, 7))
    plain = match(source, dictionary(Site(0, Part.RES), rows), k=3)
    other = match(source, dictionary(Site(0, Part.RES), scaled), k=3)
    assert np.array_equal(plain.index, other.index)
    assert np.abs(plain.score - other.score).max() < 1e-6


def test_an_unknown_method_is_refused():
    one = dictionary(Site(0, Part.RES), unit(5, 8, 0))
    with pytest.raises(InvalidArgument, match="Known: cosine"):
        match(one, one, method="magic")
