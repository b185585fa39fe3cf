"""Tables of deactivation from tiny rows, with answers worked out by hand."""

import numpy as np
import pytest

from saeflow.experiments import deactivation_tables as deactivation
from saeflow.experiments.deactivation import DeactivationTrial
from saeflow.experiments.deactivation_tables import control_match, paired, remaining, table_1, trials_frame
from saeflow.experiments.groups import Origin
from saeflow.ids import FeatureId, Part, Site

NOWHERE, RES, MLP, BOTH = Origin.NOWHERE, Origin.RES, Origin.MLP, Origin.RES | Origin.MLP


def where(table, **wanted):
    return [row for row in table.dicts() if all(row[key] == value for key, value in wanted.items())]


def one(table, **wanted):
    [row] = where(table, **wanted)
    return row


# deactivation: three targets in two texts


def trial(text, target, strategy, group, removed, z_new, **told):
    """A target of activation 2; `controls` makes a control."""
    controls, r, norm = told.get("controls"), told.get("r", 0.0), told.get("norm", 1.0)
    features = {FeatureId(Site(0, Part.RES), n): 1.0 for n in range(told.get("n", len(removed.parts)))}
    after = z_new, told.get("new", NOWHERE), told.get("old"), told.get("loss")
    place = "a", text, 3, FeatureId(Site(1, Part.RES), target), controls
    return DeactivationTrial(*place, strategy, group, removed, features, norm, r, 2.0, *after)


def rows_of(*texts):
    return [made.to_row(number) for trials in texts for number, made in enumerate(trials)]


DEACTIVATION = rows_of(
    [
        # target 0, RES: top-1 silences it, its control halves it; Pearson names nothing
        trial(0, 0, "top-1", RES, RES, 0.0),
        trial(0, 0, "top-1", RES, RES, 1.0, controls=0, norm=0.8),
        trial(0, 0, "pearson top-1", NOWHERE, NOWHERE, 2.0),
        trial(0, 0, "top-1", RES, RES, 4.0, r=2.0, old=3.0, loss=3.3),
        # target 1, RES & MLP: RES alone halves it and the MLP stays, both silence it
        trial(0, 1, "top-1", BOTH, RES, 1.0, new=MLP),
        trial(0, 1, "top-1", BOTH, MLP, 1.5, new=RES),
        trial(0, 1, "top-1", BOTH, BOTH, 0.0),
        trial(0, 1, "pearson top-1", RES, RES, 0.5),
        *(trial(0, n, "exhaustive", group, RES, z) for n, group, z in ((0, RES, 0.0), (1, BOTH, 1.0))),
        trial(0, 1, "exhaustive", BOTH, MLP, 0.5),
        *(trial(0, n, "greedy", group, RES, 0.0, n=n + 1) for n, group in ((0, RES), (1, BOTH))),
    ],
    [
        # target 2 of another text, MLP: top-1 leaves a quarter, Pearson silences it, only a set would
        trial(1, 2, "top-1", MLP, MLP, 0.5, new=NOWHERE),
        trial(1, 2, "top-1", MLP, MLP, 2.0, controls=0, norm=1.5),
        trial(1, 2, "pearson top-1", MLP, MLP, 0.0),
        trial(1, 2, "exhaustive", MLP, MLP, 0.5),
        trial(1, 2, "exhaustive", MLP, RES, 1.0),
        trial(1, 2, "greedy", MLP, BOTH, 0.0, n=3),
        # target 3, from nowhere
        trial(1, 3, "top-1", NOWHERE, NOWHERE, 2.0),
        trial(1, 3, "pearson top-1", NOWHERE, NOWHERE, 2.0),
        trial(1, 3, "exhaustive", NOWHERE, RES, 0.0),
        trial(1, 3, "greedy", NOWHERE, NOWHERE, 2.0),
    ],
)


@pytest.fixture(scope="module")
def trials():
    return trials_frame(DEACTIVATION)


def test_rates_by_strategy_group_and_what_was_removed(trials) -> None:
    table = deactivation.by_strategy(trials)
    row = one(table, strategy="top-1", group="RES", removed="RES")
    assert (row["deactivated"], row["change"], row["n"]) == (1, 1, 1)
    assert (row["control_deactivated"], row["control_change"], row["control_n"]) == (0, 0.5, 1)
    rows = where(table, strategy="top-1", group="RES & MLP")
    assert [(row["removed"], row["change"]) for row in rows] == [("RES", 0.5), ("MLP", 0.25), ("RES & MLP", 1)]
    assert rows[2]["control_n"] == 0
    assert rows[2]["control_deactivated"] is None
    # only a search has trials from nowhere
    assert {row["strategy"] for row in where(table, group="nowhere")} == {"exhaustive"}


def test_rates_by_layer_take_all_that_is_available(trials) -> None:
    table = deactivation.by_strategy_layer(trials)
    row = one(table, strategy="top-1", layer="all")
    assert (row["deactivated"], row["n"]) == (pytest.approx(2 / 3, abs=1e-5), 3)
    assert row["change"] == pytest.approx((1 + 1 + 0.75) / 3, abs=1e-5)
    assert (row["control_n"], row["control_change"]) == (2, 0.25)
    # exhaustive: the best of all sites, on the targets of top-1
    row = one(table, strategy="exhaustive", layer=1)
    assert (row["deactivated"], row["n"]) == (pytest.approx(1 / 3, abs=1e-5), 3)
    assert row["change"] == pytest.approx((1 + 0.75 + 0.75) / 3, abs=1e-5)
    row = one(table, strategy="greedy", layer=1)
    assert (row["deactivated"], row["n"], row["features"]) == (1, 3, 2)


def test_rescaling_counts_all_available_with_the_relative_loss(trials) -> None:
    table = deactivation.by_rescale(trials)
    row = one(table, r=2.0, group="RES")
    assert (row["change"], row["loss_change"], row["loss_n"]) == (-1, pytest.approx(0.1), 1)
    row = one(table, r=0.0, group="all")
    assert (row["n"], row["deactivated"], row["loss_n"]) == (3, pytest.approx(2 / 3, abs=1e-5), 0)
    assert row["loss_change"] is None


# one target from RES and one from MLP in each of two texts; all activations are 2 before


def swept_text(text, gone, z_control):
    """Target 0 with its control at r = 0, 1 and 2, and target 1, for which no other feature is active."""
    loss = {"old": 4.0}
    return [
        trial(text, 0, "top-1", RES, RES, gone, **loss, loss=5.0),
        trial(text, 0, "top-1", RES, RES, z_control, controls=0, norm=0.5, new=RES, **loss, loss=4.0),
        trial(text, 0, "top-1", RES, RES, 2.0, r=1.0, **loss, loss=4.0),
        trial(text, 0, "top-1", RES, RES, 2.0, r=1.0, controls=2, norm=3.0, **loss, loss=4.0),
        trial(text, 0, "top-1", RES, RES, 4.0, r=2.0, **loss, loss=5.0),
        trial(text, 0, "top-1", RES, RES, 3.0, r=2.0, controls=4, norm=3.0, **loss, loss=4.2),
        trial(text, 1, "top-1", MLP, MLP, 0.0),
        *(trial(text, 1, "top-1", MLP, MLP, 2.0 * r, r=r) for r in (1.0, 2.0)),
        trial(text, 2, "top-1", NOWHERE, NOWHERE, 2.0),
        *(trial(text, n, "exhaustive", group, RES, 0.0) for n, group in enumerate((RES, MLP, NOWHERE))),
        *(trial(text, n, "greedy", group, RES, 0.0) for n, group in enumerate((RES, MLP, NOWHERE))),
    ]


@pytest.fixture(scope="module")
def swept():
    return trials_frame(rows_of(swept_text(0, gone=0.0, z_control=0.0), swept_text(1, gone=1.0, z_control=1.5)))


def test_every_r_of_the_sweep_stands_beside_its_control(swept) -> None:
    table = deactivation.by_rescale(swept)
    row = one(table, r=0.0, group="RES")
    # the targets: silent and halved; the controls: silent and three quarters left
    assert (row["deactivated"], row["change"], row["loss_change"], row["n"]) == (0.5, 0.75, 0.25, 2)
    assert (row["control_deactivated"], row["control_low"], row["control_high"]) == (0.5, 0, 1)
    assert (row["control_change"], row["control_change_high"]) == (0.625, 1)
    assert (row["control_loss_change"], row["control_n"], row["control_loss_n"]) == (0, 2, 2)
    row = one(table, r=2.0, group="RES")
    assert (row["change"], row["control_change"], row["control_deactivated"]) == (-1, -0.5, 0)
    assert row["control_loss_change"] == pytest.approx(0.05)
    assert row["control_loss_high"] is None  # both texts give the same, and a loss has no bounds
    # target 1 has no control: all groups have four trials and two controls
    row = one(table, r=2.0, group="all")
    assert (row["n"], row["control_n"], row["control_change"]) == (4, 2, -0.5)
    row = one(table, r=2.0, group="MLP")
    assert (row["n"], row["control_n"], row["control_change"], row["control_loss_n"]) == (2, 0, None, 0)
    for row in where(table, r=1.0):
        assert row["change"] == row["deactivated"] == 0
        assert row["control_change"] in (0, None)


def test_controls_of_other_r_are_not_counted_as_controls_of_a_removal(swept) -> None:
    assert one(deactivation.by_strategy(swept), strategy="top-1", group="RES")["control_n"] == 2
    assert one(deactivation.by_strategy_layer(swept), strategy="top-1", layer="all")["control_change"] == 0.625
    row = one(control_match(swept), removed="RES")
    assert (row["median"], row["controls"], row["trials"]) == (0.5, 2, 2)


def test_one_predecessor_and_its_control(trials, swept) -> None:
    table = deactivation.one_predecessor(trials)
    assert [(row["group"], row["removed"]) for row in table.dicts()] == [
        ("RES", "RES"),
        ("MLP", "MLP"),
        ("RES & MLP", "RES"),
        ("RES & MLP", "MLP"),
    ]
    row = one(table, group="MLP")
    assert (row["change"], row["control_change"], row["control_n"]) == (0.75, 0, 1)
    row = one(table, group="RES & MLP", removed="RES")
    assert (row["control_n"], row["control_change"], row["control_deactivated"]) == (0, None, None)
    row = one(deactivation.one_predecessor(swept), group="RES")
    assert (row["change"], row["high"], row["n"]) == (0.75, 1, 2)
    assert row["low"] == pytest.approx(0.75 - 12.7062 * 0.25, rel=1e-4)  # the t of two texts
    assert (row["deactivated"], row["deactivated_low"], row["deactivated_high"]) == (0.5, 0, 1)
    assert (row["control_change"], row["control_high"]) == (0.625, 1)
    assert row["control_low"] == pytest.approx(0.625 - 12.7062 * 0.375, rel=1e-4)
    rate = [row[f"control_deactivated{end}"] for end in ("", "_low", "_high")]
    assert (rate, row["control_n"]) == ([0.5, 0, 1], 2)


def test_groups_of_the_targets_under_each_strategy(trials) -> None:
    table = deactivation.groups_by_strategy(trials)
    found = {row["group"]: row["features"] for row in where(table, strategy="pearson top-1") if row["features"]}
    assert found == {"nowhere": 2, "RES": 1, "MLP": 1}
    assert {row["strategy"] for row in table.dicts()} == {"top-1", "pearson top-1"}
    for strategy in ("top-1", "pearson top-1"):
        assert sum(row["share"] for row in where(table, strategy=strategy)) == pytest.approx(1)


def test_the_new_group_is_deactivated_or_what_is_left(trials) -> None:
    table = deactivation.new_group(trials)
    gone = one(table, strategy="top-1", group="RES & MLP", removed="RES & MLP", new_group="deactivated")
    assert gone["probability"] == 1
    assert one(table, strategy="top-1", group="RES & MLP", removed="RES", new_group="MLP")["probability"] == 1
    sums = {}
    for row in table.dicts():
        key = row["strategy"], row["group"], row["removed"]
        sums[key] = sums.get(key, 0) + row["probability"]
    assert set(sums.values()) == {1}


def test_the_new_group_stands_beside_that_of_the_control(swept) -> None:
    table = deactivation.new_group(swept)
    rows = {row["new_group"]: row for row in where(table, group="RES")}
    told = {name: (row["probability"], row["control_probability"]) for name, row in rows.items()}
    # of the controls one is silent, and the other's target keeps its predecessor
    assert told["deactivated"] == (0.5, 0.5)
    assert (told["nowhere"], told["RES"]) == ((0.5, 0), (0, 0.5))
    assert (rows["RES"]["control_low"], rows["RES"]["control_high"], rows["RES"]["control_n"]) == (0, 1, 2)
    assert sum(row["control_probability"] for row in rows.values()) == 1
    assert {row["control_probability"] for row in where(table, group="MLP")} == {None}
    assert {row["control_n"] for row in where(table, group="MLP")} == {0}


def test_counts_of_targets_and_edits(trials) -> None:
    table = deactivation.counts(trials)
    assert table.paper == "fig. 17a"
    told = {row["group"]: (row["features"], row["trials"]) for row in table.dicts() if row["features"]}
    assert told == {"nowhere": (1, 0), "RES": (1, 2), "MLP": (1, 1), "RES & MLP": (1, 3)}


def test_table_1_is_over_targets_that_cosine_or_pearson_puts_into_one_part(trials) -> None:
    table = table_1(trials)
    # targets 0 and 2 by top-1, 1 and 2 by Pearson: three shared; target 0 counts as kept under Pearson
    told = {row["strategy"]: (row["n"], row["deactivated"], row["change"]) for row in table.dicts()}
    third = pytest.approx(1 / 3, abs=1e-5)
    beside = [(row["control_deactivated"], row["control_change"], row["control_n"]) for row in table.dicts()]
    # Pearson and the searches have no controls here; the control has none of its own
    assert beside == [(0, 0.25, 2)] + [(None, None, 0)] * 4
    assert told == {
        "top-1": (3, pytest.approx(2 / 3, abs=1e-5), pytest.approx(2.75 / 3, abs=1e-5)),
        "pearson top-1": (3, third, pytest.approx((0 + 0.75 + 1) / 3, abs=1e-5)),
        "exhaustive": (3, third, pytest.approx(2.5 / 3, abs=1e-5)),
        "greedy": (3, 1, 1),
        "active control": (2, 0, 0.25),
    }


def test_where_a_strategy_names_nothing_its_control_fails_with_it() -> None:
    """Pearson puts target 1 into RES, top-1 nowhere: top-1 and its control both leave it as it was."""
    rows = [
        trial(0, 0, "top-1", RES, RES, 0.0),
        trial(0, 0, "top-1", RES, RES, 0.0, controls=0),
        trial(0, 0, "pearson top-1", RES, RES, 0.5),
        trial(0, 1, "top-1", NOWHERE, NOWHERE, 2.0),
        trial(0, 1, "pearson top-1", RES, RES, 0.0),
        trial(0, 1, "pearson top-1", RES, RES, 1.0, controls=4),
    ]
    table = table_1(trials_frame(rows_of(rows)))
    row = one(table, strategy="top-1")
    assert (row["deactivated"], row["n"]) == (row["control_deactivated"], row["control_n"]) == (0.5, 2)
    row = one(table, strategy="pearson top-1")
    assert (row["deactivated"], row["n"], row["control_change"], row["control_n"]) == (0.5, 2, 0.5, 1)
    assert one(table, strategy="active control")["deactivated"] == 0.5


def test_paired_differences_are_over_the_same_targets(trials) -> None:
    table = paired(trials)
    both = one(table, strategy_a="top-1", strategy_b="pearson top-1", scope="both name")
    assert (both["n"], both["difference"]) == (2, 0)  # target 1: 1 - 0, target 2: 0 - 1
    either = one(table, strategy_a="top-1", strategy_b="pearson top-1", scope="either names")
    assert (either["n"], either["difference"]) == (3, pytest.approx(1 / 3, abs=1e-5))
    control = one(table, strategy_b="active control")
    assert (control["n"], control["difference"]) == (2, 0.5)
    assert one(table, strategy_a="exhaustive", strategy_b="greedy", scope="both name")["difference"] == pytest.approx(
        -2 / 3, abs=1e-5
    )


def test_what_would_have_silenced_a_target(trials) -> None:
    table = remaining(trials)
    shares = {row["outcome"]: row["share"] for row in where(table, group="all")}
    assert list(shares.values()) == pytest.approx([0.5, 0.25, 0.25, 0])
    assert one(table, group="MLP", outcome="by a set of up to five")["share"] == 1
    assert one(table, group="nowhere", outcome="by another single feature")["share"] == 1


def test_what_predecessors_silence_stands_beside_what_their_controls_do(swept) -> None:
    table = remaining(swept)
    first = "deactivated by its predecessors"
    row = one(table, group="RES", outcome=first)
    assert (row["share"], row["control_share"], row["control_n"]) == (0.5, 0.5, 2)
    assert (row["control_low"], row["control_high"]) == (0, 1)
    # target 1 has no control; target 2, from nowhere, is kept by both
    row = one(table, group="all", outcome=first)
    assert (row["share"], row["n"]) == (0.5, 6)
    assert (row["control_share"], row["control_n"]) == (0.25, 4)
    assert one(table, group="MLP", outcome=first)["control_share"] is None
    assert one(table, group="nowhere", outcome=first)["control_n"] == 0
    assert {row["control_share"] for row in table.dicts() if row["outcome"] != first} == {None}


def test_controls_are_compared_in_norm(trials) -> None:
    table = control_match(trials)
    row = one(table, removed="RES")
    assert (row["median"], row["within_2"], row["controls"], row["trials"]) == (0.8, 1, 1, 2)
    assert one(table, removed="MLP")["median"] == 1.5


def test_a_control_belongs_to_a_trial_of_its_own_text(trials) -> None:
    for control in np.flatnonzero(trials["control"]):
        of = trials["controls"][control]
        assert trials["target"][of] == trials["target"][control]
        assert not trials["control"][of]


def test_every_table_with_a_rate_says_what_its_control_does(swept) -> None:
    rates = ("deactivated", "probability", "change")
    for table in (
        deactivation.by_strategy,
        deactivation.by_strategy_layer,
        deactivation.by_rescale,
        deactivation.one_predecessor,
        deactivation.new_group,
        table_1,
    ):
        columns = table(swept).columns
        shown = [name for name in rates if name in columns]
        assert shown
        assert {f"control_{name}" for name in shown} <= set(columns)


def test_notes_name_searches_only_where_there_are_some(trials) -> None:
    searches = {"exhaustive", "greedy"}
    for table in (deactivation.by_strategy(trials), table_1(trials)):
        there = {cell for row in table.rows for cell in row if isinstance(cell, str)}
        assert {name for name in searches if f"`{name}`" in table.note} == searches & there
        assert "Controls remove other active features" in table.note


def test_rows_in_another_order_of_texts_give_the_same_tables() -> None:
    first = [row for row in DEACTIVATION if row["text"] == 0]
    second = [row for row in DEACTIVATION if row["text"] == 1]
    forward, backward = (
        deactivation.by_strategy_layer(trials_frame(rows)) for rows in (first + second, second + first)
    )
    assert sorted(forward.rows, key=str) == sorted(backward.rows, key=str)
