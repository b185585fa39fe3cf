"""One-to-one assignments equal the dense solver, and their bound is one."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.matching import permutation
from saeflow.matching.permutation import NO_PARTNER, assign
from saeflow.matching.screening import PRODUCTS, VARIABLE


def rows(n, d=8, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def integers(n, d, seed):
    return torch.randint(-1, 2, (n, d), generator=torch.Generator().manual_seed(seed)).float()


def scaled(n, seed):
    return rows(n, seed=seed) * torch.logspace(-3, 3, n)[:, None]


def oracle(a, b, absolute=False):
    """The whole matrix in float64, solved by scipy."""
    product = a.double().numpy() @ b.double().numpy().T
    product = np.abs(product) if absolute else product
    i, j = linear_sum_assignment(product, maximize=True)
    return product[i, j].sum(), np.abs(product[i, j]).sum(), product


def by_core(a, b, candidates=5, **options):
    """Without the dense solver, at the start or in the end."""
    return assign(a, b, candidates=candidates, dense_entries=0, memory=0, **options)


CASES = {
    "random": (rows(150, seed=1), rows(150, seed=2)),
    "fewer sources": (rows(80, seed=1), rows(170, seed=2)),
    "more sources": (rows(170, seed=1), rows(80, seed=2)),
    "one row": (rows(1, seed=1), rows(40, seed=2)),
    "one column": (rows(40, seed=1), rows(1, seed=2)),
    "one and one": (rows(1, seed=1), rows(1, seed=2)),
    "repeated rows": (rows(5, seed=1).repeat(30, 1), rows(7, seed=2).repeat(25, 1)),
    "one row against all": (rows(1, seed=1).repeat(150, 1), torch.cat([rows(1, seed=2).repeat(140, 1), rows(60)])),
    "all zeros": (torch.zeros(90, 8), torch.zeros(120, 8)),
    "half zeros": (torch.cat([torch.zeros(60, 8), rows(60)]), rows(120, seed=3)),
    "all equal": (torch.ones(90, 4), torch.ones(120, 4)),
    "all negative": (-rows(100, seed=1).abs(), rows(110, seed=2).abs()),
    "ties": (integers(130, 4, 1), integers(140, 4, 2)),
    "norms from 1e-3 to 1e3": (scaled(120, 1), scaled(120, 2)),
    "very small": (rows(100, seed=1) * 1e-15, rows(100, seed=2) * 1e-15),
    "very large": (rows(100, seed=1) * 1e15, rows(100, seed=2) * 1e15),
}


def check(found, a, b, accuracy=1e-6, absolute=False):
    best, size, product = oracle(a, b, absolute)
    paired = np.flatnonzero(found.index != NO_PARTNER)
    assert len(paired) == min(len(a), len(b))
    assert len(set(found.index[paired])) == len(paired)
    assert found.score[paired] == pytest.approx(product[paired, found.index[paired]], rel=1e-6, abs=1e-7 * size)
    assert np.isneginf(found.score[found.index == NO_PARTNER]).all()
    assert found.value == pytest.approx(found.score[paired].sum(), rel=1e-9, abs=1e-12 * size)
    assert abs(found.value - best) <= accuracy * size
    assert found.bound >= best - 1e-7 * size
    assert found.exact


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("candidates", [2, 50])
@pytest.mark.parametrize("absolute", [False, True])
def test_the_core_finds_what_the_dense_solver_finds(name, candidates, absolute):
    a, b = CASES[name]
    check(by_core(a, b, candidates, absolute=absolute), a, b, absolute=absolute)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("absolute", [False, True])
def test_small_problems_are_solved_densely(name, absolute):
    a, b = CASES[name]
    found = assign(a, b, absolute=absolute)
    assert found.how == "dense"
    assert found.gap == 0
    check(found, a, b, accuracy=1e-12, absolute=absolute)


def test_opposite_rows_are_partners_by_size_alone():
    a = rows(40, seed=1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    found = assign(a, -a[order], absolute=True)
    assert np.array_equal(found.index, np.argsort(order.numpy()))
    assert found.value == pytest.approx(float(a.square().sum()), rel=1e-6)


@pytest.mark.parametrize("kept", [0, permutation.KEPT_BYTES])
@pytest.mark.parametrize("product", PRODUCTS)
def test_products_are_kept_or_made_again_in_every_kind(monkeypatch, kept, product):
    monkeypatch.setenv(VARIABLE, product)
    monkeypatch.setattr(permutation, "KEPT_BYTES", kept)
    monkeypatch.setattr(permutation, "ROWS", 64)
    monkeypatch.setattr(permutation, "CROWDED", 20)  # some rows are multiplied exactly
    monkeypatch.setattr(permutation, "DEEP", 10)
    a, b = rows(150, 24, 1), rows(200, 24, 2)
    for absolute in (False, True):
        check(by_core(a, b, absolute=absolute), a, b, absolute=absolute)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    d=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    whole=st.booleans(),
    candidates=st.integers(1, 8),
)
def test_any_small_problem_is_solved_and_bounded(n, m, d, seed, whole, candidates):
    make = integers if whole else rows
    a, b = make(n, d, seed), make(m, d, seed + 1)
    check(by_core(a, b, candidates), a, b)


def test_a_planted_permutation_is_found():
    a = rows(400, 64, 1)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(2))
    b = (a + 0.3 * rows(400, 64, 3))[order]
    assert np.array_equal(by_core(a, b).index, np.argsort(order.numpy()))


def test_the_inverse_holds_the_same_pairs():
    a, b = rows(50, seed=1), rows(70, seed=2)
    found = assign(a, b)
    back = found.inverse(70)
    assert np.array_equal(back.index[found.index], np.arange(50))
    assert (back.index == NO_PARTNER).sum() == 20
    assert np.isneginf(back.score[back.index == NO_PARTNER]).all()
    again = assign(b, a)
    assert np.array_equal(again.index, back.index)
    with pytest.raises(InvalidArgument, match="beyond 10 rows"):
        found.inverse(10)


def test_the_square_case_minimises_the_squared_difference():
    a, b = rows(60, seed=1), rows(60, seed=2)
    squared = torch.cdist(a.double(), b.double()).square().numpy()
    i, j = linear_sum_assignment(squared)
    found = assign(a, b)
    assert squared[np.arange(60), found.index].sum() == pytest.approx(squared[i, j].sum())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["source", "target"])
def test_values_that_are_not_finite_are_refused_with_their_rows(bad, side):
    broken, whole = rows(9), rows(9, seed=1)
    broken[4, 2] = bad
    with pytest.raises(InvalidArgument, match=rf"{side} has NaN or infinite values in 1 of 9 rows .*\[4\]"):
        assign(*((broken, whole) if side == "source" else (whole, broken)))


def test_products_beyond_float32_are_refused():
    with pytest.raises(InvalidArgument, match="beyond float32"):
        assign(rows(3) * 1e25, rows(3) * 1e25)


def test_no_rows_and_other_widths_are_refused():
    with pytest.raises(InvalidArgument, match="source has no rows"):
        assign(torch.zeros(0, 4), rows(3, 4))
    with pytest.raises(WidthMismatch, match=r"width 4 .* width 5"):
        assign(rows(3, 4), rows(3, 5))


def test_what_is_not_proved_says_so_with_its_gap():
    a, b = CASES["repeated rows"]
    with pytest.warns(UserWarning, match=r"not proved closer in 1 rounds.*limited to 0\.0"):
        found = by_core(a, b, 1, rounds=1)
    best, size, _ = oracle(a, b)
    assert not found.exact
    assert found.gap > 0
    assert found.value <= best + 1e-9 * size
    assert found.bound >= best - 1e-9 * size


def test_the_dense_solver_takes_over_where_memory_allows():
    a, b = CASES["repeated rows"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = assign(a, b, candidates=1, rounds=1, dense_entries=0)
    assert found.how == "dense"
    check(found, a, b)


def test_costs_that_span_ten_orders_of_magnitude_end():
    a, b = scaled(300, 4), scaled(300, 5)
    best, size, _ = oracle(a, b)
    assert abs(by_core(a, b, 3).value - best) <= 1e-6 * size
