"""Cosine top-k agrees with plain numpy, whatever the tiles."""

import numpy as np
import pytest
import torch

from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.ids import Part, Site
from saeflow.matching.build import match
from saeflow.matching.cosine import top_k_both

from .planted import dictionary


def unit(n, d, seed):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def oracle(a, b, k):
    """The formula in plain numpy: the whole matrix, sorted."""
    product = a.numpy().astype(np.float64) @ b.numpy().astype(np.float64).T
    index = np.argsort(-product, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(product, index, axis=1)


@pytest.mark.parametrize(("n", "m", "k", "rows", "columns"), [
    (50, 70, 5, 16, 16), (50, 70, 1, 1024, 4096), (7, 130, 7, 3, 20), (130, 7, 7, 20, 3), (33, 33, 5, 1, 1),
])  # fmt: skip
def test_both_directions_equal_the_whole_matrix_sorted(n, m, k, rows, columns):
    a, b = unit(n, 24, 1), unit(m, 24, 2)
    forward, backward = top_k_both(a, b, k, rows=rows, columns=columns)
    for found, (index, score) in ((forward, oracle(a, b, k)), (backward, oracle(b, a, k))):
        assert np.array_equal(found.index.numpy(), index)
        assert np.abs(found.score.numpy() - score).max() < 1e-6


def test_equal_scores_come_in_the_order_of_their_rows():
    a = unit(4, 16, 3)
    b = torch.cat([a, a, a])
    forward, _ = top_k_both(a, b, 3, rows=2, columns=5)
    assert forward.index.tolist() == [[i, i + 4, i + 8] for i in range(4)]


def test_k_1_is_the_first_column_of_k_5():
    a, b = unit(40, 24, 4), unit(60, 24, 5)
    assert torch.equal(top_k_both(a, b, 1)[0].index[:, 0], top_k_both(a, b, 5)[0].index[:, 0])


def test_the_norm_of_rows_does_not_matter():
    rows = unit(30, 24, 6)
    scaled = rows * torch.linspace(0.1, 9, 30)[:, None]
    source = dictionary(Site(1, Part.RES), unit(20, 24, 7))
    plain = match(source, dictionary(Site(0, Part.RES), rows), k=3)
    other = match(source, dictionary(Site(0, Part.RES), scaled), k=3)
    assert np.array_equal(plain.index, other.index)
    assert np.abs(plain.score - other.score).max() < 1e-6


def test_different_widths_are_refused_with_both():
    with pytest.raises(WidthMismatch, match=r"width 24 .* width 23"):
        top_k_both(unit(5, 24, 0), unit(5, 23, 0), 1)


@pytest.mark.parametrize("k", [0, 6, -1])
def test_k_out_of_range_is_refused_with_the_range(k):
    with pytest.raises(InvalidArgument, match="between 1 and 5"):
        top_k_both(unit(5, 8, 0), unit(9, 8, 0), k)


def test_an_unknown_method_is_refused():
    one = dictionary(Site(0, Part.RES), unit(5, 8, 0))
    with pytest.raises(InvalidArgument, match="Known: cosine"):
        match(one, one, method="magic")
