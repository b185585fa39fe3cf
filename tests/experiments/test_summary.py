"""Tables from tiny rows, with answers worked out by hand."""

import json

import numpy as np
import pytest
from scipy import stats

from saeflow.errors import InvalidArgument
from saeflow.experiments import origins_summary as origins
from saeflow.experiments.observations import Matched, Observations
from saeflow.experiments.outcomes import Trials
from saeflow.experiments.records import Origin, OriginTrial, RunRequest
from saeflow.experiments.results import Results
from saeflow.experiments.summary import Texts, means, summarize

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


def test_means_are_those_of_a_loop_and_leave_nan_out() -> None:
    rng = np.random.default_rng(0)
    texts = Texts.of(["a"] * 60, rng.integers(0, 9, 60).tolist())
    clusters = rng.integers(0, len(texts.number), 60)
    keys, values = rng.integers(0, 3, 60).tolist(), rng.normal(size=60)
    values[::7] = np.nan
    kept = np.arange(60) < 50
    found = dict(iter(means([keys], {"v": values}, clusters, texts, kept, {"v": None})))
    for key in set(keys):
        mine = [
            v for v, k, keep in zip(values, keys, kept, strict=True) if k == key and keep and np.isfinite(v)
        ]
        assert found[(key,)]["v"].value == pytest.approx(np.mean(mine))
        assert found[(key,)]["v"].n == len(mine)


def test_runs_without_rows_or_summary_are_refused(tmp_path) -> None:
    with pytest.raises(InvalidArgument, match="no trial"):
        Trials.of([])
    with pytest.raises(InvalidArgument, match="no active feature"):
        Observations.of([seen_at("a", 0, (), "")])
    request = RunRequest("steering", "demo", "demo", 0, ("a",), {}, {})
    results = Results.start(tmp_path, request, lambda: [{"dataset": "a", "text": 0}], {})
    with pytest.raises(InvalidArgument, match="no summary of 'steering'"):
        summarize(results)
