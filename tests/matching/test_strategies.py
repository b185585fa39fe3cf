"""Strategies pick what the paper says, and mutual matches are those both sides name."""

import subprocess
import sys

import numpy as np
import pytest

from saeflow.errors import InvalidArgument, UnknownFeature
from saeflow.ids import FeatureId, Site
from saeflow.matching.atlas import open_atlas
from saeflow.matching.strategies import Kept, RandomOfTop, Strategy, Top, mutual, ranks_back
from saeflow.matching.table import MatchTable

HERE, THERE = Site.parse("3/res"), Site.parse("2/res")


def table(index, score=None, *, n_target=9, source=HERE, target=THERE, method="cosine"):
    index = np.array(index, dtype=np.int32)
    falling = np.linspace(0.9, 0.1, index.shape[1])[None].repeat(len(index), 0) if score is None else score
    return MatchTable(source, target, method, n_target, index, np.array(falling, dtype=np.float32))


@pytest.fixture
def five():
    generator = np.random.default_rng(0)
    return table([generator.permutation(40)[:5] for _ in range(300)], n_target=40)


def test_top_k_are_the_best_k(five):
    feature = FeatureId(HERE, 7)
    assert Top(1).choose(five, feature, THERE) == five.best(feature, THERE, 1)
    assert Top(5).choose(five, feature, THERE) == five.best(feature, THERE)
    assert [len(Top(k).choose(five, feature, THERE)) for k in range(1, 6)] == [1, 2, 3, 4, 5]


def test_the_names_are_those_of_the_paper():
    assert [s.name for s in (Top(), Top(5), RandomOfTop())] == ["top-1", "top-5", "random of top-5"]
    assert all(isinstance(s, Strategy) for s in (Top(), RandomOfTop()))


def test_a_random_choice_depends_on_seed_and_feature_and_not_on_the_order_of_calls(five):
    features = [FeatureId(HERE, n) for n in range(300)]

    def chosen(order, seed):
        picked = {f: RandomOfTop(5, seed).choose(five, f, THERE) for f in order}
        return [picked[f] for f in features]

    first = chosen(features, 1)
    assert first == chosen(features[::-1], 1)
    assert first != chosen(features, 2)
    assert all(len(one) == 1 and one[0] in five.best(f) for f, one in zip(features, first, strict=True))


def test_a_random_choice_takes_every_place_alike(five):
    places = [
        five.best(FeatureId(HERE, n)).index(RandomOfTop(5, seed).choose(five, FeatureId(HERE, n), THERE)[0])
        for n in range(300)
        for seed in range(4)
    ]
    counts = np.bincount(places, minlength=5)
    # 1,200 draws of 5: 240 each, standard deviation 14
    assert (abs(counts - 240) < 5 * 14).all()


def test_the_same_row_of_other_sites_is_drawn_anew():
    strategy, target = RandomOfTop(5), Site.parse("3/mlp")
    draws = {
        (site, to): tuple(strategy.generator(FeatureId(Site.parse(site), 4), to).integers(0, 1000, 4))
        for site in ("3/res", "4/res", "3/mlp")
        for to in (THERE, target)
    }
    assert len(set(draws.values())) == len(draws)


def test_an_atlas_is_asked_as_a_table_is():
    atlas = open_atlas("demo")
    feature = FeatureId.parse("4/res/12")
    assert isinstance(atlas, Kept)
    assert Top(3).choose(atlas, feature, Site.parse("3/res")) == atlas.best(feature, Site.parse("3/res"), 3)


def test_more_than_is_kept_is_refused(five):
    for strategy in (Top(6), RandomOfTop(6)):
        with pytest.raises(InvalidArgument, match="keep 5"):
            strategy.choose(five, FeatureId(HERE, 0), THERE)
    with pytest.raises(UnknownFeature):
        Top(1).choose(five, FeatureId(HERE, 300), THERE)
    for make in (lambda: Top(0), lambda: RandomOfTop(0), lambda: RandomOfTop(5, -1)):
        with pytest.raises(InvalidArgument):
            make()


def test_a_feature_without_partner_has_nothing_to_choose():
    lonely = table([[3], [0]], [[0.5], [-np.inf]], method="permutation")
    for strategy in (Top(1), RandomOfTop(1)):
        assert strategy.choose(lonely, FeatureId(HERE, 1), THERE) == ()
        assert strategy.choose(lonely, FeatureId(HERE, 0), THERE)[0].feature.index == 3


def both(index, back):
    forward = table(index, n_target=len(back))
    return forward, table(back, n_target=len(index), source=THERE, target=HERE)


def test_mutual_matches_are_those_that_name_each_other():
    forward, back = both([[0, 2], [0, 1], [2, 1]], [[0, 1], [2, 1], [1, 0]])
    assert ranks_back(forward, back).tolist() == [[0, 1], [1, 1], [-1, 0]]
    assert mutual(forward, back).tolist() == [[True], [False], [False]]
    assert mutual(forward, back, 2).tolist() == [[True, True], [True, True], [False, True]]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_mutual_is_the_definition_on_random_tables(k):
    generator = np.random.default_rng(k)
    forward, back = both(
        [generator.permutation(15)[:4] for _ in range(20)], [generator.permutation(20)[:4] for _ in range(15)]
    )
    found = mutual(forward, back, k)
    expected = [[i in back.index[j, :k] for j in forward.index[i, :k]] for i in range(20)]
    assert found.tolist() == expected
    assert found.shape == (20, k)


def test_partners_of_a_permutation_are_mutual_and_the_rest_is_not():
    forward = table([[1], [0], [0]], [[0.5], [-np.inf], [0.4]], n_target=2)
    back = table([[2], [0]], [[0.4], [0.5]], n_target=3, source=THERE, target=HERE)
    assert mutual(forward, back)[:, 0].tolist() == [True, False, True]
    assert mutual(back, forward)[:, 0].tolist() == [True, True]


def test_one_without_partner_does_not_name_row_0():
    forward = table([[1], [0]], n_target=2)
    back = table([[1], [0]], [[0.5], [-np.inf]], n_target=2, source=THERE, target=HERE)
    assert mutual(forward, back)[:, 0].tolist() == [False, True]


def test_tables_that_do_not_lead_back_are_refused():
    forward, back = both([[0], [1]], [[0], [1], [1]])
    with pytest.raises(InvalidArgument, match="does not lead back"):
        mutual(forward, forward)
    with pytest.raises(InvalidArgument, match="does not lead back"):
        mutual(forward, table([[0], [1]], n_target=2, source=THERE, target=HERE))
    with pytest.raises(InvalidArgument, match="mutual top-2"):
        mutual(forward, back, 2)


def test_choosing_and_comparing_load_no_torch():
    code = "import sys, saeflow.matching.strategies, saeflow.matching.agreement; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
