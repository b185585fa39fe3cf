"""Intervals and tests against answers known by other means."""

import numpy as np
import pytest
from scipy import stats

from saeflow.errors import InvalidArgument
from saeflow.experiments.statistics import Resampling, by_text, mann_whitney


def column(values):
    return np.asarray(values, dtype=np.float64)[:, None]


def test_the_interval_of_equal_texts_is_that_of_their_means() -> None:
    rng = np.random.default_rng(0)
    of_text = rng.normal(0.5, 0.1, 400)
    rows = 7
    [estimate] = Resampling.of([0] * 400, draws=4000).ratios(column(of_text * rows), column([rows] * 400))
    error = of_text.std() / 400**0.5
    assert estimate.value == pytest.approx(of_text.mean())
    assert estimate.n == 2800
    assert estimate.low == pytest.approx(of_text.mean() - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(of_text.mean() + 1.96 * error, abs=0.1 * error)


def test_rows_that_repeat_within_their_text_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(1)
    sums, counts = column(rng.integers(0, 9, 30)), column(np.full(30, 9))
    draws = Resampling.of([0] * 30)
    [once], [ten_times] = draws.ratios(sums, counts), draws.ratios(10 * sums, 10 * counts)
    assert once.interval == pytest.approx(ten_times.interval)
    assert ten_times.n == 10 * once.n


def test_two_texts_that_disagree_reach_from_one_to_the_other() -> None:
    # a draw holds the second text 0, 1 or 2 times, with probability 1/4, 1/2, 1/4
    [estimate] = Resampling.of([0, 0]).ratios(column([0, 5]), column([5, 5]))
    assert estimate.interval == (0.5, 0.0, 1.0)


def test_datasets_are_not_drawn_from() -> None:
    draws = Resampling.of([0, 0, 0, 1, 1])
    assert np.array_equal(draws.weights[:, :3].sum(1), np.full(2000, 3))
    assert np.array_equal(draws.weights[:, 3:].sum(1), np.full(2000, 2))
    # where texts differ between datasets only, resampling texts moves nothing
    [estimate] = draws.ratios(column([1, 1, 1, 0, 0]), column([1] * 5))
    assert estimate.interval == (0.6, pytest.approx(0.6), pytest.approx(0.6))


def test_draws_are_a_function_of_their_seed() -> None:
    assert np.array_equal(Resampling.of([0] * 9, seed=3).weights, Resampling.of([0] * 9, seed=3).weights)
    assert not np.array_equal(Resampling.of([0] * 9, seed=3).weights, Resampling.of([0] * 9, seed=4).weights)


def test_without_rows_there_is_no_value_and_with_one_text_no_interval() -> None:
    draws = Resampling.of([0, 0])
    nothing, one = draws.ratios(np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 4.0], [0.0, 0.0]]))
    assert (nothing.interval, nothing.n) == ((None, None, None), 0)
    assert (one.interval, one.n) == ((0.25, None, None), 4)


def test_texts_that_are_not_those_of_the_draws_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="3 texts"):
        Resampling.of([0, 0]).ratios(np.ones((3, 1)), np.ones((3, 1)))
    with pytest.raises(InvalidArgument, match="0 bootstrap draws"):
        Resampling.of([0], draws=0)


def test_a_difference_is_that_of_the_rates_and_its_p_small_only_when_texts_agree() -> None:
    rng = np.random.default_rng(2)
    n = np.full(50, 10.0)
    better, worse = rng.binomial(10, 0.8, 50).astype(float), rng.binomial(10, 0.4, 50).astype(float)
    draws = Resampling.of([0] * 50)
    estimate, p = draws.difference(better, worse, n)
    assert estimate.value == pytest.approx(better.mean() / 10 - worse.mean() / 10)
    assert estimate.low > 0.3
    assert p == pytest.approx(2 / 2001)
    turned, same_p = draws.difference(worse, better, n)
    assert turned.value == pytest.approx(-estimate.value)
    assert same_p == p
    assert draws.difference(better, better, n) == (estimate.__class__(0.0, 0.0, 0.0, 500), 1.0)


def test_a_few_texts_that_agree_are_no_proof() -> None:
    draws = Resampling.of([0] * 4)
    assert draws.difference(np.ones(4), np.zeros(4), np.ones(4))[1] == 2 / 2**4


def test_the_p_of_a_difference_agrees_with_a_t_test_over_texts() -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(0.06, 0.2, 80)
    _, p = Resampling.of([0] * 80, draws=20000).difference(a, np.zeros(80), np.ones(80))
    assert p == pytest.approx(stats.ttest_1samp(a, 0).pvalue, rel=0.25)


def test_mann_whitney_is_its_formula_with_ties_and_continuity() -> None:
    a, b = np.array([1.0, 2, 2, 3, 5, 6, 7, 7, 9]), np.array([2.0, 4, 6, 8, 8, 9, 10, 11])
    u = sum((x > y) + 0.5 * (x == y) for x in a for y in b)
    n = len(a) + len(b)
    ties = sum(t**3 - t for t in np.unique(np.concatenate([a, b]), return_counts=True)[1])
    spread = (len(a) * len(b) / 12 * (n + 1 - ties / (n * (n - 1)))) ** 0.5
    z = (abs(u - len(a) * len(b) / 2) - 0.5) / spread
    assert mann_whitney(a, b) == pytest.approx(2 * stats.norm.sf(z))
    assert mann_whitney(a, b) == mann_whitney(b, a)


def test_groups_that_cannot_be_told_apart_are_not() -> None:
    assert mann_whitney(np.full(9, 0.5), np.full(12, 0.5)) == 1.0
    same = np.arange(20.0)
    assert mann_whitney(same, same) > 0.99


def test_sums_by_text_and_group_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(3)
    texts, groups, values = rng.integers(0, 4, 50), rng.integers(0, 3, 50), rng.normal(size=50)
    expected = np.zeros((4, 3))
    for text, group, value in zip(texts, groups, values, strict=True):
        expected[text, group] += value
    assert np.allclose(by_text(texts, groups, values, (4, 3)), expected)
