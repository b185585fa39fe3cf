"""Transport between what features fire on: exact, blind to scale, and right where decoder rows say nothing."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.optimize import linprog

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.matching.atlas import open_atlas
from saeflow.matching.correlation import ActivationShards, _Transport, correlate
from saeflow.matching.transport import draw_atoms, top_transport, unit_states
from saeflow.sources.activations import JumpReLU
from saeflow.sources.activity import text_batches
from saeflow.sources.dictionary import Dictionary, Tap

from ..sources.tiny_models import D_MODEL, TEXTS, tiny_model

N, D = 300, 12


def states(seed=0, n=N):
    drawn = np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)
    return unit_states(drawn + 1, np.ones(n, bool))


def activations(n_features, seed=0, density=0.1):
    rng = np.random.default_rng(seed)
    return sp.csc_array(rng.exponential(size=(N, n_features)) * (rng.random((N, n_features)) < density))


def transported(one, other):
    """The largest mean product of a coupling of two sets of equal masses, as a linear programme."""
    products = one @ other.T
    n, m = products.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    found = linprog(-products.ravel(), A_eq=np.vstack([rows, columns]), b_eq=[1 / n] * n + [1 / m] * m)
    return -found.fun


def test_the_best_are_those_of_linear_programmes_over_all_pairs():
    s = states()
    one, other = (draw_atoms(activations(n, seed), atoms=6) for n, seed in ((9, 1), (14, 2)))
    expected = np.array([[transported(s[a], s[b]) for b in other] for a in one])
    for (index, score), whole in zip(
        top_transport(one, other, s, 3, candidates=None), (expected, expected.T), strict=True
    ):
        best = np.sort(whole, axis=1)[:, ::-1][:, :3]
        assert score == pytest.approx(best, abs=1e-5)
        assert np.take_along_axis(whole, index, axis=1) == pytest.approx(best, abs=1e-5)


def test_few_candidates_give_no_better_scores_and_their_best_is_theirs():
    s = states()
    one, other = (draw_atoms(activations(40, seed), atoms=8) for seed in (1, 2))
    some, every = (top_transport(one, other, s, 2, candidates=n)[0] for n in (8, None))
    assert (some[1] <= every[1] + 1e-6).all()
    assert 0.5 < (some[0][:, 0] == every[0][:, 0]).mean() < 1, "unrelated features: the nearest mean need not be best"
    assert (top_transport(one, other, s, 12, candidates=3)[0][1] > -2).all(), "k are always solved"


def test_tokens_are_drawn_as_often_as_a_feature_fires_on_them_and_scale_changes_nothing():
    acts = np.zeros((N, 2))
    acts[[3, 7, 9], 0] = 1, 2, 5
    drawn = draw_atoms(sp.csc_array(acts), atoms=4000)
    assert [(drawn[0] == token).mean() for token in (3, 7, 9)] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.03)
    assert (drawn[1] == -1).all()
    assert np.array_equal(draw_atoms(sp.csc_array(acts * 100), atoms=4000), drawn)
    some = activations(20, 3)
    noisy = sp.csc_array((some.data * 1.01, some.indices, some.indptr), shape=some.shape)
    assert np.array_equal(draw_atoms(some), draw_atoms(noisy)), "features that fire alike draw the same tokens"


def test_a_feature_that_never_fires_is_no_match_and_has_none():
    acts = activations(6, 1).toarray()
    acts[:, [2, 5]] = 0
    drawn = draw_atoms(sp.csc_array(acts), atoms=8)
    (index, score), back = top_transport(drawn, drawn, states(), 5)
    assert np.isneginf(score[[2, 5]]).all()
    assert np.isneginf(score[:, 4]).all(), "four fire"
    assert not np.isin(index[[0, 1, 3, 4], :4], [2, 5]).any()
    assert index[[0, 1, 3, 4], 0].tolist() == [0, 1, 3, 4]
    assert score[[0, 1, 3, 4], 0] == pytest.approx(1, abs=1e-6)
    assert np.array_equal(back[0], index)
    with pytest.raises(InvalidArgument, match="k=7 matches were asked of 6"):
        top_transport(drawn, drawn, states(), 7)
    with pytest.raises(InvalidArgument, match="atoms=0"):
        draw_atoms(sp.csc_array(acts), atoms=0)


def test_features_are_found_on_other_tokens_too():
    """Each side sees tokens of its own: nothing fires together, and only what is said by the states can match."""
    rng = np.random.default_rng(5)
    topics = rng.integers(0, 20, N * 10)
    s = rng.normal(size=(20, D))[topics] + 0.3 * rng.normal(size=(N * 10, D))
    s = unit_states(s.astype(np.float32), np.ones(len(s), bool))
    fires = (topics[:, None] == np.arange(20)) * rng.exponential(size=(N * 10, 20))
    order = rng.permutation(20)
    even = np.arange(N * 10)[:, None] % 2 == 0
    one, other = (draw_atoms(sp.csc_array(acts)) for acts in (fires * even, (fires * ~even)[:, order]))
    (index, _), _ = top_transport(one, other, s, 1)
    assert order[index[:, 0]].tolist() == list(range(20))


def test_an_atlas_by_transport_resumes_and_says_its_reference(tmp_path):
    model, draw = tiny_model("llama"), torch.Generator().manual_seed(0)
    sites = [Site.parse(name) for name in ("0/res", "1/res", "1/mlp")]
    dictionaries = {
        site: Dictionary(
            site,
            tap=Tap(site.part.value),
            W_enc=torch.randn(10, D_MODEL, generator=draw),
            b_enc=torch.zeros(10),
            W_dec=torch.randn(10, D_MODEL, generator=draw),
            b_dec=torch.zeros(D_MODEL),
            activation=JumpReLU(torch.full((10,), 0.5)),
        )
        for site in sites
    }
    made = correlate(model, dictionaries, TEXTS, out=tmp_path / "a", k=2, method="transport")
    assert (made.method, len(made)) == ("transport", 4)
    (tmp_path / "a" / "1.mlp-1.res.safetensors").unlink()
    again = correlate(model, dictionaries, TEXTS, out=tmp_path / "a", k=2, method="transport", reference=sites[1])
    assert {pair: again[pair].provenance for pair in again} == {pair: made[pair].provenance for pair in made}
    assert '"reference": "1/res"' in (tmp_path / "a" / "correlation.json").read_text()
    assert open_atlas(tmp_path / "a").method == "transport"
    # by pearson the folder holds something else, and is made anew
    assert correlate(model, dictionaries, TEXTS, out=tmp_path / "a", k=2).method == "pearson"
    assert {again.method for again in map(open_atlas, [tmp_path / "a"])} == {"pearson"}
    with pytest.raises(InvalidArgument, match="reference 1/res matches nothing"):
        correlate(model, dictionaries, TEXTS, out=tmp_path / "b", reference=sites[1])


def test_the_states_of_all_tokens_are_in_memory_twice_at_most(tmp_path):
    model, reference = tiny_model("llama"), Site.parse("1/res")
    texts = [" ".join(f"w{word}" for word in drawn) for drawn in np.random.default_rng(0).integers(3, 50, (80, 60))]
    shards = ActivationShards(tmp_path, list(text_batches(model, texts)), model, {})
    tracemalloc.start()
    try:
        made = _Transport(shards, reference).states
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.shape == (shards.n_tokens, D_MODEL)
    assert peak < 2.5 * made.nbytes
    whole = torch.cat([model.capture(batch.tokens, [reference])[reference][batch.real] for batch in shards.batches])
    expected = torch.nn.functional.normalize(whole - whole.mean(dim=0))
    assert made == pytest.approx(expected.numpy(), abs=1e-5)
