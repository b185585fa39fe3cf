"""Shares of agreement are counts over features, and a comparison covers the whole flow."""

import math

import numpy as np
import pytest

from saeflow.errors import InvalidArgument, UnknownSite, WidthMismatch
from saeflow.ids import Part, Site
from saeflow.matching.agreement import agreement
from saeflow.matching.atlas import flow_pairs
from saeflow.matching.build import build_atlas, compare_methods
from saeflow.matching.methods import METHODS, match_pair
from saeflow.matching.table import MatchTable
from saeflow.sources.architectures import Tap

from .random_dictionaries import Writer, random_dictionary

R2, R3, M3 = (Site.parse(text) for text in ("2/res", "3/res", "3/mlp"))


def table(index, score=None, *, source=R3, target=R2, n_target=9):
    index = np.array(index, dtype=np.int32)
    given = np.ones(index.shape) if score is None else score
    return MatchTable(source, target, "any", n_target, index, np.array(given, dtype=np.float32))


def test_shares_are_counted_over_features():
    a = table([[1, 2], [3, 4], [5, 6], [7, 8]])
    b = table([[1, 0], [4, 3], [5, 7], [0, 1]])
    found = agreement({"a": {(R3, R2): a}, "b": {(R3, R2): b}})
    assert [(r.method_a, r.method_b, r.part, r.layer, r.n) for r in found.rows] == [
        ("a", "b", Part.RES, 3, 4),
        ("b", "a", Part.RES, 3, 4),
    ]
    assert [(r.same, r.in_top_k) for r in found.rows] == [(0.5, 0.75), (0.5, 0.75)]
    deeper = table([[1, 2, 0], [3, 4, 9], [5, 6, 9], [7, 8, 0]], n_target=9)
    ways = agreement({"a": {(R3, R2): deeper}, "b": {(R3, R2): b}}).rows
    assert [(r.same, r.in_top_k) for r in ways] == [(0.5, 0.75), (0.5, 1.0)]


def test_features_without_partner_are_left_out():
    lonely = table([[1], [0], [5]], [[0.5], [-np.inf], [0.5]])
    other = table([[1], [0], [6]])
    for order in (("a", "b"), ("b", "a")):
        row = next(
            r for r in agreement({"a": {(R3, R2): lonely}, "b": {(R3, R2): other}}).rows if r.method_a == order[0]
        )
        assert (row.n, row.same) == (2, 0.5)
    nobody = table([[0], [0], [0]], np.full((3, 1), -np.inf))
    row = agreement({"a": {(R3, R2): nobody}, "b": {(R3, R2): other}}).rows[0]
    assert row.n == 0
    assert math.isnan(row.same)


def test_layers_are_pooled_by_their_features():
    one = {(R3, R2): table([[1], [2]]), (R3, M3): table([[1], [2], [3], [4]], target=M3)}
    two = {(R3, R2): table([[1], [0]]), (R3, M3): table([[1], [2], [3], [0]], target=M3)}
    found = agreement({"a": one, "b": two})
    assert found.methods == ("a", "b")
    assert found.share("a", "b") == (pytest.approx(4 / 6), pytest.approx(4 / 6), 6)
    assert found.share("a", "b", Part.MLP) == (0.75, 0.75, 4)
    with pytest.raises(InvalidArgument, match="not compared at att"):
        found.share("a", "b", Part.ATT)
    with pytest.raises(InvalidArgument, match="'c' were not compared anywhere"):
        found.share("a", "c")


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InvalidArgument, match="no two of the methods given"):
        agreement({"a": {(R3, R2): table([[1]])}, "b": {(R3, M3): table([[1]], target=M3)}})
    with pytest.raises(InvalidArgument, match="none"):
        agreement({})
    with pytest.raises(InvalidArgument, match=r"1 to 9 .* 2 to 9"):
        agreement({"a": {(R3, R2): table([[1]])}, "b": {(R3, R2): table([[1], [2]])}})


def test_the_way_forward_is_no_predecessor():
    with pytest.raises(InvalidArgument, match="no two"):
        agreement({name: {(R2, R3): table([[1]], source=R2, target=R3)} for name in "ab"})


@pytest.fixture
def release():
    sizes = {"0/res": 9, "1/att": 5, "1/mlp": 12, "1/res": 8, "2/mlp": 7, "2/res": 10}
    return {Site.parse(s): random_dictionary(s, n, seed=i) for i, (s, n) in enumerate(sizes.items())}


def test_all_methods_on_all_pairs_of_the_flow(release, tmp_path):
    told = []
    made = compare_methods(release, k=3, progress=lambda *args: told.append(args))
    pairs = flow_pairs(list(release))
    assert list(made) == list(METHODS)
    for method, tables in made.items():
        assert set(tables) == {p for a, b in pairs for p in ((a, b), (b, a))}
        for (source, target), found in tables.items():
            alone = match_pair(release[source], release[target], k=found.k, method=method)[0]
            if METHODS[method].one_to_one:
                paired = found.score > -np.inf
                assert found.score[paired].sum() == pytest.approx(alone.score[alone.score > -np.inf].sum(), rel=1e-5)
            else:
                assert np.array_equal(found.index, alone.index)
    assert told[0][:2] == (0, len(pairs) * len(METHODS))
    assert told[-1] == (len(pairs) * len(METHODS), len(pairs) * len(METHODS), "done")
    found = agreement(made)
    assert found.methods == tuple(METHODS)
    assert len(found.rows) == len(METHODS) * (len(METHODS) - 1) * len(pairs)
    atlas = build_atlas(release, out=tmp_path / "atlas", k=3)
    assert agreement({"atlas": atlas, "cosine": made["cosine"]}).share("atlas", "cosine")[:2] == (1.0, 1.0)


def test_what_a_method_cannot_do_is_refused_before_any_matching(release):
    writer = Writer(12, 8)
    site = Site.parse("2/att")
    release[site] = random_dictionary("2/att", 6, 8, tap=Tap.Z)
    told = []
    with pytest.raises(WidthMismatch, match="2/att reads z"):
        compare_methods(
            release, ["cosine", "permutation-encoder"], projector=writer, progress=lambda *a: told.append(a)
        )
    assert not told
    made = compare_methods(release, ["cosine", "permutation-encoder"], k=2, projector=writer, partial=True)
    left_out = set(made["cosine"]) - set(made["permutation-encoder"])
    assert left_out == {(Site.parse("2/res"), site), (site, Site.parse("2/res"))}
    # as a parent its decoder is what a virtual weight reads
    made = compare_methods(release, ["cosine", "virtual"], k=2, projector=writer)
    assert made["virtual"][Site.parse("2/res"), site].n_target == 6
    with pytest.raises(InvalidArgument, match="'magic'"):
        compare_methods(release, ["magic"])
    with pytest.raises(UnknownSite, match="found \\(2/att\\)"):
        compare_methods({site: release[site]})
