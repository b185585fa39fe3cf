"""Both trainers: planted dictionaries recovered, targets reached, exact resume; and ours step for step as sae-lens's.

What needs sae-lens 6.54 (the extra train) is skipped where it is not installed.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from saeflow.errors import InvalidArgument, MissingExtra
from saeflow.ids import Site
from saeflow.sources.architectures import Tap
from saeflow.sources.library import load_dictionaries
from saeflow.training import (
    ActivationStream,
    Optimiser,
    TrainingSettings,
    TrainingTarget,
    read_metrics,
    sparse_trainer,
    sparsity,
)
from saeflow.training.folding import Normalisation, fold
from saeflow.training.sae_lens_trainer import SaeLensTrainer, extra
from saeflow.training.sparse_trainer import SparseTrainer
from saeflow.training.trainer_interface import APPROACH, TrainerInputs, hold_thresholds

from ..sources.tiny_models import tiny_model
from .learning import TARGETS, files, run, settings, tokens, windows
from .test_run import Killed, killed_at, killed_process, one_thread  # noqa: F401 - a fixture

needs_sae_lens = pytest.mark.skipif(
    importlib.util.find_spec("sae_lens") is None, reason="sae-lens is not installed: pip install -e '.[train]'"
)
TRAINERS = [SparseTrainer, pytest.param(SaeLensTrainer, marks=needs_sae_lens)]
either = pytest.mark.parametrize("trainer", TRAINERS, ids=["sparse", "sae-lens"])
# what the other library warns of is its own
pytestmark = pytest.mark.filterwarnings("ignore")

D, TRUE, ACTIVE, BATCH = 24, 32, 2, 512
OBJECTIVES = ["jumprelu", "jumprelu-l0", "topk", "batchtopk"]
NORMAL = 2 * (Normalisation(torch.zeros(D), 1.0),)
# a transcoder with TopK has no architecture in sae-lens
SAES = (TARGETS[0], TARGETS[2])


def planted(seed=0):
    """Unit rows, and a function of a number that draws rows with two of them active."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(TRUE, D, generator=generator), dim=1)

    def draw(number, n=BATCH):
        own = torch.Generator().manual_seed(1000 + number)
        on = torch.rand(n, TRUE, generator=own).topk(ACTIVE, dim=1).indices
        size = 1 + torch.rand(n, ACTIVE, generator=own)
        return torch.zeros(n, TRUE).scatter(1, on, size) @ truth

    return truth, draw


def job(objective, *, steps, width=40, target=None, widths=(D, D), lr=3e-3, **loss):
    target = target or TrainingTarget(Site.parse("3/res"), Tap.RES, width)
    told = TrainingSettings(
        sparsity(objective, **({"l0": ACTIVE} | loss)),
        Optimiser(steps * BATCH, BATCH, lr),
        ActivationStream(buffer=2 * BATCH),
    )
    return TrainerInputs([target], {target.name: widths}, told, torch.device("cpu"), {})


@either
@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        ("jumprelu", {"coefficient": 1.5, "bandwidth": 0.5, "threshold": 1.0}),
        ("jumprelu-l0", {}),
        ("topk", {}),
        ("batchtopk", {}),
    ],
)
def test_a_planted_dictionary_is_recovered(trainer, objective, loss):
    truth, draw = planted()
    x = draw(0, 8192)
    norm = Normalisation.of(x.mean(0).double(), (x - x.mean(0)).norm(dim=1).mean().double(), "3/res")
    trained = trainer(job(objective, steps=900, **loss))
    for number in range(900):
        trained.step({"3.res": norm(draw(number))})
    made = fold(trained.weights("3.res"), TrainingTarget(Site.parse("3/res"), Tap.RES, 40), norm, norm)
    found = (truth @ made.directions().T).amax(dim=1)
    fresh = draw(9999, 2048)
    acts = made.encode(fresh)
    fve = 1 - (made.decode(acts) - fresh).square().sum() / (fresh - fresh.mean(0)).square().sum()
    assert float((found > 0.95).float().mean()) > 0.85
    assert float(found.mean()) > 0.95
    assert float(fve) > 0.9
    assert float((acts > 0).sum(1).float().mean()) == pytest.approx(ACTIVE, abs=0.5)


@either
@pytest.mark.parametrize("objective", ["jumprelu", "jumprelu-l0"])
@pytest.mark.parametrize(("goal", "steps", "lr"), [(2.0, 300, 3e-3), (5.0, 300, 3e-3), (3.0, 60, 1e-4)])
def test_a_target_l0_is_met_within_a_tenth_even_where_steps_are_few_and_small(trainer, objective, goal, steps, lr):
    _, draw = planted()
    scale = Normalisation(torch.zeros(D), (D**0.5) / float(draw(0, 4096).norm(dim=1).mean()))
    trained = trainer(job(objective, steps=steps, l0=goal, lr=lr))
    for number in range(steps):
        trained.step({"3.res": scale(draw(number))})
    made = fold(trained.weights("3.res"), TrainingTarget(Site.parse("3/res"), Tap.RES, 40), scale, scale)
    assert float((made.encode(draw(5000, 4096)) > 0).sum(1).float().mean()) == pytest.approx(goal, rel=0.1)


def test_a_silent_feature_is_not_raised_and_is_woken_at_the_largest_pre_activation():
    silent_for = torch.tensor([0.0, 1.0, 49.0, 50.0, 50.0])
    peaks = torch.tensor([9.0, 9.0, 9.0, 0.25, 9.0])
    threshold = torch.full((5,), 1.0)
    hold_thresholds(threshold, torch.tensor(2.0), silent_for, 49, lambda of: peaks[of])
    assert threshold.tolist() == pytest.approx([1 + 2 * APPROACH, 1.0, 1.0, 1.0, 1.0])
    hold_thresholds(threshold, torch.tensor(-2.0), silent_for, 99, lambda of: peaks[of])
    assert threshold.tolist() == pytest.approx([1.0] + 4 * [1 - 2 * APPROACH])
    hold_thresholds(threshold, torch.tensor(0.0), silent_for, 100, lambda of: peaks[of])
    assert threshold.tolist() == pytest.approx([1.0, 0.8, 0.8, 0.25, 0.8])


@either
def test_a_feature_whose_threshold_is_out_of_reach_comes_back(trainer):
    _, draw = planted()
    told = job("jumprelu-l0", steps=200)
    first = trainer(told).weights("3.res")
    first.threshold[:8] = 1e3
    trained = trainer(replace(told, start={"3.res": first}))
    for number in range(200):
        trained.step({"3.res": 3 * draw(number)})
    assert float(trained.weights("3.res").threshold.max()) < 100
    assert trained.dead("3.res") < 0.1


@either
def test_without_a_target_the_penalty_alone_decides(trainer):
    _, draw = planted()
    reached = []
    for coefficient in (0.0, 1.5):
        loss = {"l0": 0, "coefficient": coefficient, "bandwidth": 0.5, "threshold": 0.5}
        trained = trainer(job("jumprelu", steps=200, **loss))
        for number in range(200):
            trained.step({"3.res": 3 * draw(number)})
        made = fold(trained.weights("3.res"), TrainingTarget(Site.parse("3/res"), Tap.RES, 40), *NORMAL)
        reached.append(float((made.encode(3 * draw(5000, 4096)) > 0).sum(1).float().mean()))
    assert reached[0] > 2 * reached[1]


@either
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_decoder_rows_stay_at_norm_1_where_asked(trainer, objective):
    _, draw = planted()
    trained = trainer(job(objective, steps=20, unit_decoder=True))
    for number in range(20):
        trained.step({"3.res": draw(number)})
        torch.testing.assert_close(trained.weights("3.res").W_dec.norm(dim=1), torch.ones(40))
    free = trainer(job(objective, steps=20, unit_decoder=False))
    for number in range(20):
        free.step({"3.res": draw(number)})
    assert float(free.weights("3.res").W_dec.norm(dim=1).std()) > 1e-3


@either
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("tap", [Tap.RES, Tap.MLP_IN], ids=["sae", "transcoder"])
def test_a_trainer_goes_on_where_their_state_was_taken(trainer, objective, tap):
    _, draw = planted()
    told = (
        job(objective, steps=40)
        if tap is Tap.RES
        else job(objective, steps=40, target=TrainingTarget(Site.parse("3/mlp"), tap, 40), widths=(D - 4, 4))
    )
    name = told.targets[0].name
    whole, first = trainer(told), trainer(told)
    for number in range(40):
        whole.step({name: draw(number)})
    for number in range(17):
        first.step({name: draw(number)})
    tensors, plain = first.state()
    tensors, plain = {k: t.clone() for k, t in tensors.items()}, json.loads(json.dumps(plain))
    again = trainer(told)
    again.restore(tensors, plain)
    for number in range(17, 40):
        again.step({name: draw(number)})
    assert again.losses(name) == whole.losses(name)
    assert again.dead(name) == whole.dead(name)
    ours, theirs = again.state(), whole.state()
    assert json.dumps(ours[1]) == json.dumps(theirs[1])
    assert ours[0].keys() == theirs[0].keys()
    for key, tensor in theirs[0].items():
        assert torch.equal(ours[0][key], tensor), key


@either
def test_first_weights_are_a_function_of_the_seed_and_the_site_and_leave_the_global_generator(trainer):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = trainer(job("topk", steps=4)).weights("3.res")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(trainer(job("topk", steps=4)).weights("3.res").W_dec, a.W_dec)
    other = job("topk", steps=4, target=TrainingTarget(Site.parse("4/res"), Tap.RES, 40))
    assert not torch.equal(trainer(other).weights("4.res").W_dec, a.W_dec)


@either
@pytest.mark.parametrize("objective", ["jumprelu-l0", "batchtopk"])
def test_a_transcoder_learns_the_output_from_the_input(trainer, objective):
    _, draw = planted()
    turned = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(5))).Q[:, : D - 4]
    target = TrainingTarget(Site.parse("3/mlp"), Tap.MLP_IN, 40)
    trained = trainer(job(objective, steps=600, target=target, widths=(D, D - 4)))
    identity = Normalisation(torch.zeros(D), 1.0)
    out = Normalisation(torch.zeros(D - 4), 1.0)
    for number in range(600):
        x = 3 * draw(number)
        trained.step({"3.mlp": torch.cat([x, x @ turned], dim=1)})
    made = fold(trained.weights("3.mlp"), target, identity, out)
    x = 3 * draw(9999, 2048)
    y = x @ turned
    assert (made.d_in, made.d_out) == (D, D - 4)
    assert float(1 - (made.decode(made.encode(x)) - y).square().sum() / (y - y.mean(0)).square().sum()) > 0.9


@needs_sae_lens
@pytest.mark.parametrize("unit", [True, False], ids=["unit", "free"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("tap", [Tap.RES, Tap.MLP_IN], ids=["sae", "transcoder"])
def test_the_sparse_trainer_takes_the_steps_of_sae_lens(objective, tap, unit):
    _, draw = planted()
    res = tap is Tap.RES
    target = TrainingTarget(Site.parse("3/res" if res else "3/mlp"), tap, 40)
    told = job(objective, steps=40, target=target, widths=(D, D) if res else (D - 4, 4), unit_decoder=unit)
    ours, theirs = SparseTrainer(told), SaeLensTrainer(told)
    for number in range(41):
        mine, other = ours.weights(target.name), theirs.weights(target.name)
        for key in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
            if getattr(other, key) is not None:
                rounding = {"rtol": 0, "atol": 1e-4 if number else 0}  # the first weights are the same bits
                torch.testing.assert_close(getattr(mine, key), getattr(other, key), **rounding)
        if number == 40:
            break
        for trained in (ours, theirs):
            trained.step({target.name: 3 * draw(number)})
        assert ours.losses(target.name) == pytest.approx(theirs.losses(target.name), rel=1e-3, abs=1e-4)
        assert ours.dead(target.name) == theirs.dead(target.name)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_trained_does_not_depend_on_the_type_that_screens(monkeypatch, objective):
    _, draw = planted()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(sparse_trainer, "_fastest_type", lambda device, dtype=dtype: dtype)
        trained = SparseTrainer(job(objective, steps=30))
        for number in range(30):
            trained.step({"3.res": 3 * draw(number)})
        found.append(trained.state()[0])
    for key, tensor in found[0].items():
        assert torch.equal(tensor, found[1][key]), key


@settings_of_hypothesis(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(-3, 3), st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_screen_excludes_no_pair_above_the_cut(seed, cut, scale):
    own = torch.Generator().manual_seed(seed)
    x, w = scale * torch.randn(30, 50, generator=own), torch.randn(20, 50, generator=own)
    x[3] *= 100
    offset = scale * (torch.randn(20, generator=own) - cut)
    exact = x.double() @ w.double().T + offset.double() > 0
    screen = sparse_trainer._Screen(x, w, offset)
    found = screen.entries(lambda bounds, rows: bounds > 0)
    kept = torch.zeros(30, 20, dtype=torch.bool)
    kept[found.row(), found.feature] = True
    assert not bool((exact & ~kept).any())
    assert float((kept & ~exact).float().mean()) < 0.25, "nearly all others are"


@needs_sae_lens
@either
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_trained_here_encodes_the_same_in_sae_lens(trainer, tmp_path, objective):
    done = run(tmp_path / "r", settings(objective, steps=30), trainer=trainer, targets=SAES)
    opened = load_dictionaries(done.folder)
    model = tiny_model("gemma2")
    captured = model.capture(tokens(windows(6, seed=99)), [t.read for t in SAES])
    for target in SAES:
        sae = extra().SAE.load_from_disk(done.folder / target.name)
        sae.turn_off_forward_pass_hook_z_reshaping()  # it would want z with an axis of heads
        x = captured[target.read][:, 1:].flatten(0, 1)
        with torch.no_grad():
            acts, out = sae.encode(x), sae.decode(sae.encode(x))
        mine = opened[target.site].encode(x)
        assert 0 < float((acts > 0).float().mean()) < 1
        torch.testing.assert_close(mine, acts, rtol=0, atol=1e-5)
        torch.testing.assert_close(opened[target.site].decode(mine), out, rtol=0, atol=1e-5)


@needs_sae_lens
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_saved_by_sae_lens_encodes_the_same_here(tmp_path, objective):
    """What sae-lens's own trainer leaves, saved by its own function; the stream's normalisation is left out."""
    _, draw = planted()
    trained = SaeLensTrainer(job(objective, steps=30))
    for number in range(30):
        trained.step({"3.res": draw(number)})
    sae = trained._trainers["3.res"].sae
    sae.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    sae.save_inference_model(tmp_path / "one")
    theirs = extra().SAE.load_from_disk(tmp_path / "one")
    opened = load_dictionaries(tmp_path / "one")[Site.parse("3/res")]
    x = draw(777)
    with torch.no_grad():
        torch.testing.assert_close(opened.encode(x), theirs.encode(x), rtol=0, atol=1e-5)
        torch.testing.assert_close(opened.decode(opened.encode(x)), theirs(x), rtol=0, atol=1e-5)


@needs_sae_lens
@pytest.mark.parametrize("objective", ["jumprelu-l0", "batchtopk"])
def test_a_run_killed_with_sigkill_goes_on_to_the_same_weights_with_sae_lens(tmp_path, objective):
    told = settings(objective, steps=48, checkpoint_every=192, metrics_every=1024)
    step = killed_process(tmp_path / "killed", "sae-lens", objective)
    assert 0 < step < 48
    run(tmp_path / "killed", told, trainer=SaeLensTrainer)
    run(tmp_path / "whole", told, trainer=SaeLensTrainer)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    ours, theirs = (read_metrics(tmp_path / name) for name in ("killed", "whole"))
    assert [r | {"seconds": 0} for r in ours] == [r | {"seconds": 0} for r in theirs]


@either
def test_training_goes_on_from_dictionaries_and_not_from_others(trainer, tmp_path):
    first = run(tmp_path / "first", settings(steps=20), trainer=trainer)
    start = load_dictionaries(first.folder)
    more = run(tmp_path / "more", settings(steps=1, lr=1e-9), trainer=trainer, start=start)
    for site in start:
        torch.testing.assert_close(load_dictionaries(more.folder)[site].W_enc, start[site].W_enc, rtol=1e-3, atol=1e-4)
    with pytest.raises(InvalidArgument, match="Start from a dictionary of the same width and architecture"):
        run(tmp_path / "k", settings("topk", steps=1), trainer=trainer, start=start, targets=SAES)
    wide = [copy.copy(t) for t in SAES]
    wide[1] = TrainingTarget(wide[1].site, wide[1].reads, 41)
    with pytest.raises(InvalidArgument, match=r"\(41, 24\)"):
        run(tmp_path / "w", settings(steps=1), trainer=trainer, start=start, targets=wide)


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(MissingExtra, match=r"trained with sae-lens.*pip install -e '\.\[train\]'"):
        run(tmp_path, settings(), trainer=SaeLensTrainer)
