"""Tables from tiny rows, with answers worked out by hand."""

import json

import numpy as np
import pytest
from scipy import stats

from saeflow.errors import InvalidArgument
from saeflow.experiments import deactivation_summary as deactivation
from saeflow.experiments import origins_summary as origins
from saeflow.experiments.comparison import control_match, paired, remaining, table_1
from saeflow.experiments.observations import Matched, Observations
from saeflow.experiments.outcomes import Trials
from saeflow.experiments.results import Results
from saeflow.experiments.summary import Texts, means, summarize
from saeflow.ids import FeatureId, Part, Site
from saeflow.records import DeactivationTrial, Effect, Origin, OriginTrial, Removal, RunRequest

NOWHERE, RES, MLP, BOTH = Origin.NOWHERE, Origin.RES, Origin.MLP, Origin.RES | Origin.MLP


def where(table, **wanted):
    return [row for row in table.dicts() if all(row[key] == value for key, value in wanted.items())]


def one(table, **wanted):
    [row] = where(table, **wanted)
    return row


# origins: feature 0 of 1/res is RES, RES, nowhere; feature 1 MLP; feature 2 RES & MLP twice


def seen_at(dataset, text, features, groups):
    values = (1.0,) * len(features)
    return OriginTrial(dataset, text, 3, 1, features, values, {"cosine": groups}).to_row()


ORIGINS = [
    seen_at("a", 0, (0, 1), "12"),
    seen_at("a", 1, (0, 2), "13"),
    seen_at("b", 0, (0, 2), "03"),
    seen_at("b", 1, (), ""),
]


@pytest.fixture
def seen():
    return Observations.of(ORIGINS)


def test_shares_of_groups_over_active_features(seen) -> None:
    table = origins.shares_by_layer(seen)
    shares = {row["group"]: row["share"] for row in where(table, dataset="all", layer=1)}
    assert shares == pytest.approx(
        {
            "nowhere": 1 / 6, "RES": 2 / 6, "MLP": 1 / 6, "ATT": 0, "RES & MLP": 2 / 6, "RES & ATT": 0, "MLP & ATT": 0,
            "RES & MLP & ATT": 0,
        },
        abs=1e-5,
    )  # fmt: skip
    assert one(table, dataset="a", layer=1, group="RES")["share"] == 0.5
    assert one(table, dataset="b", layer=1, group="RES & MLP")["n"] == 2
    # a has two texts, each half RES, in whatever draw; b has one text with features
    assert one(table, dataset="a", layer=1, group="RES")["low"] == 0.5
    assert one(table, dataset="b", layer=1, group="RES")["low"] is None


def test_a_feature_goes_to_the_groups_of_its_other_observations(seen) -> None:
    table = origins.transition(seen)
    # feature 0: RES RES nowhere. From one RES the other two are RES and nowhere
    assert one(table, group_a="RES", group_b="RES")["probability"] == 0.5
    assert one(table, group_a="RES", group_b="nowhere")["probability"] == 0.5
    assert one(table, group_a="nowhere", group_b="RES")["probability"] == 1
    assert one(table, group_a="RES & MLP", group_b="RES & MLP")["probability"] == 1
    # feature 1 was seen once: no other context
    assert one(table, group_a="MLP", group_b="MLP") == {
        "method": "cosine", "group_a": "MLP", "group_b": "MLP", "probability": None, "n": 0,
    }  # fmt: skip


def test_the_most_probable_group_of_a_feature_seen_three_times(seen) -> None:
    features = origins.most_probable_features(seen)
    assert features.rows == (("cosine", "1/res/0", "RES", pytest.approx(2 / 3, abs=1e-5), 3),)
    row = one(origins.most_probable(features), group="RES")
    assert (row["features"], row["share"], row["certainty"]) == (1, 1, pytest.approx(2 / 3, abs=1e-5))
    assert one(origins.most_probable(features), group="MLP")["certainty"] is None


def test_among_equal_groups_the_one_with_fewer_predecessors_is_named() -> None:
    rows = [seen_at("a", n, (0,), digit) for n, digit in enumerate("3311")]
    assert origins.most_probable_features(Observations.of(rows)).column("group") == ["RES"]


def matched(**arrays):
    found = {}
    for name, values in arrays.items():
        part, what = name.split("_")
        site = {"res": "0/res", "mlp": "1/mlp", "att": "1/att"}[part]
        found[f"cosine 1/res-{site} {what}"] = np.array(values)
    return Matched(found)


def test_scores_count_as_often_as_their_feature_is_active(seen) -> None:
    table = origins.scores(seen, matched(res_score=[0.9, 0.2, 0.5], mlp_score=[0.1, np.nan, 0.32]))
    row = one(table, layer=1, group="RES", score="s(R)")
    assert (row["n"], row["mean"], row["median"]) == (2, pytest.approx(0.9), pytest.approx(0.9))
    counts = json.loads(one(table, layer="all", group="RES & MLP", score="s(M)")["histogram"])
    assert counts[26] == sum(counts) == 2  # the bin from 0.3 on
    assert where(table, group="MLP", score="s(M)") == []  # it has no match there
    assert where(table, score="s(A)") == []


def many(groups, scores):
    """Features of one layer and text, each active once; the groups as digits."""
    rows = [seen_at("a", 0, tuple(range(len(groups))), groups)]
    return Observations.of(rows), matched(res_score=scores)


def test_a_test_is_made_only_where_both_groups_have_eight_rows() -> None:
    low, high = np.linspace(0.1, 0.3, 20), np.linspace(0.7, 0.9, 20)
    seen, scores = many("1" * 20 + "2" * 20 + "0" * 7, [*high, *low, *low[:7]])
    tests = list(origins._tests(seen, scores))
    table = origins.separability(tests)
    row = one(table, group_a="RES", group_b="MLP", score="s(R)")
    assert (row["tests"], row["passed"], row["share"], row["skipped"]) == (1, 1, 1.0, 0)
    assert stats.mannwhitneyu(high, low).pvalue < origins.ALPHA
    row = one(table, group_a="nowhere", group_b="RES", score="s(R)")
    assert (row["tests"], row["share"], row["skipped"]) == (0, None, 1)
    assert one(table, group_a="RES", group_b="MLP", score="s(A)")["tests"] == 0
    pooled = origins.activity_differences(tests)
    # RES is active in one of (RES, MLP); MLP in one too; ATT in neither
    for module, kind in (("RES", "AO"), ("MLP", "AO"), ("ATT", "IB")):
        assert one(pooled, module=module, score="s(R)", kind=kind)["passed"] == 1
        assert one(pooled, module=module, score="s(R)", kind="AB")["tests"] == 0
    assert sum(row["tests"] + row["skipped"] for row in where(pooled, module="RES", score="s(R)")) == 28


def test_agreement_is_over_active_features_that_both_match() -> None:
    rows = [
        OriginTrial("a", 0, 1, 1, (0, 1, 2), (1.0,) * 3, {"cosine": "111", "pearson": "111"}).to_row(),
        OriginTrial("a", 1, 1, 1, (0,), (1.0,), {"cosine": "1", "pearson": "1"}).to_row(),
    ]
    arrays = {
        "cosine 1/res-0/res index": np.array([4, 5, 6]),
        "pearson 1/res-0/res index": np.array([4, 7, -1]),
    }
    row = one(origins.agreement(Observations.of(rows), Matched(arrays)), layer="all")
    assert (row["part"], row["share"], row["n"]) == ("RES", pytest.approx(2 / 3, abs=1e-5), 3)


# deactivation: three targets in two texts


def trial(text, target, strategy, group, removed, z_new, **told):
    """A target of activation 2; `controls` makes a control."""
    controls, r, norm = told.get("controls"), told.get("r", 0.0), told.get("norm", 1.0)
    features = {FeatureId(Site(0, Part.RES), n): 1.0 for n in range(told.get("n", len(removed.parts)))}
    removal = Removal(strategy, controls is not None, group, removed, features, norm, r)
    effect = Effect(2.0, z_new, told.get("new", NOWHERE), told.get("old"), told.get("loss"))
    return DeactivationTrial("a", text, 3, FeatureId(Site(1, Part.RES), target), removal, effect, controls)


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
    return Trials.of(DEACTIVATION)


def test_rates_by_strategy_group_and_what_was_removed(trials) -> None:
    table = deactivation.by_strategy(trials)
    row = one(table, strategy="top-1", group="RES", removed="RES")
    assert (row["deactivated"], row["change"], row["n"]) == (1, 1, 1)
    assert (row["control_deactivated"], row["control_change"], row["control_n"]) == (0, 0.5, 1)
    rows = where(table, strategy="top-1", group="RES & MLP")
    assert [(row["removed"], row["change"]) for row in rows] == [
        ("RES", 0.5),
        ("MLP", 0.25),
        ("RES & MLP", 1),
    ]
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


def test_one_predecessor_and_its_control(trials) -> None:
    table = deactivation.one_predecessor(trials)
    assert [(row["group"], row["removed"]) for row in table.dicts()] == [
        ("RES", "RES"), ("MLP", "MLP"), ("RES & MLP", "RES"), ("RES & MLP", "MLP"),
    ]  # fmt: skip
    row = one(table, group="MLP")
    assert (row["change"], row["control_change"], row["control_n"]) == (0.75, 0, 1)


def test_groups_of_the_targets_under_each_strategy(trials) -> None:
    table = deactivation.groups_by_strategy(trials)
    found = {
        row["group"]: row["features"] for row in where(table, strategy="pearson top-1") if row["features"]
    }
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


def test_counts_of_targets_and_edits(trials) -> None:
    table = deactivation.counts(trials)
    told = {row["group"]: (row["features"], row["trials"]) for row in table.dicts() if row["features"]}
    assert told == {"nowhere": (1, 0), "RES": (1, 2), "MLP": (1, 1), "RES & MLP": (1, 3)}


def test_table_1_is_over_targets_that_cosine_or_pearson_puts_into_one_part(trials) -> None:
    table = table_1(trials)
    # targets 0 and 2 by top-1, 1 and 2 by Pearson: three shared; target 0 counts as kept under Pearson
    told = {row["strategy"]: (row["n"], row["deactivated"], row["change"]) for row in table.dicts()}
    third = pytest.approx(1 / 3, abs=1e-5)
    assert told == {
        "top-1": (3, pytest.approx(2 / 3, abs=1e-5), pytest.approx(2.75 / 3, abs=1e-5)),
        "pearson top-1": (3, third, pytest.approx((0 + 0.75 + 1) / 3, abs=1e-5)),
        "exhaustive": (3, third, pytest.approx(2.5 / 3, abs=1e-5)),
        "greedy": (3, 1, 1),
        "active control": (2, 0, 0.25),
    }


def test_paired_differences_are_over_the_same_targets(trials) -> None:
    table = paired(trials)
    both = one(table, strategy_a="top-1", strategy_b="pearson top-1", scope="both name")
    assert (both["n"], both["difference"]) == (2, 0)  # target 1: 1 - 0, target 2: 0 - 1
    either = one(table, strategy_a="top-1", strategy_b="pearson top-1", scope="either names")
    assert (either["n"], either["difference"]) == (3, pytest.approx(1 / 3, abs=1e-5))
    control = one(table, strategy_b="active control")
    assert (control["n"], control["difference"]) == (2, 0.5)
    assert one(table, strategy_a="exhaustive", strategy_b="greedy", scope="both name")[
        "difference"
    ] == pytest.approx(-2 / 3, abs=1e-5)


def test_what_would_have_silenced_a_target(trials) -> None:
    table = remaining(trials)
    shares = {row["outcome"]: row["share"] for row in where(table, group="all")}
    assert list(shares.values()) == pytest.approx([0.5, 0.25, 0.25, 0])
    assert one(table, group="MLP", outcome="by a set of up to five")["share"] == 1
    assert one(table, group="nowhere", outcome="by another single feature")["share"] == 1


def test_controls_are_compared_in_norm(trials) -> None:
    table = control_match(trials)
    row = one(table, removed="RES")
    assert (row["median"], row["within_2"], row["controls"], row["trials"]) == (0.8, 1, 1, 2)
    assert one(table, removed="MLP")["median"] == 1.5


def test_a_control_belongs_to_a_trial_of_its_own_text(trials) -> None:
    for control in np.flatnonzero(trials.controlling):
        of = trials.controls[control]
        assert trials.target[of] == trials.target[control]
        assert not trials.controlling[of]


def test_means_are_those_of_a_loop_and_leave_nan_out() -> None:
    rng = np.random.default_rng(0)
    texts = Texts.of(["a"] * 60, rng.integers(0, 9, 60).tolist())
    clusters = rng.integers(0, len(texts.number), 60)
    keys, values = rng.integers(0, 3, 60).tolist(), rng.normal(size=60)
    values[::7] = np.nan
    kept = np.arange(60) < 50
    found = dict(iter(means([keys], {"v": values}, clusters, texts.resampling, kept)))
    for key in set(keys):
        mine = [
            v for v, k, keep in zip(values, keys, kept, strict=True) if k == key and keep and np.isfinite(v)
        ]
        assert found[(key,)]["v"].value == pytest.approx(np.mean(mine))
        assert found[(key,)]["v"].n == len(mine)


def test_rows_in_another_order_of_texts_give_the_same_tables() -> None:
    first = [row for row in DEACTIVATION if row["text"] == 0]
    second = [row for row in DEACTIVATION if row["text"] == 1]
    forward, backward = (
        deactivation.by_strategy_layer(Trials.of(rows)) for rows in (first + second, second + first)
    )
    assert sorted(forward.rows, key=str) == sorted(backward.rows, key=str)


def test_runs_without_rows_or_summary_are_refused(tmp_path) -> None:
    with pytest.raises(InvalidArgument, match="no trial"):
        Trials.of([])
    with pytest.raises(InvalidArgument, match="no active feature"):
        Observations.of([seen_at("a", 0, (), "")])
    request = RunRequest("steering", "demo", "demo", 0, ("a",), {}, {})
    results = Results.start(tmp_path, request, lambda: [{"dataset": "a", "text": 0}], {})
    with pytest.raises(InvalidArgument, match="no summary of 'steering'"):
        summarize(results)
