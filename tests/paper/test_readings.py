"""What the figures of a results page say in a sentence: numbers of their tables, rates beside their controls."""

import pytest

from saeflow.experiments.results import SummaryTable
from saeflow.paper import FIGURES, reading

from .sample_results import every_table
from .test_figures import first, texts


def table(name, columns, *rows):
    return SummaryTable.of(name, "", "", "", columns, rows)


def plain(text):
    return text.replace("\u00a0", " ")


def test_every_figure_has_a_sentence():
    assert set(every_table()) <= set(FIGURES)


def test_strategies_are_told_with_their_controls():
    columns = "strategy, layer, deactivated, low, high, n, control_deactivated, control_low, control_high, control_n"
    rows = [
        ["top-1", "all", 0.713, 0.68, 0.741, 5601, 0.08, 0.07, 0.09, 5600],
        ["top-5", "all", 0.8, 0.7, 0.9, 9, 0.1, 0, 0.2, 9],
        ["exhaustive", "all", 0.9, 0.8, 1.0, 9, None, None, None, 0],
        ["top-1", 3, 0.1, 0.1, 0.1, 9, 0.1, 0, 0.2, 9],
    ]
    assert plain(reading(table("by_strategy_layer", columns, *rows))) == (
        "top-1 deactivates 71 % (68–74) of 5,601 targets; the active control 8 % (7–9). "
        "Of the targets of each: top-5 80 % (control 10 %) and exhaustive 90 %."
    )
    assert plain(reading(table("by_strategy_layer", columns, rows[3]))) == (
        "top-1 deactivates 10 % (10–10) of 9 targets at layer 3, control 10 % (0–20)."
    )


def test_groups_are_told_from_the_best_to_the_worst():
    columns = "strategy, group, removed, deactivated, low, high, n, control_deactivated, control_low, control_high"
    rows = [
        ["top-1", "RES", "RES", 0.5, 0.4, 0.6, 20, 0.1, 0.05, 0.15],
        ["top-1", "MLP", "MLP", 0.9, None, None, 10, None, None, None],
        ["top-1", "RES & MLP", "RES", 0.01, None, None, 10, None, None, None],
    ]
    assert plain(reading(table("by_strategy", columns, *rows))) == (
        "Removing all that top-1 names deactivates 90 % of 10 targets from MLP; and "
        "50 % (40–60) of 20 targets from RES, control 10 % (5–15)."
    )


@pytest.mark.parametrize("no", [False, 0])
def test_what_the_pearson_tables_never_saw_is_told_and_marked_alike(no):
    columns = "method, dataset, in_distribution, group, share, low, high, n"
    where = {"all": None, "a": True, "b": no}
    rows = [[m, d, seen, "nowhere", 0.5, 0.4, 0.6, 9] for m in ("cosine", "pearson") for d, seen in where.items()]
    told = table("methods", columns, *rows)
    assert plain(reading(told)).endswith(
        "On b, new to Pearson: 50 % (40–60) under cosine and 50 % (40–60) under pearson."
    )
    words = texts(first(told))
    assert ("b †" in words, "a †" in words) == (True, False)


def test_shares_are_told_over_layers_and_data_sets():
    columns = "method, dataset, layer, group, share, low, high, n"
    shares = ((0, "nowhere", 0.6), (0, "RES", 0.4), (4, "nowhere", 0.3), (4, "RES", 0.7))
    rows = [["cosine", "all", layer, g, s, s - 0.1, s + 0.1, 50] for layer, g, s in shares]
    assert plain(reading(table("shares_by_layer", columns, *rows))) == (
        "At layer 0 nowhere is largest under cosine with 60 % (50–70), at layer 4 RES is largest with 70 % (60–80); "
        "nowhere goes from 60 % to 30 %."
    )
    columns = "method, dataset, group, share, low, high, n"
    every = (("nowhere", 0.3), ("ATT", 0.5), ("MLP", 0.2))
    shares = [("all", g, s) for g, s in every] + [("code", "nowhere", 0.4), ("web", "nowhere", 0.2)]
    rows = [["cosine", d, g, s, s, s, 5000] for d, g, s in shares]
    assert plain(reading(table("shares_by_dataset", columns, *rows))) == (
        "Of 5,000 active features, 30 % (30–30) have no active predecessor under cosine; the largest other group is "
        "ATT with 50 % (50–50). Nowhere runs from 20 % (web) to 40 % (code)."
    )


def test_tests_are_pooled_by_their_numbers():
    columns = "method, group_a, group_b, score, tests, passed, share, skipped"
    rows = [
        ["cosine", "nowhere", "RES", "s(R)", 10, 9, 0.9, 0],
        ["cosine", "nowhere", "MLP", "s(R)", 90, 1, 0.011, 0],
        ["cosine", "RES", "MLP", "s(R)", 0, 0, None, 9],
    ]
    assert plain(reading(table("separability", columns, *rows))) == (
        "Two groups differ by s(R) in 10 % of the tests under cosine; hardest to tell apart are nowhere and MLP "
        "(1 % over the scores)."
    )


def test_agreement_is_weighted_by_the_features_seen():
    rows = [["cosine", "pearson", "res", 1, 0.5, 30], ["cosine", "pearson", "res", 2, 1.0, 10]]
    told = reading(table("agreement_by_layer", "method_a, method_b, part, layer, same, n", *rows))
    assert plain(told) == "Cosine and pearson name the same predecessor in 62 % at res."


def test_shared_targets_are_told_with_the_control_last():
    columns = "strategy, deactivated, low, high, n"
    rows = [
        ["exhaustive", 0.9, 0.8, 1.0, 1894],
        ["active control", 0.05, 0.04, 0.06, 1894],
        ["top-1", 0.7, 0.6, 0.8, 1894],
    ]
    assert plain(reading(table("table_1", columns, *rows))) == (
        "On 1,894 shared targets top-1 deactivates 70 % (60–80) and exhaustive 90 % (80–100); "
        "the active control 5 % (4–6)."
    )


def test_rescaling_is_told_at_its_ends_and_at_removal():
    columns = "strategy, r, group, deactivated, low, high, change, change_low, change_high"
    rows = [
        ["top-1", r, "all", d, d, d, c, c - 0.1, c + 0.1]
        for r, d, c in ((-1, 0.9, 1), (0, 0.7, 0.8), (2, 0, -0.5), (1, 0, 0))
    ]
    assert plain(reading(table("by_rescale", columns, *rows))) == (
        "All groups together: at r = −1 the activation change is 1.00 (0.90–1.10), 90 % deactivated; at r = 0 the "
        "activation change is 0.80 (0.70–0.90), 70 % deactivated; at r = 2 the activation change is "
        "−0.50 (−0.60 to −0.40), 0 % deactivated."
    )


def test_rescaling_is_told_with_its_control():
    columns = "strategy, r, group, deactivated, change, change_low, change_high, control_deactivated, control_change"
    rows = [["top-1", 0, "all", 0.7, 0.8, 0.7, 0.9, 0.05, 0.1], ["top-1", 2, "all", 0, -0.5, -0.6, -0.4, 0.02, -0.04]]
    assert plain(reading(table("by_rescale", columns, *rows))) == (
        "All groups together: at r = 0 the activation change is 0.80 (0.70–0.90) (control 0.10), 70 % deactivated "
        "(control 5 %); at r = 2 the activation change is −0.50 (−0.60 to −0.40) (control −0.04), 0 % deactivated "
        "(control 2 %)."
    )


def test_new_groups_are_told_with_their_controls():
    columns = "strategy, group, removed, new_group, probability, control_probability"
    rows = [
        ["top-1", group, group, became, p, control]
        for group, became, p, control in (
            ("RES", "deactivated", 0.7, 0.05),
            ("MLP", "deactivated", 0.4, None),
            ("MLP", "nowhere", 0.5, 0.1),
        )
    ]
    assert plain(reading(table("new_group", columns, *rows))) == (
        "With all predecessors removed under top-1, 70 % (control 5 %) of targets from RES fall silent and 40 % of "
        "those from MLP; 50 % (control 10 %) of the latter stay active with no active predecessor."
    )


def test_what_silences_targets_is_told_with_the_control_of_predecessors():
    columns = "group, outcome, share, n, control_share"
    rows = [["all", "deactivated by its predecessors", 0.6, 50, 0.04], ["all", "by none tried", 0.4, 50, None]]
    assert plain(reading(table("remaining", columns, *rows))) == (
        "Of 50 targets: deactivated by its predecessors 60 % (control 4 %) and by none tried 40 %."
    )


def test_strategies_on_shared_targets_are_told_each_with_its_control():
    columns = "strategy, deactivated, low, high, n, control_deactivated"
    rows = [
        ["top-1", 0.7, 0.6, 0.8, 90, 0.05],
        ["exhaustive", 0.9, 0.8, 1.0, 90, 0.1],
        ["active control", 0.05, 0.04, 0.06, 85, None],
    ]
    assert plain(reading(table("table_1", columns, *rows))) == (
        "On 90 shared targets top-1 deactivates 70 % (60–80) (control 5 %) and exhaustive 90 % (80–100) (control 10 %)."
    )


@pytest.mark.parametrize("name", FIGURES)
def test_a_table_of_gaps_has_no_sentence_or_one_without_numbers_it_does_not_have(name):
    known = every_table().get(name)
    columns = known.columns if known else ("group", "layer", "part", "strategy", "removed", "outcome", "score")
    gaps = SummaryTable(name, "", "", "", tuple(columns), ((None,) * len(columns),))
    assert "None" not in reading(gaps)
    assert reading(SummaryTable(name, "", "", "", tuple(columns), ())) == ""
