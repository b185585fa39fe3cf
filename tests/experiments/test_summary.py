"""Tables from tiny rows, with answers worked out by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import saeflow as sf
from saeflow.errors import InvalidArgument
from saeflow.experiments import origins_tables as origins
from saeflow.experiments.deactivation_tables import trials_frame
from saeflow.experiments.groups import Origin
from saeflow.experiments.origins import OriginTrial
from saeflow.experiments.origins_tables import BestMatches, observations
from saeflow.experiments.results import Results, RunRequest, SummaryTable
from saeflow.experiments.statistics import GAP, RATE, mean_difference, mean_estimates, means, means_and_controls, shares

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
    return observations(ORIGINS)


def test_shares_of_groups_over_active_features(seen) -> None:
    table = origins.shares_by_layer(seen)
    shares = {row["group"]: row["share"] for row in where(table, dataset="all", layer=1)}
    assert shares == pytest.approx(
        {
            "nowhere": 1 / 6,
            "RES": 2 / 6,
            "MLP": 1 / 6,
            "ATT": 0,
            "RES & MLP": 2 / 6,
            "RES & ATT": 0,
            "MLP & ATT": 0,
            "RES & MLP & ATT": 0,
        },
        abs=1e-5,
    )
    assert one(table, dataset="a", layer=1, group="RES")["share"] == 0.5
    assert one(table, dataset="b", layer=1, group="RES & MLP")["n"] == 2
    # a has two texts, each half RES: of a third kind there may still be 1 - 0.025^(1/2); b has one text with features
    assert one(table, dataset="a", layer=1, group="RES")["low"] == pytest.approx(0.5 * 0.025**0.5, abs=1e-5)
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
        "method": "cosine",
        "group_a": "MLP",
        "group_b": "MLP",
        "probability": None,
        "n": 0,
    }


def test_the_most_probable_group_of_a_feature_seen_three_times(seen) -> None:
    features = origins.most_probable_features(seen)
    assert features.rows == (("cosine", "1/res/0", "RES", pytest.approx(2 / 3, abs=1e-5), 3),)
    row = one(origins.most_probable(features), group="RES")
    assert (row["features"], row["share"], row["certainty"]) == (1, 1, pytest.approx(2 / 3, abs=1e-5))
    assert one(origins.most_probable(features), group="MLP")["certainty"] is None


def test_among_equal_groups_the_one_with_fewer_predecessors_is_named() -> None:
    rows = [seen_at("a", n, (0,), digit) for n, digit in enumerate("3311")]
    assert origins.most_probable_features(observations(rows)).frame()["group"].tolist() == ["RES"]


def matched(**arrays):
    found = {}
    for name, values in arrays.items():
        part, what = name.split("_")
        site = {"res": "0/res", "mlp": "1/mlp", "att": "1/att"}[part]
        found[f"cosine 1/res-{site} {what}"] = np.array(values)
    return BestMatches(found)


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
    return observations(rows), matched(res_score=scores)


def test_a_test_is_made_only_where_both_groups_have_eight_rows() -> None:
    low, high = np.linspace(0.1, 0.3, 20), np.linspace(0.7, 0.9, 20)
    seen, scores = many("1" * 20 + "2" * 20 + "0" * 7, [*high, *low, *low[:7]])
    tests = origins.score_tests(seen, scores)
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
    arrays = {"cosine 1/res-0/res index": np.array([4, 5, 6]), "pearson 1/res-0/res index": np.array([4, 7, -1])}
    row = one(origins.agreement(observations(rows), BestMatches(arrays)), layer="all")
    assert (row["part"], row["share"], row["n"]) == ("RES", pytest.approx(2 / 3, abs=1e-5), 3)


def test_means_are_those_of_a_loop_and_leave_nan_out() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"dataset": "a", "text": rng.integers(0, 9, 60), "key": rng.integers(0, 3, 60)})
    frame["v"] = np.where(np.arange(60) % 7, rng.normal(size=60), np.nan)
    found = means(frame[:50], ["key"], {"v": None})
    assert list(found.columns) == ["v", "v_low", "v_high", "v_n"]
    for key, one in found.iterrows():
        mine = [v for v, k in zip(frame["v"][:50], frame["key"][:50], strict=True) if k == key and np.isfinite(v)]
        assert one["v"] == pytest.approx(np.mean(mine))
        assert one["v_n"] == len(mine)
        assert one["v_low"] < one["v"] < one["v_high"]


def test_means_of_a_group_have_the_interval_of_their_texts() -> None:
    """The same as the sums of each text put together by hand; a value that is not known leaves its row out."""
    frame = pd.DataFrame(
        {"dataset": ["a", "a", "a", "b", "b"], "text": [0, 0, 1, 0, 1], "key": ["x"] * 5, "v": [1, 0, 1, 1, np.nan]}
    )
    [one] = means(frame, ["key"], {"v": RATE}).itertuples(index=False)
    sums, counts = np.array([[1.0], [1.0], [1.0], [0.0]]), np.array([[2.0], [1.0], [1.0], [0.0]])
    [wanted] = mean_estimates(sums, counts, [0, 0, 1, 1], span=RATE)
    assert tuple(one) == (*wanted.interval, wanted.n)


def test_shares_of_a_group_have_the_interval_of_their_texts() -> None:
    frame = pd.DataFrame({"dataset": list("aaabb"), "text": [0, 0, 1, 0, 1], "key": list("xxxyx"), "v": list("pqppp")})
    frame["v"] = pd.Categorical(frame["v"], ["q", "p", "r"])
    found = shares(frame, ["key"], "v")
    assert found[["key", "v"]].to_numpy().tolist() == [[key, v] for key in "xy" for v in "qpr"]
    assert found["n"].tolist() == [4] * 3 + [1] * 3
    counts, totals = np.array([[1.0], [1], [0], [1]]), np.array([[2.0], [1], [0], [1]])
    [wanted] = mean_estimates(counts, totals, [0, 0, 1, 1], span=RATE)
    assert tuple(found.loc[1, ["share", "low", "high", "n"]]) == (*wanted.interval, wanted.n)
    assert shares(frame, [], "v")["share"].tolist() == [0.2, 0.8, 0]


def test_a_difference_is_over_the_rows_that_know_both() -> None:
    frame = pd.DataFrame({"dataset": "a", "text": [0, 0, 1, 2], "a": [1, 1, 0, 1], "b": [0.0, 1, 0, np.nan]})
    difference, p = mean_difference(frame, "a", "b", GAP)
    assert (difference.value, difference.n, difference.texts) == (pytest.approx(1 / 3), 3, 2)
    assert p is not None
    assert mean_difference(frame, "a", "a", GAP)[1] == 1


def test_means_beside_those_of_controls_have_a_line_where_there_is_no_control() -> None:
    frame = pd.DataFrame({"dataset": "a", "text": range(4), "key": list("xxyy"), "v": [1.0, 0, 1, 1]})
    frame["control"] = [False, True, False, False]
    found = means_and_controls(frame, ["key"], {"v": RATE})
    assert found["control_v_n"].tolist() == [1, 0]
    assert found.loc["x", "control_v"] == 0
    assert pd.isna(found.loc["y", "control_v"])


def test_a_table_and_the_rows_of_a_folder_are_data_frames(tmp_path) -> None:
    request = RunRequest("origins", "demo", "demo", 0, ("a",), {}, {})
    results = Results.start(tmp_path, request, lambda: [{"dataset": "a", "text": 0}], {})
    results.run(lambda unit: [{**unit, "layer": layer, "features": [1, 2]} for layer in (3, 4)])
    assert results.frame()["layer"].tolist() == [3, 4]
    assert results.frame()["features"].tolist() == [[1, 2], [1, 2]]
    results.write_tables([SummaryTable.of("t", "Title", "fig. 1", "Note.", "a, b", [("x", 0.5), ("y", None)])])
    table = sf.open_results(tmp_path).table("t")
    assert list(table.columns) == ["a", "b"]
    assert table.set_index("a")["b"]["x"] == 0.5
    assert table["b"].isna().tolist() == [False, True]
    assert table.attrs == {"title": "Title", "paper": "fig. 1", "note": "Note."}
    with pytest.raises(InvalidArgument, match="has no table 'u'"):
        results.table("u")


def test_runs_without_rows_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="no trial"):
        trials_frame([])
    with pytest.raises(InvalidArgument, match="no active feature"):
        observations([seen_at("a", 0, (), "")])
