"""What the figures of a steering sweep say in a sentence, for one theme and for many."""

import pytest

from saeflow.experiments.results import SummaryTable
from saeflow.paper import FIGURES, reading
from saeflow.paper.frame import Frame

from .sample_steering import THEMES, steering_tables
from .test_readings import plain, table

SMALL = {made.name: made for made in steering_tables(THEMES[:2], depth=5)}
TOLD = [name for name in SMALL if name in FIGURES]
LAYER = "theme, direction, method, layer, value, n, score, low, high, default"


@pytest.mark.parametrize("name", TOLD)
def test_every_figure_of_a_sweep_has_a_sentence_for_all_and_for_each_theme(name):
    frame = Frame.read(SMALL[name])
    every = reading(frame)
    assert every.endswith(".")
    each = [reading(frame.where(theme=theme)) for theme in frame.distinct("theme")]
    assert all(each)
    assert every not in each


@pytest.mark.parametrize("name", TOLD)
def test_gaps_make_no_numbers(name):
    columns = SMALL[name].columns
    words = {"theme": "a", "direction": "suppress", "method": "single", "method_a": "cumulative", "method_b": "single"}
    gaps = SummaryTable(name, "", "", "", columns, (tuple(words.get(column) for column in columns),))
    assert "None" not in reading(gaps)
    assert reading(SummaryTable(name, "", "", "", columns, ())) == ""


def suppressed(theme, weak, strong):
    """Best at layer `weak` for r = 0 and at `strong` for r = -4."""
    return [
        [theme, "suppress", "single", layer, r, 9, 0.6 if layer == best else 0.3, 0.2, 0.7, 0.25]
        for r, best in ((0, weak), (-4, strong))
        for layer in range(6)
    ]


def test_the_best_layer_is_told_at_the_weakest_and_the_strongest_r():
    rows = [*suppressed("sea", 4, 1), ["sea", "suppress", "cumulative", 3, -1, 9, 0.7, 0.6, 0.8, 0.25]]
    assert plain(reading(table("steering_by_layer", LAYER, *rows))) == (
        "At r = 0 the best single layer is 4, with 0.60 (0.20–0.70), at r = −4 the best single layer is 1, with 0.60 "
        "(0.20–0.70); cumulative reaches 0.70 (0.60–0.80) with layers to 3 at r = −1; unsteered it is 0.25."
    )


def test_themes_whose_best_layer_moves_are_counted():
    rows = [*suppressed("sea", 4, 1), *suppressed("anger", 2, 2), *suppressed("money", 0, 3)]
    assert plain(reading(table("steering_by_layer", LAYER, *rows))) == (
        "Suppressing harder from r = 0 to r = −4, the best single layer moves earlier in 1 of 3 themes and later in 1."
    )


def test_activation_tells_the_best_layer_of_each_method():
    rows = [["sea", "activate", "single", layer, 4, 9, 0.1 * layer, None, None, 0.05] for layer in range(3)] + [
        ["sea", "activate", "linear", 1, 8, 9, 0.5, 0.4, 0.6, 0.05]
    ]
    assert plain(reading(table("steering_by_layer", LAYER, *rows))) == (
        "Best of all layers: single [layer 2, s = 4] 0.20 and linear [layers to 1, s = 8] 0.50 (0.40–0.60); unsteered "
        "it is 0.05."
    )


def test_the_highest_scores_over_the_strength_come_in_order():
    columns = "theme, direction, method, value, layer, n, behavior, coherence, score, low, high, default"
    rows = [
        ["sea", "suppress", m, r, layer, 9, 1, 4, score, None, None, 0.2]
        for m, r, layer, score in (
            ("start", 0, -1, 0.3),
            ("start", -2, -1, 0.35),
            ("single", 0, 4, 0.5),
            ("cumulative", 0, 3, 0.6),
        )
    ]
    assert plain(reading(table("steering_by_value", columns, *rows))) == (
        "Highest scores over r: cumulative [layers to 3, r = 0] 0.60, single [layer 4, r = 0] 0.50 and start alone "
        "[r = −2] 0.35; unsteered it is 0.20."
    )
    other = [["anger", *row[1:]] for row in rows[:3]]
    assert plain(reading(table("steering_by_value", columns, *rows, *other))) == (
        "Suppressing, the highest score of 2 themes is that of cumulative in 1 and single in 1."
    )


BEST = "theme, direction, method, layer, value, n, score, low, high, mirrors"


def test_confirmed_scores_are_compared_theme_by_theme():
    """Random rows count only where they stand in for the best multi-layer method."""
    rows = []
    for theme, many, start in (("sea", 0.6, 0.3), ("anger", 0.4, 0.5)):
        rows += [
            [theme, "activate", method, 3, 2, 9, score, score - 0.1, score + 0.1, mirrors]
            for method, score, mirrors in (
                ("linear", many, ""),
                ("constant", 0.1, ""),
                ("start", start, ""),
                ("single", 0.55, ""),
                ("random", 0.05, "linear"),
                ("random", 0.9, "single"),
            )
        ]
    assert plain(reading(table("steering_best", BEST, *rows))) == (
        "Activating, the best multi-layer method scores 0.50 in the median of 2 themes, and is above start alone in 1 "
        "(intervals apart in 1), single in 1 (0) and random in 2 (2)."
    )
    assert plain(reading(table("steering_best", BEST, *rows[:6]))) == (
        "Activating sea: linear [layers to 3, s = 2] 0.60 (0.50–0.70), single [layer 3, s = 2] 0.55 (0.45–0.65), start "
        "alone [layer 3, s = 2] 0.30 (0.20–0.40), constant [layers to 3, s = 2] 0.10 (0.00–0.20) and random [layer 3, "
        "s = 2] 0.05 (−0.05 to 0.15)."
    )


def test_differences_are_counted_by_the_side_of_zero_their_interval_lies_on():
    columns = "theme, direction, method_a, method_b, n, difference, low, high, p"
    rows = [
        ["sea", "suppress", a, b, 9, d, d - 0.1, d + 0.1, 0.1]
        for a, b, d in (
            ("cumulative", "start", 0.2),
            ("cumulative", "single", 0.05),
            ("cumulative", "prompt", -0.3),
            ("single", "start", 0.9),
        )
    ]
    assert plain(reading(table("steering_paired", columns, *rows))) == (
        "Suppressing with several layers, the whole interval of the difference is above zero in 1 of 1 against start "
        "alone (below in 0), 0 of 1 against single (0) and 0 of 1 against prompted (1)."
    )


def test_spreads_features_and_limits_are_told():
    columns = "theme, direction, method, values, mean_score, worst_score, best_score, spread"
    rows = [["sea", "suppress", m, 6, 0.3, 0.1, 0.5, s] for m, s in (("single", 0.4), ("cumulative", 0.1))]
    assert plain(reading(table("steering_sensitivity", columns, *rows))) == (
        "Suppressing, the worst and the best r of the grid lie apart by 0.10 with cumulative and 0.40 with single."
    )
    rows = [["sea", layer, "res", 3, int(layer == 2)] for layer in (1, 2)] + [["anger", 0, "mlp", 2, 1]]
    assert plain(reading(table("steering_features", "theme, layer, part, features, starts", *rows))) == (
        "Each theme has 2 to 6 features at 1 to 2 layers, grown from 1 start feature."
    )
    columns = "theme, direction, method, share_limit, layer, value, n, score"
    rows = [
        ["sea", "activate", m, share, 1, 2, 9, score]
        for m, share, score in (
            ("single", 0.05, 0.2),
            ("constant", 0.05, 0.3),
            ("single", 0.8, 0.6),
            ("constant", 0.8, 0.5),
        )
    ]
    assert plain(reading(table("steering_by_share", columns, *rows))) == (
        "Activating, several layers score above a single one in 1 of 1 themes with at most 5 % of the hidden norm "
        "changed and in 0 of 1 themes with at most 80 % changed."
    )
