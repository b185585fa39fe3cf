"""The k largest products agree with plain numpy: whatever the tiles, the shapes and the precision of the search."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.ids import Part, Site
from saeflow.matching.methods import match
from saeflow.matching.screening import PRODUCTS, Rounded
from saeflow.matching.topk import group_size, tiles, top_k, top_k_both

from .planted import dictionary


def rows_of(n, d, seed, unit=True):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True) if unit else rows


def agrees(found, a, b, k, tolerance=2e-6):
    """Scores are those of float64 numpy, best first; every index carries its score, and none comes twice."""
    product = a.numpy().astype(np.float64) @ b.numpy().astype(np.float64).T
    scale = max(1.0, float(np.abs(product).max(initial=0)))
    index, score = found.index.numpy(), found.score.numpy()
    best = -np.sort(-product, axis=1)[:, :k]
    assert np.abs(score - best).max(initial=0) <= tolerance * scale
    assert np.abs(np.take_along_axis(product, index, axis=1) - score).max(initial=0) <= tolerance * scale
    assert all(len(set(row)) == k for row in index.tolist())
    assert (np.diff(score, axis=1) <= 0).all()


def both_agree(a, b, k, **options):
    forward, backward = top_k_both(a, b, k, **options)
    agrees(forward, a, b, k)
    agrees(backward, b, a, k)
    agrees(top_k(a, b, k, **options), a, b, k)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    ("n", "m", "k", "rows", "columns"),
    [
        (50, 70, 5, 16, 16),
        (50, 70, 1, 1024, 16384),
        (7, 130, 7, 3, 20),
        (130, 7, 7, 20, 3),
        (33, 33, 5, 1, 1),
        (1, 1, 1, 8, 8),
        (1, 200, 1, 8, 64),
        (257, 129, 50, 100, 100),
        (300, 1000, 5, 128, 333),
        (64, 64, 64, 64, 64),
    ],
)
def test_both_directions_equal_the_whole_matrix_sorted(n, m, k, rows, columns, product):
    both_agree(rows_of(n, 24, 1), rows_of(m, 24, 2), k, rows=rows, columns=columns, product=product)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_rows_of_any_norm(scale, product):
    a, b = rows_of(90, 40, 3, unit=False) * scale, rows_of(120, 40, 4, unit=False)
    a = a * torch.logspace(-3, 3, 90)[:, None]
    forward, backward = top_k_both(a, b, 4, rows=32, columns=50, product=product)
    product = a.double() @ b.double().T
    for found, whole in ((forward, product), (backward, product.T)):
        expected = whole.sort(dim=1, descending=True).values[:, :4]
        own = (a.norm(dim=1)[:, None] if whole is product else a.norm(dim=1).max()) * b.norm(dim=1).max()
        assert ((found.score - expected).abs() <= 1e-6 * own).all()


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("order", [1, -1])
def test_rows_sorted_so_that_every_tile_has_better_ones_than_the_last(order, product):
    direction = rows_of(1, 16, 5)
    share = torch.linspace(0.01, 0.99, 400)[:, None]
    share = share.flip(0) if order < 0 else share
    a = share * direction + 0.01 * rows_of(400, 16, 6)
    both_agree(a, a.clone(), 5, rows=32, columns=32, product=product)


@pytest.mark.parametrize("product", PRODUCTS)
def test_zero_rows_and_a_matrix_of_equal_rows(product):
    a, b = rows_of(40, 12, 7), rows_of(60, 12, 8)
    a[5:20] = 0
    b[30] = 0
    both_agree(a, b, 6, rows=16, columns=16, product=product)
    both_agree(
        a[:1].expand(40, -1).contiguous(), b[:1].expand(60, -1).contiguous(), 6, rows=16, columns=16, product=product
    )


@pytest.mark.parametrize("product", PRODUCTS)
def test_equal_scores_come_in_the_order_of_their_rows(product):
    a = (4 * rows_of(4, 16, 3)).round()  # of whole numbers, products of which are exact in any order
    b = torch.cat([a, a, a])
    forward, _ = top_k_both(a, b, 3, rows=2, columns=5, product=product)
    assert forward.index.tolist() == [[i, i + 4, i + 8] for i in range(4)]


@pytest.mark.parametrize("product", PRODUCTS)
def test_k_1_is_the_first_column_of_k_5(product):
    a, b = rows_of(40, 24, 4), rows_of(60, 24, 5)
    one, five = (top_k_both(a, b, k, product=product)[0] for k in (1, 5))
    assert torch.equal(one.index[:, 0], five.index[:, 0])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(PRODUCTS),
    st.integers(0, 5),
    st.booleans(),
)
def test_any_shape_any_tile_with_many_ties(n, m, k, rows, columns, product, seed, coarse):
    a, b = rows_of(n, 6, seed, unit=False), rows_of(m, 6, seed + 1, unit=False)
    if coarse:  # small integers: exact in float32 and bfloat16, and full of ties
        a, b = a.round(), b.round()
    both_agree(a, b, min(k, n, m), rows=rows, columns=columns, product=product)


def test_screening_keeps_every_true_match_when_bfloat16_would_lose_it():
    """Columns closer together than bfloat16 can tell: only the ranking in float32 finds the best."""
    direction = rows_of(1, 256, 9)
    b = direction + 1e-4 * rows_of(500, 256, 10)
    b = b / b.norm(dim=1, keepdim=True)
    a = rows_of(30, 256, 11)
    naive = (a.bfloat16() @ b.bfloat16().T).float().argmax(dim=1)
    exact = (a.double() @ b.double().T).argmax(dim=1)
    assert (naive != exact).float().mean() > 0.5
    found = top_k(a, b, 1, rows=16, columns=128, product="bfloat16")
    margin = (a.double() @ b.double().T).gather(1, exact[:, None]) - found.score
    assert margin.abs().max() < 1e-6
    assert (found.index[:, 0] == exact).float().mean() > 0.9


@pytest.mark.parametrize("product", ["bfloat16", "int8"])
def test_the_bound_of_screening_holds_and_is_not_idle(product):
    a, b = rows_of(300, 512, 12), rows_of(400, 512, 13) * 3
    low_a, low_b = Rounded.of(a, product), Rounded.of(b, product)
    eps_a, eps_b = low_a.eps(low_b), low_b.eps(low_a)
    whole_a, whole_b = (
        side.rows.double() * (1 if side.scale is None else side.scale[:, None]) for side in (low_a, low_b)
    )
    error = (whole_a @ whole_b.T - a.double() @ b.double().T).abs()
    assert (error.max(dim=1).values <= eps_a).all()
    assert (error.max(dim=0).values <= eps_b).all()
    assert eps_a.max() < (0.05 if product == "bfloat16" else 0.2), "a bound this wide would leave nothing out"


@pytest.mark.parametrize("m", [1, 2, 7, 63, 64, 100, 1023, 1024, 4097])
@pytest.mark.parametrize("k", [1, 5, 50])
def test_a_tile_is_whole_groups_and_holds_every_product_once(m, k):
    a, b = rows_of(3, 8, 14), rows_of(m, 8, 15)
    ((block, strip, tile),) = tiles(Rounded.of(a, "float32"), Rounded.of(b, "float32"), min(k, 3), 16, 5000)
    lines = tile.rows()
    assert lines.products.shape[1] % lines.group_size == 0
    assert (block, strip) == (slice(0, 3), slice(0, m))
    whole = torch.sort(lines.products[lines.products > -torch.inf]).values
    assert torch.allclose(whole, torch.sort((a @ b.T).flatten()).values, atol=1e-6)
    for lines in (tile.rows(), tile.columns()):
        n, groups = len(lines.products), torch.arange(lines.n_groups)
        found = lines.of_groups(torch.arange(n).repeat_interleave(len(groups)), groups.repeat(n)).unflatten(0, (n, -1))
        assert torch.equal(found.amax(-1), lines.maxima())
        assert torch.equal(found.transpose(1, 2).flatten(1), lines.products), "number i of group j is at j + i n_groups"
    assert group_size(m, k) >= 1


def test_inputs_are_left_as_they_were_and_so_is_the_precision_of_the_caller():
    a, b = rows_of(40, 8, 16), rows_of(50, 8, 17)
    before = a.clone(), b.clone()
    torch.set_float32_matmul_precision("high")
    try:
        top_k_both(a, b, 3)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("n", [5, 1500])
def test_rows_that_are_not_finite_are_refused_with_their_number(bad, side, n):
    sides = [rows_of(n, 8, 0), rows_of(n, 8, 1)]
    sides[side][3, 2] = bad
    with pytest.raises(InvalidArgument, match=f"1 of the {n} rows of the {('first', 'second')[side]}"):
        top_k_both(*sides, 2)


def test_large_finite_rows_are_no_error():
    a = torch.full((1500, 8), 1e37)
    assert torch.isfinite(top_k(a * 1e-37, a * 1e-37, 1).score).all()
    assert top_k(a, a * 1e-37, 1).score.min() > 1e37


def test_different_widths_are_refused_with_both():
    with pytest.raises(WidthMismatch, match=r"width 24 .* width 23"):
        top_k_both(rows_of(5, 24, 0), rows_of(5, 23, 0), 1)


@pytest.mark.parametrize("k", [0, 6, -1])
def test_k_out_of_range_is_refused_with_the_range(k):
    with pytest.raises(InvalidArgument, match="between 1 and 5"):
        top_k_both(rows_of(5, 8, 0), rows_of(9, 8, 0), k)
    with pytest.raises(InvalidArgument, match="between 1 and 5"):
        top_k(rows_of(9, 8, 0), rows_of(5, 8, 0), k)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_what_the_cpu_gives():
    a, b = rows_of(3000, 256, 18), rows_of(2500, 256, 19)
    torch.backends.cuda.matmul.allow_tf32 = True  # what a caller may have set must not matter
    for found, expected in zip(top_k_both(a.cuda(), b.cuda(), 5), top_k_both(a, b, 5), strict=True):
        assert (found.score.cpu() - expected.score).abs().max() < 1e-6
        assert (found.index.cpu() == expected.index).float().mean() > 0.999


def test_the_norm_of_rows_does_not_matter():
    rows = rows_of(30, 24, 6)
    scaled = rows * torch.linspace(0.1, 9, 30)[:, None]
    source = dictionary(Site(1, Part.RES), rows_of(20, 24, 7))
    plain = match(source, dictionary(Site(0, Part.RES), rows), k=3)
    other = match(source, dictionary(Site(0, Part.RES), scaled), k=3)
    assert np.array_equal(plain.index, other.index)
    assert np.abs(plain.score - other.score).max() < 1e-6


def test_an_unknown_method_is_refused():
    one = dictionary(Site(0, Part.RES), rows_of(5, 8, 0))
    with pytest.raises(InvalidArgument, match="Known: cosine"):
        match(one, one, method="magic")
