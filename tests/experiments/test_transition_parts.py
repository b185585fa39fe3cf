"""Maps, scales and regressions by themselves, each against its formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saeflow.errors import InvalidArgument
from saeflow.experiments.transition.fit import RegressionSums, ridge
from saeflow.experiments.transition.maps import (
    KS,
    InMemory,
    Units,
    check_pair,
    in_memory,
    means_as_scale,
    thresholds_as_scale,
    transition_maps,
)
from saeflow.experiments.transition.measure import (
    DictionaryPair,
    Ends,
    Fitted,
    Sums,
    is_run,
    loss_through,
    squared,
    sums,
    written,
)
from saeflow.experiments.transition.variants import MapSource, MapVariant, Scaling
from saeflow.ids import Site
from saeflow.sources.activations import JumpReLU, TopK
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing

from ..sources.tiny_models import D_MODEL
from .transition_world import A, B, dictionary, plant, random_pair, still_model


def rebuilt(one, site=None, **changes):
    told = {
        "tap": one.tap,
        "W_enc": one.W_enc,
        "b_enc": one.b_enc,
        "W_dec": one.W_dec,
        "b_dec": one.b_dec,
        "activation": one.activation,
        "preprocessing": one.preprocessing,
    }
    return Dictionary(site or one.site, **(told | changes))


@pytest.fixture(scope="module")
def pair():
    return random_pair()


def test_a_name_and_its_variant_are_inverse() -> None:
    made = transition_maps(*random_pair().values(), means=Units(torch.ones(30), torch.ones(26)))
    assert all(MapVariant.of(variant.name) == variant for variant in made)
    assert len({variant.name for variant in made}) == len(made)
    assert MapVariant.of("identity") is None
    for bad in ("decoders/x/binary/RAW/RAW", "decoders/1/both/RAW/RAW", "decoders/1/binary/RAW"):
        with pytest.raises(InvalidArgument, match="names no variant"):
            MapVariant.of(bad)


def test_a_permutation_names_each_target_once_and_leaves_the_rest_out(pair) -> None:
    made = transition_maps(pair[A], pair[B], ks=(1,))
    T = made[MapVariant(MapSource.PERMUTATION)]
    counts = torch.bincount(T.index[T.value > 0], minlength=26)
    assert counts.tolist() == [1] * 26
    assert int((T.value == 0).sum()) == 4, "30 features of A, 26 of B"


def test_maps_in_memory_are_the_same_maps(pair) -> None:
    made = transition_maps(pair[A], pair[B], ks=(1, 3, None))
    held = in_memory(made, 30, D_MODEL, 1 << 30, torch.device("cpu"))
    some = torch.tensor([3, 0, 29])
    assert all(isinstance(one, InMemory) for one in held.values())
    assert in_memory(made, 30, D_MODEL, 10, torch.device("cpu")) == made
    for variant, one in made.items():
        torch.testing.assert_close(held[variant].rows(some), one.rows(some), rtol=1e-4, atol=1e-4)


def test_a_k_larger_than_the_target_is_left_out_and_one_below_1_refused(pair) -> None:
    assert {variant.k for variant in transition_maps(pair[A], pair[B], ks=KS)} == {1, 2, 5, 10, None}
    with pytest.raises(InvalidArgument, match="below 1"):
        transition_maps(pair[A], pair[B], ks=(0,))


def test_a_threshold_that_is_not_above_0_takes_the_median_of_the_others(pair) -> None:
    threshold = torch.tensor([-1.0, 2.0, 3.0, 7.0, 0.0])
    one = dictionary(A, torch.eye(D_MODEL)[:5], threshold=threshold)
    assert thresholds_as_scale(one).tolist() == [3.0, 2.0, 3.0, 7.0, 3.0]
    assert thresholds_as_scale(rebuilt(one, activation=JumpReLU(-threshold))) is None
    assert thresholds_as_scale(rebuilt(one, activation=TopK(2))) is None
    made = transition_maps(one, rebuilt(one, B), ks=(1,))
    assert Scaling.FOLDED in {variant.applied for variant in made}


def test_mean_activations_count_where_a_feature_was_active() -> None:
    found = means_as_scale(torch.tensor([6.0, 0.0, 4.0]), torch.tensor([3.0, 0.0, 1.0]))
    assert found.tolist() == [2.0, 2.0, 4.0]
    assert means_as_scale(torch.zeros(2), torch.zeros(2)) is None


def test_what_is_no_sparse_autoencoder_of_its_site_is_refused(pair) -> None:
    mlp = Site.parse("1/mlp")
    reader = rebuilt(pair[B], mlp, tap=Tap.MLP_IN)
    for source, target, words in (
        (pair[A], reader, "is a transcoder: it reads mlp_in"),
        (reader, rebuilt(pair[B], Site.parse("2/res")), "1/mlp is a transcoder"),
        (rebuilt(pair[A], Site.parse("0/att"), tap=Tap.Z), pair[B], "reads z"),
        (pair[A], rebuilt(pair[B], preprocessing=Preprocessing(norm=Norm.RESCALE)), "divides every token"),
        (pair[B], pair[A], "does not come before"),
        (pair[A], pair[A], "does not come before"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            check_pair(source, target)


def test_a_target_that_reads_centred_states_is_measured_on_those() -> None:
    both = random_pair()
    pair = DictionaryPair(both[A], both[B].centred())
    h = torch.randn(7, D_MODEL) + 3
    assert pair.centred(h).mean(dim=-1).abs().max() < 1e-5
    model = still_model()
    tokens = model.tokenize(["w3 w4 w5"])
    ends = pair.ends(model.capture(tokens, [A, B]), tokens.input_ids > 2)
    assert ends.truth.mean(dim=-1).abs().max() < 1e-7
    assert ends.h.mean(dim=-1).abs().max() > 1e-4


def moments(seed=0, n=300):
    """Sums over random tokens, and the tokens."""
    both, make = random_pair(seed), torch.Generator().manual_seed(seed)
    h = torch.randn(n, D_MODEL, generator=make)
    truth = h @ torch.randn(D_MODEL, D_MODEL, generator=make) / 5 + 1 + 0.1 * torch.randn(n, D_MODEL, generator=make)
    z, y = both[A].encode(h), both[B].encode(truth)
    found = RegressionSums(DictionaryPair(both[A], both[B]))
    for some in torch.arange(n).split(70):
        found.add(Ends(h[some], z[some], truth[some]), y[some])
    return both, found, h, z, truth


def test_sums_are_those_of_all_tokens_at_once() -> None:
    both, found, _, z, truth = moments()
    rest = (truth - both[B].b_dec).double()
    assert found.n == 300
    np.testing.assert_allclose(found.gram, (z.double().T @ z.double()).numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.cross, (z.double().T @ rest).numpy(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.mean, truth.mean(dim=0))
    torch.testing.assert_close(found.active[0], (z > 0).sum(dim=0).float())
    torch.testing.assert_close(found.total[0], z.sum(dim=0), rtol=1e-4, atol=1e-4)


def test_no_transition_matrix_misses_less_than_least_squares_where_it_was_fitted() -> None:
    both, found, h, z, truth = moments()
    ends = Ends(h, z, truth)
    rest = truth - both[B].b_dec
    best = InMemory(found.least_squares(1e-9))
    least = squared(rest, written(ends, best))
    whole = squared(truth, both[B].b_dec.expand_as(truth))
    means = Units(*(means_as_scale(t, n) for t, n in zip(found.total, found.active, strict=True)))
    maps = {v.name: one for v, one in transition_maps(both[A], both[B], means=means).items()}
    for name, one in sums(ends, rest, maps).items():
        scale = one.along / one.square
        assert one.missed(whole) >= least * (1 - 1e-5), name
        assert one.missed(whole, scale) >= least * (1 - 1e-5), name
        assert one.missed(whole, scale) <= one.missed(whole) + 1e-6 * whole, name
    near = written(ends, InMemory(best.matrix + 0.01 * torch.randn(30, D_MODEL)))
    assert squared(rest, near) > least


def test_least_squares_is_that_of_numpy_and_stays_in_the_span_of_the_decoder() -> None:
    both, found, _, z, truth = moments()
    rest = (truth - both[B].b_dec).double().numpy()
    expected, *_ = np.linalg.lstsq(z.double().numpy(), rest, rcond=None)
    np.testing.assert_allclose(found.least_squares(1e-12), expected, rtol=1e-3, atol=1e-3)
    few = both[B].W_dec[:5]
    narrow = rebuilt(both[B], W_dec=few, W_enc=both[B].W_enc[:5], b_enc=both[B].b_enc[:5], activation=TopK(2))
    less = RegressionSums(DictionaryPair(both[A], narrow))
    less.gram, less.cross = found.gram, found.cross
    M = less.least_squares(1e-12)
    span = torch.linalg.lstsq(few.T, M.T).solution
    torch.testing.assert_close(few.T @ span, M.T, rtol=1e-3, atol=1e-4)
    T, *_ = np.linalg.lstsq(few.double().numpy().T, expected.T, rcond=None)
    np.testing.assert_allclose(M, T.T @ few.double().numpy(), rtol=1e-2, atol=1e-3)


def test_the_affine_map_is_that_of_numpy() -> None:
    _, found, h, _, truth = moments()
    with_1 = np.concatenate([h.double().numpy(), np.ones((300, 1))], axis=1)
    expected, *_ = np.linalg.lstsq(with_1, truth.double().numpy(), rcond=None)
    np.testing.assert_allclose(found.affine(1e-12), expected, rtol=1e-3, atol=1e-3)


def test_ridge_leaves_out_what_never_fires_and_shrinks_the_rest() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    x[:, 2] = 0
    weak, strong = (ridge(x.T @ x, x.T @ y, s) for s in (1e-9, 10.0))
    assert not weak[2].any()
    assert np.linalg.norm(strong) < 0.2 * np.linalg.norm(weak)
    x[:, 3] = x[:, 1]
    with pytest.raises(np.linalg.LinAlgError):
        ridge(x.T @ x, x.T @ y, -1e-9)


def test_what_is_missed_is_never_below_0() -> None:
    assert Sums(along=4.0, square=4.0).missed(4.0 - 1e-9) == 0
    assert Sums(along=1.0, square=4.0).missed(2.0, scale=0.5) == 2.0


def test_a_layer_is_skipped_through_the_maps_that_the_paper_names() -> None:
    both = random_pair(n=(30, 30))
    run = {variant.name for variant in transition_maps(both[A], both[B]) if is_run(variant)}
    assert {
        "permutation/1/binary/RAW/RAW",
        "permutation/1/binary/RAW/FOLDED",
        "decoders/1/binary/RAW/RAW",
        "decoders/2/values/RAW/FOLDED",
        "decoders/5/values/RAW/RAW",
    } <= run
    assert len(run) < 16


def test_a_loss_needs_one_text_of_two_tokens() -> None:
    world = plant()
    pair = DictionaryPair(*world.dictionaries.values())
    tokens = world.model.tokenize(["w3 w4", "w5 w6"])
    ends = Ends(torch.zeros(1, D_MODEL), torch.zeros(1, 2 * D_MODEL), torch.zeros(1, D_MODEL))
    fitted = Fitted(
        torch.zeros(D_MODEL),
        torch.zeros(D_MODEL),
        torch.zeros(2 * D_MODEL, D_MODEL),
        torch.zeros(D_MODEL + 1, D_MODEL),
        None,
        {},
        {},
    )
    with pytest.raises(InvalidArgument, match="one text"):
        loss_through(world.model, pair, tokens, tokens.input_ids > 2, ends, {}, fitted)


def test_variants_are_values() -> None:
    one = MapVariant(MapSource.DECODERS, 2, binary=False)
    assert replace(one, k=None).name == "decoders/all/values/RAW/RAW"
    assert one == MapVariant(MapSource.DECODERS, 2, binary=False)
