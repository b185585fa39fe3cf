"""Pearson matching agrees with numpy, leaves special tokens out, and survives being killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from saeflow.errors import InvalidArgument, UnknownSite, WidthMismatch
from saeflow.flow import trace
from saeflow.ids import FeatureId, Part, Site
from saeflow.matching import correlation
from saeflow.matching.atlas import flow_pairs, open_atlas
from saeflow.matching.build import build_atlas
from saeflow.matching.correlation import FeatureMoments, correlate, top_correlations
from saeflow.sources.activations import JumpReLU
from saeflow.sources.activity import text_batches
from saeflow.sources.dictionary import Dictionary, Tap

from ..sources.tiny_models import D_MODEL, MASSIVE, N_LAYERS, massive_model, tiny_model


def activations(n, n_features, density=0.1, seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.exponential(size=(n, n_features)) * (rng.random((n, n_features)) < density)
    return dense.astype(np.float32)


def numpy_correlation(x, y):
    """numpy's own, source by target."""
    both = np.concatenate([x, y], axis=1).astype(np.float64)
    return np.corrcoef(both, rowvar=False)[: x.shape[1], x.shape[1] :]


def best(r, k):
    index = np.argsort(-r, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(r, index, axis=1)


@pytest.mark.parametrize("density", [0.02, 0.2, 0.9])
@pytest.mark.parametrize(("n_source", "n_target", "k", "block"), [(60, 90, 5, 256), (90, 60, 1, 7), (30, 30, 30, 1)])
def test_both_directions_agree_with_numpy(density, n_source, n_target, k, block):
    x, y = activations(400, n_source, density), activations(400, n_target, density, seed=1)
    y[:, :10] += x[:, 3:13]
    forward, backward = top_correlations(sp.csc_array(x), sp.csc_array(y), k, block=block)
    r = numpy_correlation(x, y)
    for found, expected in ((forward, r), (backward, r.T)):
        index, score = best(expected, k)
        assert np.abs(found.score - score).max() < 1e-5
        assert np.abs(np.take_along_axis(expected, found.index.astype(int), 1) - score).max() < 1e-9
        assert (np.sort(found.index, axis=1)[:, 1:] != np.sort(found.index, axis=1)[:, :-1]).all()
        assert (found.index == index).mean() > 0.99


def test_a_pair_that_never_fires_together_has_its_exact_negative_correlation():
    x, y = np.zeros((10, 2), np.float32), np.zeros((10, 2), np.float32)
    x[0, 0], x[1, 1], y[4:7, 0], y[2, 1] = 2.0, 1.0, [1.0, 2.0, 3.0], 1.0
    forward, _ = top_correlations(sp.csc_array(x), sp.csc_array(y), 2)
    index, score = best(numpy_correlation(x, y), 2)
    assert forward.index.tolist() == index.tolist()
    assert forward.score == pytest.approx(score, abs=1e-7)
    assert (forward.score < 0).all()


def test_a_feature_that_never_fires_is_no_match_and_has_none():
    x, y = activations(200, 6), activations(200, 8, seed=1)
    x[:, 2] = 0.0
    y[:, [0, 5]] = 0.0
    y[:, 6] = 3.0  # fires alike on every token: constant too
    with np.errstate(all="ignore"):
        r = numpy_correlation(x, y)
    forward, backward = top_correlations(sp.csc_array(x), sp.csc_array(y), 5)
    live = [i for i in range(6) if i != 2]
    assert not np.isin(forward.index[live], [0, 5, 6]).any()
    assert np.abs(forward.score[live] - best(np.nan_to_num(r, nan=-9)[live], 5)[1]).max() < 1e-5
    for score, index in ((forward.score[2], forward.index[2]), (backward.score[0], backward.index[0])):
        assert np.isneginf(score).all()
        assert not index.any()
    assert np.isneginf(backward.score[[0, 5, 6]]).all()
    assert np.isfinite(backward.score[[1, 2, 3, 4, 7]]).all()


def test_places_beyond_the_targets_that_fire_hold_no_match():
    x, y = activations(100, 4, 0.5), np.zeros((100, 4), np.float32)
    y[:, 2] = activations(100, 1, 0.5, seed=3)[:, 0]
    forward, _ = top_correlations(sp.csc_array(x), sp.csc_array(y), 3)
    assert (forward.index[:, 0] == 2).all()
    assert not forward.index[:, 1:].any()
    assert np.isneginf(forward.score[:, 1:]).all()


def test_equal_features_correlate_fully_and_never_above_one():
    x = activations(300, 12)
    forward, _ = top_correlations(sp.csc_array(x), sp.csc_array(x * 3), 1)
    assert forward.index[:, 0].tolist() == list(range(12))
    assert forward.score == pytest.approx(np.ones((12, 1)), abs=1e-6)
    assert forward.score.max() <= 1.0


def test_the_first_match_is_the_first_column_of_five_whatever_the_block():
    x, y = sp.csc_array(activations(300, 50)), sp.csc_array(activations(300, 40, seed=2))
    five, one = top_correlations(x, y, 5), top_correlations(x, y, 1, block=3)
    for many, single in zip(five, one, strict=True):
        assert np.array_equal(many.index[:, :1], single.index)
        assert np.array_equal(many.score[:, :1], single.score)


def test_moments_are_the_sums():
    x = activations(50, 7)
    found = FeatureMoments.of(sp.csc_array(x))
    assert found.total == pytest.approx(x.astype(np.float64).sum(0))
    assert found.squares == pytest.approx((x.astype(np.float64) ** 2).sum(0))
    assert found.spread / 50 == pytest.approx(x.astype(np.float64).std(0))


def test_what_cannot_be_correlated_is_refused():
    x = sp.csc_array(activations(20, 5))
    with pytest.raises(WidthMismatch, match="20 tokens cannot be correlated with activations on 19"):
        top_correlations(x, sp.csc_array(activations(19, 5)), 1)
    for k in (0, 6):
        with pytest.raises(InvalidArgument, match=f"k={k}"):
            top_correlations(x, x, k)
    with pytest.raises(InvalidArgument, match="block=0"):
        top_correlations(x, x, 1, block=0)
    empty = sp.csc_array((0, 5), dtype=np.float32)
    with pytest.raises(InvalidArgument, match="no tokens"):
        top_correlations(empty, empty, 1)


# --- over a model ---------------------------------------------------------------------------------------

N_FEATURES = 20
WORDS = ["w5 w9 w12 w7 w30 w41 w8 w19 w3 w22", "w17 w4 w40", "w11 w11 w25 w6 w33 w2 w9", "w8 w44 w21 w3 w3 w10 w9"]
TEXTS = WORDS + [" ".join(reversed(text.split())) for text in WORDS] + ["w13 <eos> w14 w15 w16"]


def dictionaries(layers=N_LAYERS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for site in (Site(layer, part) for layer in range(layers) for part in Part):
        W_enc = torch.randn(N_FEATURES, D_MODEL, generator=generator)
        made[site] = Dictionary(
            site,
            tap=Tap.of(site.part),
            W_enc=W_enc,
            b_enc=torch.zeros(N_FEATURES),
            W_dec=W_enc.clone(),
            b_dec=torch.zeros(D_MODEL),
            activation=JumpReLU(torch.full((N_FEATURES,), 0.5)),
        )
    return made


def by_hand(model, made, site, texts=TEXTS):
    """Activations at a site of every token that is no special one, one text at a time."""
    rows = []
    for text in texts:
        tokens = model.tokenize([text])
        acts = made[site].encode(model.capture(tokens, [site])[site][0])
        rows += [row for row, i in zip(acts, tokens.input_ids[0].tolist(), strict=True) if i > 2]
    return torch.stack(rows).detach().numpy()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_atlas_holds_the_correlations_of_every_pair_of_the_flow(family, tmp_path):
    model, made = tiny_model(family), dictionaries()
    atlas = correlate(model, made, TEXTS, out=tmp_path / "r", k=3, texts_at_once=2, release="tiny")
    assert atlas.method == "pearson"
    pairs = flow_pairs(list(made))
    assert set(atlas) == {pair for a, b in pairs for pair in ((a, b), (b, a))}
    for source, target in [(Site(1, Part.RES), Site(0, Part.RES)), (Site(2, Part.MLP), Site(2, Part.RES))]:
        x, y = by_hand(model, made, source), by_hand(model, made, target)
        with np.errstate(all="ignore"):
            r = np.nan_to_num(numpy_correlation(x, y), nan=-9)
        live = r.max(axis=1) > -9
        assert live.sum() > 5
        table = atlas[source, target]
        assert np.abs(table.score - best(r, 3)[1])[live].max() < 1e-4
        assert table.method == "pearson"
    assert not (tmp_path / "r" / "activations").exists()
    assert trace(FeatureId(Site(2, Part.RES), 1), open_atlas(tmp_path / "r")).seed.index == 1


def test_massive_positions_do_not_count_at_their_sites_and_their_number_is_kept(tmp_path):
    model, made = massive_model(), dictionaries()
    texts = TEXTS * 2
    atlas = correlate(model, made, texts, out=tmp_path / "r", k=3, texts_at_once=2)
    words = [word for text in texts for word in text.split() if word != "<eos>"]
    ordinary = np.array([word != MASSIVE for word in words if word != "w2"])
    x, y = (by_hand(model, made, site, texts)[ordinary] for site in (Site(1, Part.RES), Site(1, Part.MLP)))
    with np.errstate(all="ignore"):
        r = np.nan_to_num(numpy_correlation(x, y), nan=-9)
    live = r.max(axis=1) > -9
    assert live.sum() > 5
    found = atlas[Site(1, Part.RES), Site(1, Part.MLP)].score
    assert np.abs(found - best(r, 3)[1])[live].max() < 1e-4
    told = json.loads((tmp_path / "r" / "correlation.json").read_text())
    assert told["massive"] == {f"{layer}/res": int((~ordinary).sum()) for layer in range(N_LAYERS)}
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    correlate(model, made, texts, out=tmp_path / "r", k=3, texts_at_once=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()} == before


def test_tables_say_what_they_were_made_from_as_those_of_cosine_do(tmp_path):
    model, made = tiny_model("llama"), dictionaries()
    pearson = correlate(model, made, TEXTS, out=tmp_path / "r", k=1)
    cosine = build_atlas(made, out=tmp_path / "c", k=1)
    assert all(pearson[pair].made_from == cosine[pair].made_from for pair in cosine)


def test_how_the_texts_are_grouped_changes_no_match(tmp_path):
    model, made = tiny_model("llama"), dictionaries()
    one = correlate(model, made, TEXTS, out=tmp_path / "one", k=2, texts_at_once=1)
    all_at_once = correlate(model, made, TEXTS, out=tmp_path / "all", k=2, texts_at_once=99, sites_at_once=2)
    for pair in one:
        assert one[pair].score == pytest.approx(all_at_once[pair].score, abs=1e-5)


def test_a_second_run_reads_no_text_again(tmp_path, monkeypatch):
    model, made = tiny_model("llama"), dictionaries()
    first = correlate(model, made, TEXTS, out=tmp_path / "r", k=2)
    monkeypatch.setattr(correlation, "site_states", lambda *_: pytest.fail("encoded again"))
    again = correlate(model, made, TEXTS, out=tmp_path / "r", k=2)
    assert again.files == first.files


def test_activations_that_were_kept_serve_another_k(tmp_path, monkeypatch):
    model, made = tiny_model("llama"), dictionaries()
    first = correlate(model, made, TEXTS, out=tmp_path / "r", k=1, keep_activations=True)
    pair = next(iter(first))
    best = first[pair].score
    monkeypatch.setattr(correlation, "site_states", lambda *_: pytest.fail("encoded again"))
    second = correlate(model, made, TEXTS, out=tmp_path / "r", k=4)
    assert np.array_equal(best, second[pair].score[:, :1])


@pytest.mark.parametrize("what", ["texts", "encoder", "model"])
def test_work_on_other_inputs_is_done_again(what, tmp_path):
    model, made = tiny_model("llama"), dictionaries()
    before = correlate(model, made, TEXTS, out=tmp_path / "r", k=2, keep_activations=True)
    scores = {pair: table.score.copy() for pair, table in before.items()}
    inputs = {
        "texts": (model, made, TEXTS[1:]),
        "encoder": (model, dictionaries(seed=1), TEXTS),
        "model": (tiny_model("llama", seed=5), made, TEXTS),
    }[what]
    after = correlate(*inputs, out=tmp_path / "r", k=2)
    fresh = correlate(*inputs, out=tmp_path / "fresh", k=2)
    assert after.files == fresh.files
    assert any(not np.array_equal(after[pair].score, scores[pair]) for pair in scores)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    model, made = tiny_model("llama"), dictionaries()
    build_atlas(made, out=tmp_path / "c", k=1)
    before = sorted(path.name for path in (tmp_path / "c").iterdir())
    with pytest.raises(InvalidArgument, match="holds other files"):
        correlate(model, made, TEXTS, out=tmp_path / "c")
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == before


def test_what_cannot_be_done_is_said(tmp_path):
    model, made = tiny_model("llama"), dictionaries()
    with pytest.raises(UnknownSite, match="no dictionary at 9/res"):
        correlate(model, made, TEXTS, out=tmp_path, pairs=[(Site(9, Part.RES), Site(1, Part.RES))])
    alone = {Site(1, Part.RES): made[Site(1, Part.RES)]}
    with pytest.raises(UnknownSite, match="A flow needs two"):
        correlate(model, alone, TEXTS, out=tmp_path)
    for name in ("k", "max_tokens", "texts_at_once", "sites_at_once"):
        with pytest.raises(InvalidArgument, match=f"{name}=0"):
            correlate(model, made, TEXTS, out=tmp_path, **{name: 0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"k": N_FEATURES + 1}, InvalidArgument, "k=21 matches were asked of 20 features at 0/res or 0/mlp"),
        ({"k": N_FEATURES + 1, "method": "transport"}, InvalidArgument, "Give k between 1 and 20"),
        (
            {"method": "transport", "reference": Site(1, Part.MLP)},
            InvalidArgument,
            "reference 1/mlp .* a residual site",
        ),
        ({"method": "transport", "reference": Site(9, Part.RES)}, UnknownSite, "no layer 9"),
    ],
)
def test_what_no_text_can_mend_is_refused_before_one_is_read(asked, error, message, tmp_path, monkeypatch):
    model, made = tiny_model("llama"), dictionaries()
    monkeypatch.setattr(type(model), "capture", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(error, match=message):
        correlate(model, made, TEXTS, out=tmp_path / "r", **asked)
    assert list(tmp_path.iterdir()) == []


_CHILD = """
import sys, time
from pathlib import Path
from saeflow.matching import correlation
from tests.matching.test_correlation import TEXTS, dictionaries
from tests.sources.tiny_models import tiny_model

out, slow_at = Path(sys.argv[1]), sys.argv[2]
written = correlation.write_atomic
def slowly(path, data):
    if slow_at == "shards":
        time.sleep(0.05)
    written(path, data)
correlation.write_atomic = slowly
found = correlation.top_correlations
def thinking(*args):
    if slow_at == "tables":
        time.sleep(0.5)
    return found(*args)
correlation.top_correlations = thinking
correlation.correlate(tiny_model("llama"), dictionaries(), TEXTS, out=out, k=2, texts_at_once=2)
"""


@pytest.mark.parametrize("during", ["shards", "tables"])
def test_a_run_killed_in_the_middle_ends_with_the_same_bytes(during, tmp_path):
    model, made = tiny_model("llama"), dictionaries()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    correlate(model, made, TEXTS, out=whole, k=2, texts_at_once=2)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(map(str, (root / "src", root)))
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, killed, during], cwd=root, env=os.environ | {"PYTHONPATH": paths}
    )
    pattern = "activations/*/*.safetensors" if during == "shards" else "*.safetensors"
    give_up = time.monotonic() + 90
    while len(list(killed.glob(pattern))) < 4 and child.poll() is None and time.monotonic() < give_up:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    some = len(list(killed.glob(pattern)))
    assert 4 <= some < len(list(whole.glob("*.safetensors"))) + 45 * (during == "shards")
    assert not (killed / "atlas.json").exists()
    correlate(model, made, TEXTS, out=killed, k=2, texts_at_once=2)
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in killed.iterdir()} == names
    for name in names:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_run_says_what_it_read(tmp_path):
    model, made = tiny_model("llama"), dictionaries()
    correlate(model, made, TEXTS, out=tmp_path / "r", k=1, max_length=6)
    told = json.loads((tmp_path / "r" / "correlation.json").read_text())
    assert told["texts"] == len(TEXTS)
    assert told["tokens"] == sum(int(u.real.sum()) for u in text_batches(model, TEXTS, max_length=6))
