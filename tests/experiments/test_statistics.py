"""Intervals and tests against answers known by other means."""

import numpy as np
import pytest
from scipy import stats

from saeflow.errors import InvalidArgument
from saeflow.experiments.statistics import GAP, RATE, Tally, by_text, mann_whitney, mean_estimates, ratio


def estimated(sums, counts, datasets=None, span=None):
    counts = np.asarray(counts, dtype=np.float64)
    tally = Tally(np.stack([sums, counts], -1), datasets)
    return tally.estimate(n=counts.sum(), span=span, sizes=counts)


def test_the_interval_of_equal_texts_is_that_of_student() -> None:
    rng = np.random.default_rng(0)
    for texts in (4, 400):
        of_text = rng.normal(0.5, 0.1, texts)
        estimate = estimated(of_text * 7, [7] * texts)
        error = of_text.std(ddof=1) / texts**0.5
        low, high = stats.t.interval(0.95, texts - 1, of_text.mean(), error)
        assert estimate.value == pytest.approx(of_text.mean())
        assert (estimate.n, estimate.texts) == (7 * texts, texts)
        assert estimate.low == pytest.approx(low, abs=0.01 * error if texts > 4 else 3 * error)
        assert estimate.low <= low + 0.01 * error
        assert estimate.high >= high - 0.01 * error


def test_a_rate_of_single_rows_has_the_exact_binomial_interval() -> None:
    successes = np.repeat([1.0, 0.0], [30, 10])
    estimate = estimated(successes, np.ones(40), span=RATE)
    low, high = stats.binomtest(30, 40).proportion_ci(method="exact")
    assert estimate.value == 0.75
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.02)
    assert estimate.low <= low
    assert estimate.high >= high


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("texts", [2, 6, 30])
def test_a_rate_at_the_edge_says_as_much_as_its_texts_and_not_its_rows(value: float, texts: int) -> None:
    estimate = estimated(np.full(texts, 9 * value), np.full(texts, 9), span=RATE)
    low, high = stats.binomtest(round(value * texts), texts).proportion_ci(method="exact")
    assert estimate.interval == (value, pytest.approx(low), pytest.approx(high))


def test_texts_of_which_one_has_most_of_the_rows_are_worth_little_more_than_one() -> None:
    even, uneven = (estimated(np.array(rows), rows, span=RATE) for rows in ([9.0] * 6, [900.0] + [1.0] * 5))
    assert even.low == pytest.approx(0.025 ** (1 / 6))
    assert uneven.low < 0.05


def test_rows_that_repeat_within_their_text_do_not_narrow_the_interval() -> None:
    sums, counts = np.random.default_rng(1).integers(0, 9, 30), np.full(30, 9)
    for span in (RATE, None):
        once, ten_times = estimated(sums, counts, span=span), estimated(10 * sums, 10 * counts, span=span)
        assert once.interval == pytest.approx(ten_times.interval)
        assert ten_times.n == 10 * once.n


def test_two_texts_that_disagree_say_next_to_nothing() -> None:
    estimate = estimated([1.0, 4.0], [5, 5], span=RATE)
    assert estimate.value == 0.5
    assert estimate.low < 0.05
    assert estimate.high > 0.95
    change = estimated([1.0, 4.0], [5, 5])
    assert change.high - change.value == pytest.approx(12.706 * 0.3, rel=1e-3)


def test_datasets_are_chosen_and_not_drawn() -> None:
    # texts that differ between datasets and hardly within
    values = [0.9, 0.91, 0.92, 0.1, 0.11, 0.12]
    within, over = estimated(values, np.ones(6), [0, 0, 0, 1, 1, 1]), estimated(values, np.ones(6))
    assert within.value == over.value
    assert within.high - within.low < 0.1 < over.high - over.low


def test_datasets_of_one_text_are_taken_together() -> None:
    # the spread of texts that have a dataset each is that between them, not nothing
    values = np.random.default_rng(6).random(6)
    assert estimated(values, np.ones(6), range(6)).interval == pytest.approx(estimated(values, np.ones(6)).interval)
    lone = estimated(values, np.ones(6), [0, 0, 0, 0, 0, 1])
    assert lone.interval == pytest.approx(estimated(values, np.ones(6)).interval)


def test_a_mean_that_hangs_on_one_text_is_not_told_from_zero() -> None:
    few = estimated([1.0] + [0.0] * 29, np.ones(30), span=GAP)
    assert few.low < 0 < few.value
    many = estimated([1.0] * 15 + [0.0] * 15, np.ones(30), span=GAP)
    assert many.low > 0


def test_without_bounds_texts_that_agree_give_no_interval() -> None:
    assert estimated([2.5] * 9, [5.0] * 9).interval == (0.5, None, None)
    assert estimated([0.0] * 9, [5.0] * 9, span=GAP).low == pytest.approx(-(1 - 0.025 ** (1 / 9)))


def test_without_rows_there_is_no_value_and_with_one_text_no_interval() -> None:
    sums, counts = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 4.0], [0.0, 0.0]])
    nothing, one = mean_estimates(sums, counts, [0, 0], span=RATE)
    assert (nothing.interval, nothing.n) == ((None, None, None), 0)
    assert (one.interval, one.n, one.texts) == ((0.25, None, None), 4, 1)


def test_texts_that_are_not_those_of_the_datasets_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="3 texts"):
        mean_estimates(np.ones((3, 1)), np.ones((3, 1)), [0, 0], span=None)


def test_the_scarcer_side_of_a_comparison_counts() -> None:
    rng = np.random.default_rng(7)
    sums = np.zeros((40, 2, 2))
    sums[:, 1], sums[:3, 0] = np.stack([rng.random(40), np.ones(40)], -1), [[0.9, 1], [0.5, 1], [0.1, 1]]
    found = Tally(sums).estimate(lambda x: ratio(x)[:, 0] - ratio(x)[:, 1], sizes=sums[..., 1])
    assert found.texts == 3
    welch = stats.t.interval(0.95, 2, 0.5 - sums[:, 1, 0].mean(), (0.16 / 3 + 1 / 12 / 40) ** 0.5)
    assert 1 <= (found.high - found.low) / (welch[1] - welch[0]) < 1.3
    sums[1:3, 0] = 0
    assert Tally(sums).estimate(lambda x: ratio(x)[:, 0] - ratio(x)[:, 1], sizes=sums[..., 1]).low is None


def test_what_is_chosen_has_an_interval_though_no_single_text_would_change_it() -> None:
    # the place of the larger of two means half an error apart
    rng = np.random.default_rng(8)
    values = rng.normal(size=(40, 2))
    values += np.array([0.1, 0.0]) - values.mean(0)
    sums = np.stack([values, np.ones_like(values)], -1)

    def place(x):
        return ratio(x).argmax(-1).astype(float)

    assert Tally(sums).estimate(place, span=GAP).low == pytest.approx(-(1 - 0.025 ** (1 / 40)), abs=0.02)
    assert Tally(sums).estimate(place, span=GAP, chosen=True).high > 0.5


def test_large_tallies_are_taken_in_pieces_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally(np.random.default_rng(1).random((50, 3)))
    whole = [tally.estimate(lambda x: x[:, 0] / x[:, 2], chosen=chosen).interval for chosen in (False, True)]
    monkeypatch.setattr("saeflow.experiments.statistics._AT_ONCE", 100)
    again = [tally.estimate(lambda x: x[:, 0] / x[:, 2], chosen=chosen).interval for chosen in (False, True)]
    assert again[0] == pytest.approx(whole[0])
    assert again[1] == pytest.approx(whole[1])


@pytest.mark.parametrize(("rate", "correlation"), [(0.02, 0.0), (0.1, 0.5), (0.5, 0.2), (1.0, 0.0)])
@pytest.mark.parametrize("texts", [2, 6, 25])
def test_intervals_of_rates_hold_the_truth_as_often_as_they_say(rate: float, correlation: float, texts: int) -> None:
    rng = np.random.default_rng(9)
    a = (1 - correlation) / correlation if correlation else 0.0
    of_text = rng.beta(rate * a, (1 - rate) * a, (200, texts)) if correlation else np.full((200, texts), rate)
    held = 0
    for sums in rng.binomial(10, of_text).astype(float):
        found = estimated(sums, np.full(texts, 10), span=RATE)
        held += found.low <= rate <= found.high
    assert held >= 0.91 * 200  # 95 % less two and a half errors of 200 trials


def gap(a, b, counts, span=GAP):
    return Tally(np.stack([np.subtract(a, b), np.asarray(counts, dtype=np.float64)], -1)).difference(
        n=sum(counts), span=span
    )


def test_a_difference_is_that_of_the_rates_and_its_p_small_only_when_texts_agree() -> None:
    rng = np.random.default_rng(2)
    n = np.full(50, 10.0)
    better, worse = rng.binomial(10, 0.8, 50).astype(float), rng.binomial(10, 0.4, 50).astype(float)
    estimate, p = gap(better, worse, n)
    assert estimate.value == pytest.approx(better.mean() / 10 - worse.mean() / 10)
    assert estimate.low > 0.3
    assert p < 1e-9
    turned, same_p = gap(worse, better, n)
    assert turned.value == pytest.approx(-estimate.value)
    assert same_p == p
    same, none = gap(better, better, n)
    assert same.low < same.value == 0 < same.high
    assert none == 1.0


@pytest.mark.parametrize("texts", [2, 4, 5, 6, 12])
def test_where_all_texts_agree_interval_and_p_say_the_same(texts: int) -> None:
    estimate, p = gap(np.ones(texts), np.zeros(texts), np.ones(texts))
    assert p == 2 / 2**texts
    assert (estimate.low > 0) == (p < 0.05)


def test_the_p_of_a_difference_agrees_with_a_t_test_over_texts() -> None:
    a = np.random.default_rng(5).normal(0.06, 0.2, 80)
    _, p = gap(a, np.zeros(80), np.ones(80), None)
    assert p == pytest.approx(stats.ttest_1samp(a, 0).pvalue, rel=0.05)


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
