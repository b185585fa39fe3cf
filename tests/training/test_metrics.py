"""What is measured: against the formulas of the file's head written out, on sites, z and transcoders."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.sources.activations import JumpReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary
from saeflow.training import Evaluation, Optimiser, TrainingSettings, TrainingTarget, metrics, sparsity, targets_of
from saeflow.training.metrics import FEWEST, Affordable

from ..sources.tiny_models import D_MODEL, hooks_on, tiny_model
from .learning import tokens, windows

MODEL = tiny_model("gemma2")
BATCHES = [tokens(windows(5, seed=1)), tokens(windows(3, 8, seed=2))]


def random_dictionary(target, d_in, d_out):
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return Dictionary(
        target.site,
        tap=target.reads,
        W_enc=draw(target.width, d_in) / d_in**0.5,
        b_enc=draw(target.width) - 1,
        W_dec=draw(target.width, d_out) / 6,
        b_dec=draw(d_out) / 4,
        activation=JumpReLU(draw(target.width).abs()),
    )


def identity(target, d):
    """Reconstructs exactly: x = relu(x) - relu(-x)."""
    eye = torch.eye(d)
    return Dictionary(
        target.site,
        tap=target.reads,
        W_enc=torch.cat([eye, -eye]),
        b_enc=torch.zeros(2 * d),
        W_dec=torch.cat([eye, -eye]),
        b_dec=torch.zeros(d),
        activation=JumpReLU(torch.zeros(2 * d)),
    )


@pytest.mark.parametrize(
    ("reads", "site"),
    [(Tap.RES, "1/res"), (Tap.Z, "1/att"), (Tap.ATT, "0/att"), (Tap.MLP_IN, "1/mlp"), (Tap.MID, "1/mlp")],
)
def test_quality_is_what_the_formulas_say(reads, site):
    target = TrainingTarget(Site.parse(site), reads, 60)
    captured = [MODEL.capture(batch, target.points) for batch in BATCHES]
    read, written = (
        torch.cat([c[point][:, 1:].flatten(0, 1) for c in captured]) for point in (target.read, target.written)
    )
    dictionary = random_dictionary(target, read.shape[1], written.shape[1])
    found = Evaluation(MODEL, BATCHES, [target]).measure({target.site: dictionary})[target.site]
    acts = dictionary.encode(read)
    error = (dictionary.decode(acts) - written).square().sum()
    assert found.fve == pytest.approx(float(1 - error / (written - written.mean(0)).square().sum()), rel=1e-4)
    assert found.l0 == pytest.approx(float((acts > 0).sum() / len(read)))
    assert found.silent == pytest.approx(float((acts == 0).all(0).float().mean()))
    assert (found.tokens, found.massive, found.fve_all) == (len(read), 0, found.fve)
    assert len(read) == 5 * 11 + 3 * 7
    clean, zero, spliced = (
        torch.cat([run(batch, c).flatten() for batch, c in zip(BATCHES, captured, strict=True)]).mean().item()
        for run in (
            lambda batch, _: MODEL.loss(batch),
            lambda batch, c: loss_with(target, batch, torch.zeros_like(c[target.written])),
            lambda batch, c: loss_with(target, batch, dictionary.decode(dictionary.encode(c[target.read]))),
        )
    )
    assert abs(zero - clean) > 3e-4
    # differences of losses near 4 nats in float32
    assert found.loss_added == pytest.approx(spliced - clean, abs=3e-6)
    assert found.loss_recovered == pytest.approx((zero - spliced) / (zero - clean), rel=1e-2)
    assert hooks_on(MODEL) == 0


def loss_with(target, batch, put):
    """The loss with a tensor put in at all tokens but the first, written out with a plain hook."""
    module = MODEL.block(target.site.layer).get_submodule(MODEL.architecture.module(target.written.tap))

    def change(h):
        return torch.cat([h[:, :1], put[:, 1:]], dim=1)

    if MODEL.architecture.is_input(target.written.tap):
        hook = module.register_forward_pre_hook(lambda _m, args: (change(args[0]), *args[1:]))
    else:
        hook = module.register_forward_hook(lambda _m, _a, out: change(out))
    try:
        return MODEL.loss(batch)
    finally:
        hook.remove()


def test_an_exact_reconstruction_recovers_everything():
    target = TrainingTarget(Site.parse("1/res"), Tap.RES, 2 * D_MODEL)
    found = Evaluation(MODEL, BATCHES, [target]).measure({target.site: identity(target, D_MODEL)})[target.site]
    assert found.fve == pytest.approx(1)
    assert found.loss_recovered == pytest.approx(1, abs=1e-4)
    assert found.loss_added == pytest.approx(0, abs=1e-5)
    assert found.l0 == pytest.approx(D_MODEL)


def test_many_targets_are_measured_as_each_alone():
    targets = [TrainingTarget(Site.parse("0/res"), Tap.RES, 60), TrainingTarget(Site.parse("1/mlp"), Tap.MLP_IN, 60)]
    made = {t.site: random_dictionary(t, D_MODEL, D_MODEL) for t in targets}
    together = Evaluation(MODEL, BATCHES, targets).measure(made)
    for target in targets:
        assert Evaluation(MODEL, BATCHES, [target]).measure(made)[target.site] == together[target.site]


def test_nothing_to_measure_on_is_refused():
    with pytest.raises(InvalidArgument, match="0 tokens are kept for measuring"):
        Evaluation(MODEL, [tokens(windows(1, 1))], [])


@pytest.mark.parametrize(
    ("reads", "site"),
    [(Tap.RES, "0/res"), (Tap.RES, "1/res"), (Tap.Z, "1/att"), (Tap.ATT, "0/att"), (Tap.MLP_IN, "1/mlp")],
)
def test_a_pass_that_starts_at_the_splice_has_the_loss_of_a_whole_one(reads, site, monkeypatch):
    target = TrainingTarget(Site.parse(site), reads, 60)
    widths = [MODEL.capture(BATCHES[0], [point])[point].shape[-1] for point in (target.read, target.written)]
    made = {target.site: random_dictionary(target, *widths)}
    found = Evaluation(MODEL, BATCHES, [target]).measure(made)
    ran = []
    hook = (
        MODEL.block(0).get_submodule(MODEL.architecture.module(Tap.MLP)).register_forward_hook(lambda *_: ran.append(1))
    )
    Evaluation(MODEL, BATCHES, [target]).measure(made)
    hook.remove()
    # once for what is captured, which at 0/att ends before the MLP; then only where the splice is in block 0
    passes = 3 if metrics.first_block(target) == 0 else 1
    assert len(ran) == len(BATCHES) * passes
    monkeypatch.setattr(metrics, "first_block", lambda target: 0)
    assert Evaluation(MODEL, BATCHES, [target]).measure(made) == found, "bit for bit"
    assert hooks_on(MODEL) == 0


def test_massive_positions_are_measured_apart_and_keep_their_activations():
    target = TrainingTarget(Site.parse("1/res"), Tap.RES, 60)
    dictionary = random_dictionary(target, D_MODEL, D_MODEL)
    real = torch.cat([MODEL.capture(batch, target.points)[target.read][:, 1:].flatten(0, 1) for batch in BATCHES])
    limit = float(real.square().sum(1).sort().values[-4])  # three are above
    found = Evaluation(MODEL, BATCHES, [target], {target.read: limit}).measure({target.site: dictionary})[target.site]
    usual = real[real.square().sum(1) <= limit]

    def fve(h):
        return float(1 - (dictionary.decode(dictionary.encode(h)) - h).square().sum() / (h - h.mean(0)).square().sum())

    assert (found.tokens, found.massive) == (len(real), 3)
    assert found.fve == pytest.approx(fve(usual), rel=1e-4)
    assert found.fve_all == pytest.approx(fve(real), rel=1e-4)
    assert found.l0 == pytest.approx(float((dictionary.encode(usual) > 0).sum() / len(usual)))
    none = Evaluation(MODEL, BATCHES, [target], {target.read: 0.0})
    assert none.measure({target.site: dictionary})[target.site].loss_added == 0, "nothing is replaced"


def test_without_the_loss_the_rest_is_the_same_and_nothing_after_the_last_site_runs():
    target = TrainingTarget(Site.parse("0/res"), Tap.RES, 60)
    made = {target.site: random_dictionary(target, D_MODEL, D_MODEL)}
    whole = Evaluation(MODEL, BATCHES, [target]).measure(made)[target.site]
    ran = []
    hook = MODEL.block(1).register_forward_hook(lambda *_: ran.append(1))
    found = Evaluation(MODEL, BATCHES, [target]).measure(made, loss=False)[target.site]
    hook.remove()
    assert (found.fve, found.l0, found.silent) == (whole.fve, whole.l0, whole.silent)
    assert math.isnan(found.loss_recovered)
    assert not ran


def test_what_is_affordable_is_measured_on_the_first_texts_alone():
    target = TrainingTarget(Site.parse("0/res"), Tap.RES, 60)
    made = {target.site: random_dictionary(target, D_MODEL, D_MODEL)}
    first = Evaluation(MODEL, BATCHES[:1], [target]).measure(made)[target.site]
    every = Evaluation(MODEL, BATCHES, [target]).measure(made)[target.site]
    few = Evaluation(MODEL, BATCHES, [target], affordable=Affordable(between=1, loss=1))
    last = few.measure(made)[target.site]
    assert (last.fve, last.l0, last.tokens) == (every.fve, every.l0, every.tokens)
    assert (last.loss_recovered, last.loss_tokens) == (first.loss_recovered, first.loss_tokens)
    assert 0 < last.loss_tokens < every.loss_tokens
    on_the_way = few.measure(made, loss=False, last=False)[target.site]
    assert (on_the_way.fve, on_the_way.tokens, on_the_way.loss_tokens) == (first.fve, first.tokens, 0)
    many = Evaluation(MODEL, BATCHES, [target], affordable=Affordable(first.tokens + 1, first.tokens + 1))
    assert many.measure(made, last=False)[target.site] == every


def test_measuring_multiplies_a_tenth_of_what_training_does():
    targets = targets_of(["res", "mlp"], [0, 1], [96])
    settings = TrainingSettings(sparsity("topk", l0=4), Optimiser(100_000_000, 1000), metrics_every=10_000_000)
    found = Affordable.of(MODEL, targets, settings)
    block = sum(p.numel() for p in MODEL.block(0).parameters())
    head = MODEL.hf_model.get_output_embeddings().weight.numel()
    encoders = 4 * 96 * D_MODEL
    trained = 1e8 * (2 * block + encoders)
    # R_0 starts again at block 1, M_0 and M_1 at their own, R_1 at block 2
    n = MODEL.n_layers
    spliced = 2 * ((n - 1 + n + n - 1 + n - 2) * block + 4 * head)
    assert found.loss * spliced == pytest.approx(0.05 * trained, rel=1e-4)
    assert found.between * 10 * (2 * block + 2 * encoders) == pytest.approx(0.05 * trained, rel=1e-4)
    short = replace(settings, optimiser=Optimiser(1000, 1000))
    assert Affordable.of(MODEL, targets, short) == (FEWEST, FEWEST)
