"""Folded weights equal the normalised pass, by an independent formula in numpy; unfolding is the inverse."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.sources.activations import JumpReLU, ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary, Preprocessing
from saeflow.training.folding import Normalisation, TrainedWeights, fold, unfold
from saeflow.training.settings import TrainingTarget

D_IN, D_OUT, N = 7, 5, 31
SAE = TrainingTarget(Site.parse("3/res"), Tap.RES, N)
TRANSCODER = TrainingTarget(Site.parse("3/mlp"), Tap.MLP_IN, N)


def draw(*shape, seed=0, scale=1.0):
    return torch.from_numpy(np.random.default_rng([seed, *shape]).normal(size=shape) * scale).float()


def weights(d_out, *, k=0):
    threshold = None if k else draw(N, seed=5).abs()
    return TrainedWeights(draw(N, D_IN), draw(N, seed=1), draw(N, d_out, seed=2), draw(d_out, seed=3), threshold, k)


def norms(d_out):
    read = Normalisation(draw(D_IN, seed=7, scale=3), 0.31)
    return read, read if d_out == D_IN else Normalisation(draw(d_out, seed=8, scale=2), 4.2)


def normalised_pass(w, x, read, written):
    """Normalise, encode with the trained weights, rank by norms of decoder rows, decode, undo: in numpy, float64."""
    W_enc, W_dec, b_enc, b_dec = (getattr(w, name).double().numpy() for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
    pre = ((x.double().numpy() - read.mean.double().numpy()) * read.scale) @ W_enc.T + b_enc
    if w.threshold is not None:
        acts = np.where(pre > w.threshold.double().numpy(), np.maximum(pre, 0), 0)
    else:
        ranked = pre * np.linalg.norm(W_dec, axis=1)
        kept = np.argsort(-ranked, axis=1)[:, : w.k]
        acts = np.zeros_like(pre)
        np.put_along_axis(acts, kept, np.maximum(np.take_along_axis(pre, kept, 1), 0), 1)
    out = (acts @ W_dec + b_dec) / written.scale + written.mean.double().numpy()
    return acts > 0, out


@pytest.mark.parametrize("target", [SAE, TRANSCODER], ids=["sae", "transcoder"])
@pytest.mark.parametrize("k", [0, 4], ids=["jumprelu", "topk"])
def test_folded_weights_equal_the_normalised_pass(target, k):
    d_out = D_OUT if target.is_transcoder else D_IN
    w, (read, written) = weights(d_out, k=k), norms(d_out)
    x = draw(200, D_IN, seed=11, scale=4) + read.mean
    on, out = normalised_pass(w, x, read, written)
    dictionary = fold(w, target, read, written)
    acts = dictionary.encode(x)
    assert 0.02 < on.mean() < 0.9
    assert np.array_equal((acts > 0).numpy(), on)
    np.testing.assert_allclose(dictionary.decode(acts).numpy(), out, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(N))
    assert (dictionary.tap, dictionary.site, dictionary.d_out) == (target.reads, target.site, d_out)


@pytest.mark.parametrize("target", [SAE, TRANSCODER], ids=["sae", "transcoder"])
@pytest.mark.parametrize("k", [0, 4], ids=["jumprelu", "topk"])
def test_unfolding_is_the_inverse(target, k):
    d_out = D_OUT if target.is_transcoder else D_IN
    w, (read, written) = weights(d_out, k=k), norms(d_out)
    folded = fold(w, target, read, written)
    unfolded = unfold(folded, read, written)
    torch.testing.assert_close(unfolded.W_dec.norm(dim=1), torch.ones(N))
    again = fold(unfolded, target, read, written)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        torch.testing.assert_close(getattr(again, name), getattr(folded, name), rtol=1e-5, atol=1e-5)
    if isinstance(folded.activation, JumpReLU):
        torch.testing.assert_close(again.activation.threshold, folded.activation.threshold)
    # with unit rows trained, unfolding gives back what was trained
    unit = TrainedWeights(**{f.name: getattr(unfolded, f.name) for f in fields(unfolded)})
    back = unfold(fold(unit, target, read, written), read, written)
    torch.testing.assert_close(back.W_enc, unit.W_enc, rtol=1e-5, atol=1e-5)


def test_a_topk_whose_rows_have_other_norms_is_refused():
    w, (read, written) = weights(D_IN, k=4), norms(D_IN)
    folded = fold(w, SAE, read, written)
    rows = folded.W_dec * torch.linspace(0.5, 2, N)[:, None]
    names = ("W_enc", "b_enc", "b_dec", "activation")
    other = Dictionary(SAE.site, tap=SAE.reads, W_dec=rows, **{name: getattr(folded, name) for name in names})
    with pytest.raises(InvalidArgument, match=r"norms from 0\.5 to 2\. .* rows of norm 1"):
        unfold(other, read, written)


def test_rows_alike_have_no_normalisation():
    with pytest.raises(InvalidArgument, match=r"activations at 3/res have a mean norm of 0.0"):
        Normalisation.of(torch.zeros(4), torch.tensor(0.0), "3/res")
    with pytest.raises(InvalidArgument, match="nan"):
        Normalisation.of(torch.zeros(4), torch.tensor(float("nan")), "3/res")


def test_a_normalised_row_has_norm_sqrt_d_on_average():
    x = draw(4000, D_IN, scale=6) + 3
    mean = x.double().mean(0)
    norm = Normalisation.of(mean, (x.double() - mean).norm(dim=1).mean(), "3/res")
    assert float(norm(x).norm(dim=1).mean()) == pytest.approx(D_IN**0.5, rel=1e-4)
    assert float(norm(x).mean(0).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
def test_weights_that_diverged_are_refused(name):
    w, (read, written) = weights(D_IN), norms(D_IN)
    getattr(w, name)[3] = float("nan")
    with pytest.raises(InvalidArgument, match="weights at 3/res are not finite"):
        fold(w, SAE, read, written)


def test_a_dictionary_that_is_not_trained_here_is_no_start():
    told = {"W_enc": draw(N, D_IN), "b_enc": draw(N), "W_dec": draw(N, D_IN), "b_dec": draw(D_IN)}
    read, written = norms(D_IN)
    with pytest.raises(InvalidArgument, match=r"cannot go on from the dictionary at 3/res .activation relu"):
        unfold(Dictionary(SAE.site, tap=Tap.RES, activation=ReLU(), **told), read, written)
    centred = Dictionary(
        SAE.site, tap=Tap.RES, activation=JumpReLU(torch.ones(N)), preprocessing=Preprocessing(center=True), **told
    )
    with pytest.raises(InvalidArgument, match="center=True"):
        unfold(centred, read, written)
