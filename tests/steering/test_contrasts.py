"""Verdicts over themes: intervals that hold what they should, equivalence, and the numbers that would be needed."""

import numpy as np
import pytest

from saeflow.errors import InvalidArgument
from saeflow.steering.sweep.contrasts import contrast


def draws(themes, samples, *, mean=0.0, between=0.05, within=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return mean + between * rng.standard_normal((themes, 1)) + within * rng.standard_normal((themes, samples))


def test_a_difference_is_told_by_its_side_and_its_size():
    assert contrast(draws(16, 96, mean=0.2)).outcome == "better"
    assert contrast(draws(16, 96, mean=-0.2)).outcome == "worse"
    assert contrast(draws(40, 200, between=0.01)).outcome == "differs by less than 0.05"
    assert contrast(draws(40, 200, mean=0.02, between=0.01)).outcome == "better, but differs by less than 0.05"
    assert contrast(draws(4, 8, between=0.2)).outcome == "cannot be said"


def test_intervals_over_themes_hold_the_truth_about_as_often_as_they_say():
    held = 0
    for seed in range(200):
        found = contrast(draws(12, 24, seed=seed))
        held += found.low <= 0 <= found.high
    assert 183 <= held <= 199  # 95 % of 200, give or take 3.5 standard errors


def test_an_equal_pair_is_seldom_one_that_differs_by_as_much_as_matters():
    wrong = sum(contrast(draws(12, 24, mean=0.05, seed=seed)).equal for seed in range(200))
    assert wrong <= 0.05 * 200 + 9


def test_what_is_needed_is_enough_when_it_is_there():
    first = contrast(draws(12, 24, mean=0.02, seed=3))
    told = [contrast(draws(first.themes_needed, 24, mean=0.05, seed=100 + seed)).low > 0 for seed in range(60)]
    assert np.mean(told) >= 0.6
    assert contrast(draws(12, 24, between=0.0, within=0.2)).samples_needed < 200


def test_no_number_of_samples_makes_up_for_too_few_themes():
    assert contrast(draws(4, 100, between=0.3)).samples_needed is None


def test_too_little_is_refused():
    with pytest.raises(InvalidArgument, match="2 themes and 9 samples"):
        contrast(draws(2, 9))
    with pytest.raises(InvalidArgument, match="is not above 0"):
        contrast(draws(9, 9), 0.0)
