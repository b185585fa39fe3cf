"""What two dictionaries share is what was planted, and what numpy and scipy say in twenty lines."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from saeflow.comparison.pairs import ComparedDictionary, duplicates, match_dictionaries, splits
from saeflow.comparison.run import compare
from saeflow.comparison.settings import ComparisonSettings
from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.ids import Site
from saeflow.labels.words import FeatureWords

from ..matching.planted import dictionary
from .planted import SITE, Known, noisy, plant, unit

FEW = ComparisonSettings(rows=512, rotations=2, whole_rotations=2)


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def pair(planted):
    return match_dictionaries(ComparedDictionary("A", planted.a), ComparedDictionary("B", planted.b), FEW)


def independent(a, b):
    """PW-MCC by sizes and signed, and mean max cosines both ways, from the definitions."""
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    cosine = a @ b.T
    by_size = linear_sum_assignment(-np.abs(cosine))
    signed = linear_sum_assignment(-cosine)
    return {
        "pw_mcc": np.abs(cosine)[by_size].mean(),
        "signed": cosine[signed].mean(),
        "a in b": cosine.max(axis=1).mean(),
        "b in a": cosine.max(axis=0).mean(),
        "|a| in b": np.abs(cosine).max(axis=1).mean(),
        "|b| in a": np.abs(cosine).max(axis=0).mean(),
    }


@pytest.mark.parametrize("sizes", [(60, 60), (50, 85), (85, 50)])
def test_the_numbers_are_those_of_numpy_and_scipy(sizes):
    a, b = (dictionary(SITE, 3 * unit(n, 10 + n, d=24)) for n in sizes)
    b = dictionary(SITE, torch.cat([noisy(a.W_dec[:30], 0.5, 1), -b.W_dec[30:]]))
    expected = independent(a.W_dec.double().numpy(), b.W_dec.double().numpy())
    found = compare(a, b, settings=FEW)
    row = found.to_pandas().iloc[0]
    scores = found.table("compare_scores").set_index(["measure", "sign"])["mean"]
    told = {name: row[name] for name in ("pw_mcc", "signed", "a in b", "b in a")}
    told |= {"|a| in b": scores["A in B", "absolute"], "|b| in a": scores["B in A", "absolute"]}
    assert told == pytest.approx(expected, abs=1e-5)
    assert row["gap"] == 0


def test_shared_features_find_their_partners_and_opposite_ones_by_size_alone(planted, pair):
    for feature, partner in planted.partner.items():
        assert pair.absolute.index[feature] == partner
        if feature in planted.flipped:
            assert pair.signed.score[feature] < 0.7
        else:
            assert pair.signed.index[feature] == partner
            assert pair.signed.score[feature] > 0.9


def test_what_is_in_one_alone_is_what_was_planted_there(planted):
    found = compare(planted.a, planted.b, settings=FEW, names=("one", "two"))
    features = found.table("features")
    for name, own in (("one", planted.own_a), ("two", planted.own_b)):
        rows = features[features["of"].str.startswith(name)]
        kinds = dict(zip(rows["feature"], rows["kind"], strict=True))
        assert {kinds[f"1/res/{row}"] for row in own} == {"only"}
    shared = [f"1/res/{row}" for row in planted.partner if row not in planted.flipped]
    kinds = features[features["of"] == "one 1/res"].set_index("feature")["kind"]
    assert set(kinds[shared]) == {"shared"}
    assert set(found.table("only")["feature"]) >= {f"1/res/{row}" for row in planted.own_b}


def test_a_split_is_found_with_its_parts_and_its_span(planted, pair):
    found = {split.feature: split for split in splits(pair)}
    assert set(found) == set(planted.split)
    for feature, parts in planted.split.items():
        assert set(found[feature].parts) == set(parts)
        assert found[feature].span == pytest.approx(1, abs=1e-5)
        assert found[feature].best < 0.75
        assert found[feature].chance < 0.05
    # the span is that of least squares
    one = found[41]
    c = torch.nn.functional.normalize(planted.b.W_dec[list(one.parts)], dim=1).double().numpy()
    a = torch.nn.functional.normalize(planted.a.W_dec[41], dim=0).double().numpy()
    rest = a - c.T @ np.linalg.lstsq(c.T, a)[0]
    assert one.span == pytest.approx(1 - rest @ rest, abs=1e-6)


def test_from_the_other_side_a_split_is_a_merge(planted, pair):
    back = match_dictionaries(ComparedDictionary("B", planted.b), ComparedDictionary("A", planted.a), FEW)
    assert [split.parts for split in splits(back.swapped())] == [split.parts for split in splits(pair)]
    assert splits(back) == []


def test_two_unrelated_dictionaries_are_no_better_than_their_rotations():
    found = compare(dictionary(SITE, unit(80, 1)), dictionary(SITE, unit(80, 2)), settings=FEW)
    row = found.to_pandas().iloc[0]
    assert row["pw_mcc"] == pytest.approx(row["rotated"], abs=0.02)
    assert set(found.table("compare_kinds")["shared"]) == {0.0}
    assert max(found.table("nulls")["significant"]) < 0.05


def test_a_dictionary_and_itself_rotated_in_place_share_everything():
    a = dictionary(SITE, unit(50, 1))
    row = compare(a, a, settings=FEW).to_pandas().iloc[0]
    assert row["pw_mcc"] == pytest.approx(1, abs=1e-6)
    assert (row["mutual"], row["shared"]) == (50, 50)
    assert row["p"] == pytest.approx(1 / 3)


def test_features_without_a_direction_count_nowhere():
    rows = unit(30, 1)
    whole, holes = dictionary(SITE, rows), dictionary(SITE, torch.cat([rows, torch.zeros(5, rows.shape[1])]))
    found = compare(holes, whole, settings=FEW)
    assert found.to_pandas().iloc[0]["pw_mcc"] == pytest.approx(1, abs=1e-6)
    kinds = found.table("compare_kinds")
    assert kinds["n"].tolist() == [30, 30]
    assert kinds["no direction"].tolist() == [5, 0]
    features = found.table("features")
    dead = features[features["kind"] == "no direction"]
    assert dead["best"].isna().all()
    assert dead["cosine"].isna().all()


def test_a_side_without_any_direction_shares_nothing():
    found = compare(dictionary(SITE, unit(9, 1)), dictionary(SITE, torch.zeros(4, 96)), settings=FEW)
    row = found.to_pandas().iloc[0]
    assert row["pw_mcc"] is None
    assert (row["mutual"], row["shared"]) == (0, 0)


def test_duplicates_are_pairs_within_one_dictionary():
    rows = unit(40, 1)
    rows[7], rows[30] = noisy(rows[3:4], 0.1, 2)[0], rows[12]
    found = duplicates(ComparedDictionary("A", dictionary(SITE, rows)), FEW)
    assert {(feature, other) for feature, other, _ in found} == {(3, 7), (7, 3), (12, 30), (30, 12)}


def test_density_weights_and_words_are_those_of_the_words(planted):
    n, m = planted.a.n_features, planted.b.n_features

    def words(tokens, frequency):
        return FeatureWords(tokens[0], tokens, frequency=frequency)

    one = [words((f"t{row}", "x"), 0.5 if row == 0 else 0.001) for row in range(n)]
    other = [words((f"own{row}",), 0.01) for row in range(m)]
    for feature, partner in planted.partner.items():
        other[partner] = words((f"t{feature}", "y"), 0.01)

    told = {"one": Known(one), "two": Known(other)}
    found = compare(planted.a, planted.b, settings=FEW, names=("one", "two"), words=told)
    scores = found.table("compare_scores").set_index(["measure", "sign"])
    features = found.table("features")
    rows = features[features["of"] == "one 1/res"]
    weights = np.array([words.frequency for words in one])
    assert scores.loc[("A in B", "signed"), "by density"] == pytest.approx(
        (weights * rows["cosine"]).sum() / weights.sum(), abs=1e-5
    )
    row = found.table("words").iloc[0]
    assert row["overlap of shared"] == pytest.approx(1 / 3)
    assert row["overlap by chance"] < 0.1
    assert "t5" in set(rows["words"])
    density = found.table("compare_density")
    assert sorted(set(density["low"])) == pytest.approx([0.001, 0.01, 0.1])


def test_rows_of_another_method_are_compared_at_unit_norm(planted):
    one = compare(planted.a, planted.b, settings=FEW).to_pandas()
    other = compare(
        planted.a, planted.b, settings=ComparisonSettings(method="permutation-encoder", rows=512, rotations=2)
    ).to_pandas()
    # the encoders are the decoders here, so that both say the same
    assert other["pw_mcc"].iloc[0] == pytest.approx(one["pw_mcc"].iloc[0], abs=1e-6)


def test_what_cannot_be_compared_is_refused(planted):
    with pytest.raises(WidthMismatch, match="width"):
        compare(planted.a, dictionary(SITE, unit(5, 1, d=7)), settings=FEW)
    with pytest.raises(InvalidArgument, match="no matching method 'nearest'"):
        compare(planted.a, planted.b, settings=ComparisonSettings(method="nearest"))
    with pytest.raises(InvalidArgument, match="no null 'far' of two"):
        ComparisonSettings(null="far")
    for wrong in ({"shared": 1.5}, {"fdr": 0.0}, {"k": 0}, {"rotations": 0}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            ComparisonSettings(**wrong)
    with pytest.raises(InvalidArgument, match="a name of its own"):
        compare(planted.a, planted.b, names=("same", "same"))


def test_words_of_a_name_that_is_not_compared_are_refused(planted):
    with pytest.raises(InvalidArgument, match="words for onee, and compared are one, two"):
        compare(planted.a, planted.b, settings=FEW, names=("one", "two"), words={"onee": Known([])})
    with pytest.raises(InvalidArgument, match="words for one, and compared are A, B"):
        compare(planted.a, planted.b, settings=FEW, words={"one": Known([]), "A": Known([])})


def test_one_dictionary_may_be_at_another_site(planted):
    elsewhere = dictionary(Site("4/res"), planted.b.W_dec)
    row = compare(planted.a, elsewhere, settings=FEW).to_pandas().iloc[0]
    assert (row["site a"], row["site b"]) == ("1/res", "4/res")
