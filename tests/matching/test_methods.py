"""Every method by weights agrees with its formula in plain numpy, for any two dictionaries."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from saeflow.errors import BadFile, InvalidArgument, WidthMismatch
from saeflow.flow import trace
from saeflow.flow.graph import FlowGraph, Reason
from saeflow.ids import FeatureId, Site
from saeflow.matching.methods import (
    METHODS,
    EdgeEnd,
    check,
    match,
    match_pair,
    match_rows,
    permutation,
    rows_of,
    sides,
    sides_of,
)
from saeflow.report.tables import match_rows as report_rows
from saeflow.sources.activations import JumpReLU, ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing

from .random_dictionaries import Writer, random_dictionary

RANKING = [name for name, how in METHODS.items() if not how.one_to_one]
ONE_TO_ONE = [name for name, how in METHODS.items() if how.one_to_one]
SIZES = [(17, 23), (23, 17), (1, 9), (9, 1), (12, 12)]


def tensors(dictionary, *, folded):
    """W_dec, W_enc and b_enc in float64, folded by the formula."""
    t = dictionary.activation.threshold.double().numpy() if folded else np.ones(dictionary.n_features)
    W_dec, W_enc, b_enc = (getattr(dictionary, name).double().numpy() for name in ("W_dec", "W_enc", "b_enc"))
    return W_dec * t[:, None], W_enc / t[:, None], b_enc / t


def product(name, source, target):
    """The whole matrix of scores [n_source, n_target], written out."""
    folded = name.endswith("-folded")
    dec_a, enc_a, b_a = tensors(source, folded=folded)
    dec_b, enc_b, b_b = tensors(target, folded=folded)
    match name.removesuffix("-folded"):
        case "cosine":
            norms = np.linalg.norm(dec_a, axis=1)[:, None] * np.linalg.norm(dec_b, axis=1)
            return dec_a @ dec_b.T / norms
        case "permutation" | "decoder-product":
            return dec_a @ dec_b.T
        case "permutation-encoder":
            return dec_a @ dec_b.T + enc_a @ enc_b.T
        case "permutation-encoder-bias":
            return dec_a @ dec_b.T + enc_a @ enc_b.T + np.outer(b_a, b_b)
        case "virtual":
            # the edge runs parent -> child: W_dec[parent] . W_enc[child]
            return dec_a @ enc_b.T if source.site < target.site else enc_a @ dec_b.T
    raise AssertionError(name)


def pair(n, m, *, source="3/res", target="2/res"):
    return random_dictionary(source, n, seed=n), random_dictionary(target, m, seed=100 + m)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("target", ["2/res", "3/mlp", "7/res", "0/res"])
def test_ranking_methods_are_the_whole_matrix_sorted(name, sizes, target):
    source, other = pair(*sizes, target=target)
    k = min(3, *sizes)
    scores = product(name, source, other)
    forward, backward = match_pair(source, other, k=k, method=name)
    assert (forward.source, forward.target, forward.method) == (source.site, other.site, name)
    assert (backward.source, backward.target, backward.n_target) == (other.site, source.site, sizes[0])
    for table, matrix in ((forward, scores), (backward, scores.T)):
        index = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
        assert np.array_equal(table.index, index)
        assert table.score == pytest.approx(np.take_along_axis(matrix, index, axis=1), rel=1e-5, abs=1e-5)
    alone = match(source, other, k=k, method=name)
    assert np.array_equal(alone.index, forward.index)
    assert alone.score == pytest.approx(forward.score, rel=1e-5, abs=1e-6)
    assert alone.made_from == forward.made_from


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_one_to_one_methods_reach_the_best_sum(name, sizes):
    source, target = pair(*sizes)
    scores = product(name, source, target)
    i, j = linear_sum_assignment(scores, maximize=True)
    forward, backward = match_pair(source, target, method=name)
    paired = np.flatnonzero(~np.isneginf(forward.score[:, 0]))
    assert np.array_equal(paired, i)
    assert scores[paired, forward.index[paired, 0]].sum() == pytest.approx(scores[i, j].sum())
    assert forward.score[paired, 0] == pytest.approx(scores[paired, forward.index[paired, 0]], rel=1e-5, abs=1e-5)
    assert np.array_equal(backward.index[forward.index[paired, 0], 0], paired)
    assert (~np.isneginf(backward.score)).sum() == len(paired)
    assert np.array_equal(match(source, target, method=name).index, forward.index)
    certificate = permutation(source, target, method=name)
    assert certificate.value == pytest.approx(scores[i, j].sum())
    assert certificate.exact


def test_the_earlier_site_writes_and_the_later_one_reads():
    def ends_of(*names):
        return tuple(end for _, end in sides_of(tuple(map(Site.parse, names))))

    assert ends_of("2/res", "3/res") == (EdgeEnd.PARENT, EdgeEnd.CHILD)
    assert ends_of("3/res", "3/mlp") == (EdgeEnd.CHILD, EdgeEnd.PARENT)
    assert ends_of("3/mlp", "3/att") == (EdgeEnd.CHILD, EdgeEnd.PARENT)
    # at one site the source asks where it comes from
    assert ends_of("3/res", "3/res") == (EdgeEnd.CHILD, EdgeEnd.PARENT)


def test_a_virtual_weight_is_what_the_child_gains_from_the_parent():
    parent, child = random_dictionary("2/res", 20, seed=1), random_dictionary("3/res", 30, seed=2)
    table = match(child, parent, method="virtual")
    h = torch.randn(12, generator=torch.Generator().manual_seed(3))
    for feature in (0, 7, 29):
        written = parent.W_dec[table.index[feature, 0]]
        gained = (child.W_enc @ (h + written) - child.W_enc @ h)[feature]
        assert table.score[feature, 0] == pytest.approx(float(gained), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("preprocessing", [Preprocessing(center=True), Preprocessing(norm=Norm.LAYER_NORM)])
def test_where_hidden_states_are_centred_a_constant_written_counts_for_nothing(preprocessing):
    parent = random_dictionary("2/res", 6, seed=1)
    child = random_dictionary("3/res", 9, seed=2, preprocessing=preprocessing)
    enc = child.W_enc.double().numpy()
    expected = (enc - enc.mean(axis=1, keepdims=True)) @ parent.W_dec.double().numpy().T
    table = match(child, parent, k=6, method="virtual")
    whole = np.empty_like(expected)
    np.put_along_axis(whole, table.index.astype(int), table.score.astype(float), axis=1)
    assert whole == pytest.approx(expected, abs=1e-5)


def test_a_bias_of_the_input_is_counted_in():
    plain, other = random_dictionary("3/res", 5, seed=1), random_dictionary("2/res", 5, seed=2)
    subtracting = random_dictionary("3/res", 5, seed=1, preprocessing=Preprocessing(subtract_b_dec=True))
    rows = [rows_of(d, EdgeEnd.CHILD, "permutation-encoder-bias").rows for d in (plain, subtracting)]
    assert torch.allclose(rows[1][:, -1], plain.b_enc - plain.W_enc @ plain.b_dec)
    assert torch.equal(rows[0][:, :-1], rows[1][:, :-1])
    assert match(subtracting, other, method="permutation-encoder-bias").n_target == 5


def test_what_lives_in_z_is_written_through_the_model():
    writer = Writer(12, 8)
    source = random_dictionary("3/res", 20, seed=1)
    on_z = random_dictionary("3/att", 15, 8, seed=2, tap=Tap.Z)
    written = ((on_z.W_dec @ writer.W_O.T) * writer.gain).double().numpy()
    for name, left in (("decoder-product", source.W_dec), ("virtual", source.W_enc)):
        table = match(source, on_z, k=2, method=name, projector=writer)
        scores = left.double().numpy() @ written.T
        assert np.array_equal(table.index, np.argsort(-scores, axis=1)[:, :2])
        assert table.score == pytest.approx(-np.sort(-scores, axis=1)[:, :2], rel=1e-4, abs=1e-4)
    assert match(source, on_z, method="permutation", projector=writer).n_source == 20


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].reads_encoder])
def test_encoders_on_z_are_refused_with_what_would_do(name):
    writer, on_z = Writer(12, 8), random_dictionary("3/att", 15, 8, seed=2, tap=Tap.Z)
    earlier = random_dictionary("2/res", 20, seed=1)
    with pytest.raises(WidthMismatch, match=r"3/att reads z.*decoder-product"):
        match(earlier, on_z, method=name, projector=writer)
    with pytest.raises(WidthMismatch, match="3/att reads z"):
        check(on_z, name, EdgeEnd.CHILD)
    if name.startswith("virtual"):  # of a parent only what it writes counts
        check(on_z, name, EdgeEnd.PARENT)
    else:
        with pytest.raises(WidthMismatch, match="3/att reads z"):
            check(on_z, name, EdgeEnd.PARENT)


def test_z_without_a_model_is_refused():
    on_z = random_dictionary("3/att", 15, 8, seed=2, tap=Tap.Z)
    for name in ("cosine", "decoder-product", "virtual"):
        with pytest.raises(WidthMismatch, match="Load the model"):
            match(random_dictionary("3/res", 9), on_z, method=name)


@pytest.mark.parametrize("name", METHODS)
def test_other_models_are_refused_with_both_widths(name):
    with pytest.raises(WidthMismatch, match=r"width \d+ .* width \d+"):
        match(random_dictionary("3/res", 9, 12), random_dictionary("2/res", 9, 11), method=name)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("k", [0, -1, 10])
def test_k_out_of_range_is_refused(name, k):
    source, target = pair(9, 9)
    with pytest.raises(InvalidArgument, match=f"k={k} "):
        match(source, target, k=k, method=name)


def test_one_direction_keeps_as_many_as_the_target_has():
    source, target = pair(3, 9)
    assert match(source, target, k=9).k == 9
    with pytest.raises(InvalidArgument, match="between 1 and 3"):
        match_pair(source, target, k=9)


@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_a_partner_is_one_and_two_are_refused(name):
    with pytest.raises(InvalidArgument, match=r"one partner\. Give k=1"):
        match(*pair(9, 9), k=2, method=name)


def test_unknown_methods_are_refused_with_the_known_ones():
    with pytest.raises(InvalidArgument, match=r"'magic'\. Known: cosine, permutation"):
        match(*pair(3, 3), method="magic")
    with pytest.raises(InvalidArgument, match=r"no one-to-one matching\. Those are: permutation, permutation-folded"):
        permutation(*pair(3, 3), method="virtual")


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].folded])
def test_folding_without_thresholds_is_refused(name):
    relu = random_dictionary("3/res", 5, activation=ReLU())
    for refuse in (lambda: match(relu, relu, method=name), lambda: check(relu, name, EdgeEnd.CHILD)):
        with pytest.raises(InvalidArgument, match="Match without folding"):
            refuse()


def without(dictionary, row):
    """The same dictionary as if the feature had never been there."""
    left = [i for i in range(dictionary.n_features) if i != row]
    return Dictionary(
        dictionary.site,
        tap=dictionary.tap,
        W_enc=dictionary.W_enc[left],
        b_enc=dictionary.b_enc[left],
        W_dec=dictionary.W_dec[left],
        b_dec=dictionary.b_dec,
        activation=JumpReLU(dictionary.activation.threshold[left]),
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_row_without_a_direction_matches_nothing_and_changes_no_other_match(name, value):
    source, target = pair(8, 9)
    k = METHODS[name].default_k
    alone = match_pair(without(source, 2), without(target, 5), k=k, method=name)
    # under "virtual" the later site brings what it reads
    (source.W_enc if name.startswith("virtual") else source.W_dec)[2] = value
    target.W_dec[5] = value
    both = match_pair(*(d.to() for d in (source, target)), k=k, method=name)
    live = np.delete(np.arange(8), 2), np.delete(np.arange(9), 5)
    for table, expected, own, other in ((both[0], alone[0], *live), (both[1], alone[1], *live[::-1])):
        there = ~np.isneginf(expected.score)
        assert np.array_equal(~np.isneginf(table.score[own]), there)
        assert table.score[own][there] == pytest.approx(expected.score[there], abs=1e-5)
        assert np.array_equal(table.index[own][there], other[expected.index][there])
        dead = FeatureId(table.source, int(np.setdiff1d(np.arange(table.n_source), own)[0]))
        assert table.best(dead) == ()
    assert np.array_equal(match(source.to(), target.to(), k=k, method=name).index, both[0].index)


def test_where_fewer_than_k_rows_have_a_direction_the_places_left_over_hold_no_match():
    source, target = pair(6, 6)
    target.W_dec[[0, 2, 3, 5]] = 0
    forward, backward = match_pair(source, target, k=5)
    assert set(forward.index[:, :2].ravel()) == {1, 4}
    assert np.isneginf(forward.score[:, 2:]).all()
    assert np.isfinite(forward.score[:, :2]).all()
    assert np.isfinite(backward.score[[1, 4]]).all()
    graph = trace(FeatureId(target.site, 2), forward if forward.source == target.site else backward)
    assert {end.reason for end in graph.ends} == {Reason.NO_DIRECTION, Reason.NO_TABLE}
    assert "no direction" in str([end.sentence for end in graph.ends])


def test_a_file_without_one_finite_row_is_refused():
    source, target = pair(6, 6)
    source.W_dec[:] = float("nan")
    with pytest.raises(BadFile, match="NaN or infinite values in 6 of 6 rows"):
        match(source.to(), target)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("changed", ["W_enc", "b_enc", "W_dec", "threshold"])
def test_fingerprints_change_with_what_is_read_and_with_nothing_else(name, changed):
    def made_from():
        source, target = pair(6, 7)
        if change:
            value = source.activation.threshold if changed == "threshold" else getattr(source, changed)
            value[3] += 0.25
        return match(source, target, method=name).made_from

    change = False
    before = made_from()
    change = True
    after = made_from()
    reads = {
        "cosine": {"W_dec"},
        "permutation": {"W_dec"},
        "decoder-product": {"W_dec"},
        "virtual": {"W_enc"},
        "permutation-encoder": {"W_dec", "W_enc"},
        "permutation-encoder-bias": {"W_dec", "W_enc", "b_enc"},
    }[name.removesuffix("-folded")]
    reads = reads | {"threshold"} if name.endswith("-folded") else reads
    assert (before[0] != after[0]) == (changed in reads)
    assert before[1] == after[1]
    assert all(len(one) == 64 for one in before)


@pytest.mark.parametrize("name", METHODS)
def test_rows_made_once_give_the_tables_of_the_pair(name):
    source, target = pair(11, 8)
    a, b = sides(source, target, method=name)
    for one, other in zip(match_rows(a, b, method=name), match_pair(source, target, method=name), strict=True):
        assert one.to_bytes() == other.to_bytes()
    assert (a.fingerprint, b.fingerprint) == match(source, target, method=name).made_from


@pytest.mark.parametrize("name", RANKING)
def test_equal_scores_come_in_the_order_of_their_rows(name):
    source, target = pair(4, 1)
    for tensor in ("W_dec", "W_enc"):
        # whole numbers: products of equal rows are equal to the bit, whatever the order of summation
        setattr_frozen(source, tensor, (4 * getattr(source, tensor)).round())
        setattr_frozen(target, tensor, (4 * getattr(target, tensor)).round().repeat(6, 1))
    wide = random_dictionary("2/res", 6, activation=JumpReLU(torch.full((6,), 0.5)))
    setattr_frozen(wide, "W_dec", target.W_dec)
    setattr_frozen(wide, "W_enc", target.W_enc)
    table = match(source, wide, k=6, method=name.removesuffix("-folded"))
    assert (table.index == np.arange(6)).all()


def setattr_frozen(dictionary, name, value):
    """Put a tensor in place of what was read."""
    dictionary.__dict__[name] = value


def test_a_product_beyond_float32_is_refused():
    source, target = pair(5, 5)
    source.W_dec.mul_(1e25)
    target.W_dec.mul_(1e25)
    with pytest.raises(InvalidArgument, match="beyond float32"):
        match(source, target, method="decoder-product")
    assert np.isfinite(match(source, target).score).all()


def test_a_feature_without_partner_has_no_match_and_ends_a_flow():
    source, target = pair(12, 5)
    table = match(source, target, method="permutation")
    left = int(np.flatnonzero(np.isneginf(table.score[:, 0]))[0])
    feature = FeatureId(source.site, left)
    assert table.best(feature) == ()
    graph = trace(feature, table, forward=False)
    assert [end.reason for end in graph.ends] == [Reason.NO_PARTNER]
    assert "without a predecessor" in graph.ends[0].sentence
    assert graph.by_feature[feature].scores.res is None
    text = graph.to_json()
    assert FlowGraph.from_json(text) == graph
    summary, rows = report_rows(table, 12)
    assert len(rows) == 5
    json.dumps([summary, rows], allow_nan=False)
    json.loads(text, parse_constant=refuse_constant)


def refuse_constant(name):
    raise AssertionError(f"{name} in JSON")


def test_a_table_with_features_left_over_survives_its_file(tmp_path):
    table = match(*pair(12, 5), method="permutation")
    table.save(tmp_path / "one.safetensors")
    again = type(table).load(tmp_path / "one.safetensors")
    assert np.array_equal(again.score, table.score)
    assert again.method == "permutation"


def test_every_method_says_what_it_is_and_where_it_is_from():
    assert next(iter(METHODS)) == "cosine"
    for name, how in METHODS.items():
        assert how.name == name
        assert how.sentence.endswith(".")
        assert how.source
        assert how.folded == name.endswith("-folded")
        assert how.one_to_one == name.startswith("permutation")
