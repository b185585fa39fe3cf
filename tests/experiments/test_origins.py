"""On a model whose causes are known, origins are the planted ones; the tables add up."""

import json

import numpy as np
import pytest

from saeflow.errors import BadFile, InvalidArgument, UnknownSite
from saeflow.experiments.groups import Origin
from saeflow.experiments.methods import random_of_top_k, top_k
from saeflow.experiments.origins import MATCHES, observe_origins, run_origins
from saeflow.experiments.origins_tables import BestMatches, observations, summarize_origins
from saeflow.experiments.results import RunRequest
from saeflow.experiments.sampling import Sample
from saeflow.ids import Part, Site
from saeflow.matching.table import MatchTable

from .planted import LAYER, TARGETS, TEXT, plant, positions
from .planted_tables import cosine

EVERYWHERE = tuple(range(1, len(TEXT.split()) + 1))
SAMPLE = Sample("planted", 0, TEXT, EVERYWHERE)
WORD = {"carried": "carry", "written": "write", "attended": "nothing", "both": "double", "orphan": "orphan"}
RES = Site(LAYER, Part.RES)


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def methods(planted):
    tables = cosine(planted)
    return [top_k("cosine", tables), top_k("cosine top-5", tables, 5)]


@pytest.fixture(scope="module")
def trials(planted, methods):
    return observe_origins(planted.model, planted.dictionaries, methods, SAMPLE, layers=[0, LAYER, 2])


def origin(trials, feature, position, method="cosine"):
    [trial] = [t for t in trials if (t.layer, t.position) == (feature.layer, position)]
    return Origin(int(trial.groups[method][trial.features.index(feature.index)]))


@pytest.mark.parametrize(("name", "word"), WORD.items())
def test_the_group_is_the_planted_one(planted, trials, name, word) -> None:
    for position in positions(word)[-1:]:
        assert origin(trials, planted.feature(RES, name), position) == Origin.of(TARGETS[name])


def test_there_is_a_trial_for_each_token_and_layer_in_order_with_every_active_feature(planted, trials) -> None:
    assert [(t.position, t.layer) for t in trials] == [(p, layer) for p in EVERYWHERE for layer in (0, 1, 2)]
    captured = planted.model.capture(planted.tokens(), [RES])[RES][0]
    acts = planted.dictionaries[RES].encode(captured)
    for trial in trials:
        assert set(map(len, trial.groups.values())) == {len(trial.features)}
        if trial.layer == LAYER:
            active = acts[trial.position].nonzero().flatten().tolist()
            assert list(trial.features) == active
            assert trial.activations == pytest.approx(acts[trial.position, active].tolist(), rel=1e-4)


def test_top_5_is_active_where_any_of_the_five_is(planted, methods, trials) -> None:
    """The oracle: a loop over features, parts and matches in plain Python."""
    sites = sorted(planted.dictionaries)
    captured = planted.model.capture(planted.tokens(), sites)
    on = {site: planted.dictionaries[site].encode(captured[site][0]) > 0 for site in sites}
    tables = cosine(planted)
    seen = 0
    for trial in trials:
        site = Site(trial.layer, Part.RES)
        for place, index in enumerate(trial.features):
            for k, method in ((1, "cosine"), (5, "cosine top-5")):
                parts = {
                    target.part
                    for target in site.predecessors
                    for row, score in zip(
                        tables[site, target].index[index, :k], tables[site, target].score[index, :k], strict=True
                    )
                    if score > 0 and on[target][trial.position, row]
                }
                assert int(trial.groups[method][place]) == Origin.of(parts).value
                seen += 1
    assert seen > 100


def test_layer_0_has_no_residual_predecessor(trials) -> None:
    digits = "".join(trial.groups["cosine"] for trial in trials if trial.layer == 0)
    assert digits
    assert not any(int(digit) & Origin.RES.value for digit in digits)


def table(index, score):
    shape = np.array(index, dtype=np.int32), np.array(score, dtype=np.float32)
    return {(RES, Site(0, Part.RES)): MatchTable(RES, Site(0, Part.RES), "permutation", 9, *shape)}


def test_a_match_that_scores_0_or_less_is_none() -> None:
    named = top_k("permutation", table([[3], [0], [2], [5]], [[0.4], [-np.inf], [np.nan], [-0.1]]))
    found = named.named[RES, Site(0, Part.RES)]
    assert found.index[:, 0].tolist() == [3, -1, -1, -1]
    assert found.score == pytest.approx([0.4, np.nan, np.nan, np.nan], nan_ok=True)
    on = np.ones((1, 9), dtype=bool)
    active = found.active(np.arange(4), np.zeros(4, dtype=np.int64), on)
    assert active.tolist() == [True, False, False, False]


def test_one_of_five_is_drawn_once_a_feature_from_the_seed(planted) -> None:
    tables = cosine(planted)
    drawn = [random_of_top_k("random", tables, 5, seed) for seed in (0, 0, 1)]
    for pair, table in tables.items():
        first, again, other = (one.named[pair].index for one in drawn)
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
        assert all(row in allowed for row, allowed in zip(first[:, 0], table.index, strict=True))
    columns = np.concatenate([(t.index == drawn[0].named[pair].index).argmax(1) for pair, t in tables.items()])
    assert np.bincount(columns, minlength=5).min() > 0.1 * len(columns)
    assert drawn[0].made_by == drawn[1].made_by != drawn[2].made_by


def test_a_draw_of_a_pair_depends_on_nothing_else_and_takes_every_place_alike() -> None:
    at = [Site(0, Part.RES), Site(1, Part.MLP)]
    best = np.random.default_rng(0).permuted(np.arange(40)[None].repeat(1200, 0), axis=1)[:, :5]
    score = np.linspace(0.9, 0.1, 5)[None].repeat(1200, 0)
    tables = {(RES, to): MatchTable(RES, to, "cosine", 40, best.astype("i4"), score.astype("f4")) for to in at}
    drawn = random_of_top_k("random", tables).named
    alone = [random_of_top_k("random", {pair: tables[pair]}).named[pair].index for pair in tables]
    assert all(np.array_equal(one, drawn[pair].index) for one, pair in zip(alone, tables, strict=True))
    assert not np.array_equal(*alone)
    # 1,200 draws of 5: 240 each, standard deviation 14
    for index in alone:
        assert (abs(np.bincount((best == index).argmax(1), minlength=5) - 240) < 5 * 14).all()
    for k in range(1, 6):
        found = top_k("cosine", tables, k).named
        assert all(np.array_equal(named.index, best[:, :k]) for named in found.values())


def test_a_feature_without_a_partner_has_nothing_to_draw() -> None:
    found = random_of_top_k("random", table([[3], [0]], [[0.5], [-np.inf]]), 1).named[RES, Site(0, Part.RES)]
    assert found.index[:, 0].tolist() == [3, -1]


def test_what_cannot_be_asked_is_refused(planted, methods) -> None:
    ask = lambda **told: observe_origins(planted.model, planted.dictionaries, methods, **told)  # noqa: E731
    with pytest.raises(UnknownSite, match=r"9/res.*\[0, 1, 2\]"):
        ask(sample=SAMPLE, layers=[9])
    with pytest.raises(InvalidArgument, match=r"token 11 .*max_length"):
        ask(sample=SAMPLE, layers=[1], max_length=4)
    with pytest.raises(InvalidArgument, match="takes 9 matches"):
        top_k("many", cosine(planted), 9)
    with pytest.raises(UnknownSite, match="no residual site"):
        top_k("none", {})


@pytest.fixture(scope="module")
def results(planted, methods, tmp_path_factory):
    """Two datasets of a few texts; Pearson stands for cosine here, as tables that differ by a name."""
    words = TEXT.split()
    samples = [
        Sample(name, n, " ".join(words[n + shift :] + words[: n + shift]), EVERYWHERE)
        for shift, name in enumerate(("one", "two"))
        for n in range(4)
    ]
    request = RunRequest(
        "origins",
        "planted",
        "planted",
        0,
        ("one", "two"),
        {m.method: m.made_by for m in methods},
        {"layers": [0, LAYER], "max_length": 128, "pearson_datasets": ["one"]},
    )
    found = run_origins(
        planted.model,
        planted.dictionaries,
        methods,
        lambda: samples,
        request=request,
        out=tmp_path_factory.mktemp("origins"),
    )
    summarize_origins(found)
    return found


def rows(results, name, **where):
    found = results.tables()[name].dicts()
    return [row for row in found if all(row[key] == value for key, value in where.items())]


def test_every_table_of_the_contract_is_there_with_rows(results) -> None:
    names = {
        "shares_by_layer",
        "shares_by_dataset",
        "scores",
        "separability",
        "activity_differences",
        "transition",
        "most_probable",
        "most_probable_features",
        "methods",
        "agreement",
    }
    tables = results.tables()
    assert set(tables) == names
    assert all(table.rows for name, table in tables.items() if name != "agreement")  # both name the same best
    assert {path.stem for path in (results.folder / "tables").iterdir()} == names


@pytest.mark.parametrize(
    ("name", "keys", "share"),
    [
        ("shares_by_layer", ("method", "dataset", "layer"), "share"),
        ("shares_by_dataset", ("method", "dataset"), "share"),
        ("methods", ("method", "dataset"), "share"),
        ("transition", ("method", "group_a"), "probability"),
        ("most_probable", ("method", "layer"), "share"),
    ],
)
def test_shares_sum_to_1(results, name, keys, share) -> None:
    sums = {}
    for row in rows(results, name):
        if row[share] is not None:
            key = tuple(row[k] for k in keys)
            sums[key] = sums.get(key, 0) + row[share]
    assert sums
    assert list(sums.values()) == pytest.approx([1] * len(sums), abs=1e-4)


def test_shares_count_what_was_observed_and_datasets_add_up(results) -> None:
    seen = observations(results.rows())
    [carried] = rows(results, "shares_by_layer", method="cosine", dataset="all", layer=LAYER, group="RES")
    here = seen["layer"] == LAYER
    assert carried["n"] == here.sum()
    assert carried["share"] == pytest.approx((seen["cosine"][here] == "RES").mean(), abs=1e-5)
    assert carried["low"] < carried["share"] < carried["high"]
    parts = [rows(results, "shares_by_dataset", method="cosine", dataset=d, group="RES")[0] for d in ("one", "two")]
    [both] = rows(results, "shares_by_dataset", method="cosine", dataset="all", group="RES")
    assert both["n"] == sum(part["n"] for part in parts)
    assert both["share"] * both["n"] == pytest.approx(sum(p["share"] * p["n"] for p in parts), rel=1e-4)


def test_datasets_say_whether_pearson_was_made_on_them(results) -> None:
    told = {row["dataset"]: row["in_distribution"] for row in rows(results, "methods")}
    assert told == {"all": None, "one": True, "two": False}


def test_scores_of_true_predecessors_are_those_of_the_matches(planted, results) -> None:
    """`carried` and `common` alone are From RES, and the planted rows of both are equal: cosine 1."""
    [row] = rows(results, "scores", method="cosine", layer=LAYER, group="RES", score="s(R)")
    assert (row["mean"], row["q05"], row["q95"]) == pytest.approx((1, 1, 1), abs=1e-5)
    histogram = json.loads(row["histogram"])
    assert len(histogram) == 40
    assert histogram[-1] == sum(histogram) == row["n"]
    for row in rows(results, "scores", method="cosine"):
        assert sum(json.loads(row["histogram"])) == row["n"]
        assert row["q05"] <= row["q25"] <= row["median"] <= row["q75"] <= row["q95"]


def test_best_matches_are_kept_beside_the_rows(planted, results) -> None:
    matched, tables = BestMatches.of(results), cosine(planted)
    for part, target in ((Part.RES, Site(0, Part.RES)), (Part.MLP, Site(1, Part.MLP))):
        assert matched.at("cosine", LAYER, part, "index").tolist() == tables[RES, target].index[:, 0].tolist()
        assert matched.at("cosine", LAYER, part, "score") == pytest.approx(tables[RES, target].score[:, 0])
    assert matched.at("cosine", 0, Part.RES, "index") is None
    (results.folder / MATCHES).rename(results.folder / "away")
    with pytest.raises(BadFile, match="matches"):
        BestMatches.of(results)
    (results.folder / "away").rename(results.folder / MATCHES)
