"""What a run is told: refused outside its range, the same after JSON, targets by name."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.sources.architectures import Point, Tap
from saeflow.training import (
    ActivationStream,
    Objective,
    Optimiser,
    TrainingSettings,
    TrainingTarget,
    needs,
    sparsity,
    targets_of,
)
from saeflow.training.settings import first_threshold, measured_at_once, seed_of


def test_settings_and_json_are_inverse():
    told = TrainingSettings(
        sparsity("topk", l0=8), Optimiser(9000, 100, 1e-3), ActivationStream(64, 4, 300), seed=3, metrics_every=50
    )
    assert TrainingSettings.of_json(json.loads(json.dumps(told.to_json()))) == told


def test_an_objective_has_its_defaults_and_what_is_told_replaces_them():
    gemma_scope = sparsity("jumprelu")
    assert (gemma_scope.unit_decoder, gemma_scope.bandwidth, gemma_scope.objective) == (True, 0.05, Objective.JUMPRELU)
    assert sparsity("topk", l0=5).unit_decoder is False
    assert sparsity("topk", l0=5, unit_decoder=True, bandwidth=None).unit_decoder is True


def test_thresholds_start_where_normal_activations_would_have_eight_times_the_target():
    assert sparsity("jumprelu-l0", l0=5).threshold is None
    drawn = torch.randn(2000, 768, generator=torch.Generator().manual_seed(0))
    assert float((drawn > first_threshold(6, 768)).sum(1).float().mean()) == pytest.approx(48, rel=0.02)
    assert first_threshold(100, 300) == 1


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"objective": "relu"},
            "no architecture 'relu'. Did you mean 'jumprelu'\\? Known: jumprelu, jumprelu-l0, topk, batchtopk",
        ),
        ({"objective": "topk"}, "topk with L0 = 0"),
        ({"objective": "topk", "l0": 2.5}, "Give a whole number, or use batchtopk"),
        ({"objective": "jumprelu-l0", "l0": float("nan")}, "with L0 = nan"),
        ({"objective": "jumprelu", "bandwidth": 0.0}, "bandwidth = 0.0 .* Give more than 0"),
        ({"objective": "jumprelu-l0", "l0": 4, "threshold": float("inf")}, "threshold = inf"),
        ({"objective": "jumprelu", "threshold": -0.1}, "threshold = -0.1 .* Give 0 or more"),
        ({"objective": "jumprelu", "warm_up": 1.5}, "Give a share from 0 to 1"),
    ],
)
def test_losses_outside_their_range_are_refused(told, message):
    with pytest.raises(InvalidArgument, match=message):
        sparsity(**told)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"tokens": 10, "batch": 20}, "give no step"),
        ({"tokens": 100, "batch": 10, "lr": 0.0}, "learning rate 0.0"),
        ({"tokens": 100, "batch": 10, "beta1": 1.0}, "beta1 = 1.0"),
        ({"tokens": 100, "batch": 10, "warm_up": 0.6, "decay": 0.6}, "more than all of them"),
    ],
)
def test_optimisers_outside_their_range_are_refused(told, message):
    with pytest.raises(InvalidArgument, match=message):
        Optimiser(**told)


def test_a_buffer_of_less_than_two_batches_is_refused():
    with pytest.raises(InvalidArgument, match="Give a buffer of 200 or more"):
        TrainingSettings(sparsity("topk", l0=8), Optimiser(9000, 100), ActivationStream(64, 4, 199))


def test_windows_without_text_are_refused():
    with pytest.raises(InvalidArgument, match="windows of 2 tokens or more"):
        ActivationStream(context=1)


def test_targets_are_named_by_what_is_read():
    found = targets_of(["res", "z", "mlp_in"], [1, 0], [8, 9, 10])
    assert [(str(t.site), t.reads, t.width, t.is_transcoder) for t in found] == [
        ("0/att", Tap.Z, 9, False),
        ("0/mlp", Tap.MLP_IN, 10, True),
        ("0/res", Tap.RES, 8, False),
        ("1/att", Tap.Z, 9, False),
        ("1/mlp", Tap.MLP_IN, 10, True),
        ("1/res", Tap.RES, 8, False),
    ]
    assert found[1].points == (Point(0, Tap.MLP_IN), Point(0, Tap.MLP))
    assert found[0].points == (Point(0, Tap.Z),)


@pytest.mark.parametrize(
    ("parts", "widths", "message"),
    [
        (["attn"], [8], "Give one or more of res, att, mlp, z, mlp_in, mid"),
        ([], [8], "sites none"),
        (["att", "z"], [8], "att and z would both be the dictionary at 0/att"),
        (["att", "res"], [8, 9, 10], "3 widths for 2 sites"),
        (["att"], [0], "a dictionary of 0 features at 0/att"),
    ],
)
def test_targets_that_cannot_be_are_refused(parts, widths, message):
    with pytest.raises(InvalidArgument, match=message):
        targets_of(parts, [0], widths)


def test_a_dictionary_reads_in_the_part_it_serves():
    with pytest.raises(InvalidArgument, match="cannot read mlp_in, which serves mlp"):
        TrainingTarget(Site.parse("0/res"), Tap.MLP_IN, 8)


def test_needs_grow_with_what_is_kept():
    targets = targets_of(["res"], [0, 1], [100])
    widths = {target.read: 10 for target in targets}

    def of(*, dense=False, vocabulary=0, at_once=1, **stream):
        return needs(
            targets,
            widths,
            TrainingSettings(
                sparsity("topk", l0=8), Optimiser(9000, 100), ActivationStream(**stream), checkpoint_every=1
            ),
            4,
            vocabulary,
            dense=dense,
            at_once=at_once,
        )

    assert of(buffer=1000).buffer == 1000 * 2 * 10 * 4
    assert of(buffer=1000, half=True).buffer == 1000 * 2 * 10 * 2
    values = 2 * (100 * 20 + 20 + 300)
    # weights and two moments of each dictionary; gradients, batch and active features of one at a time
    active = 60 * 100 * 16
    assert of(buffer=1000).dictionaries == 4 * (3 * values + values + 100 * 50) + active
    # of two side by side twice as much, and no more where there are only two
    for at_once in (2, 16):
        assert of(buffer=1000, at_once=at_once).dictionaries == 4 * (3 * values + 2 * (values + 100 * 50)) + 2 * active
    # weights, gradient and two moments of each, and about ten arrays of a batch at one of them
    assert of(buffer=1000, dense=True).dictionaries == 4 * (4 * values + 10 * 100 * 100)
    # the model's loss on some texts, fewer where the vocabulary is large
    assert measured_at_once(256, 0) == measured_at_once(256, 49_152) == 2
    assert (measured_at_once(256, 262_144), measured_at_once(8192, 262_144)) == (2, 1)
    assert of(buffer=1000, vocabulary=262_144).measuring == pytest.approx(3 * 4 * 2 * 256 * 262_144, rel=0.01)
    assert of(buffer=1000).checkpoint == 2 * (12 * values + 1000 * 80)


def test_a_seed_depends_on_the_run_and_on_what_is_drawn_and_is_known():
    assert len({seed_of(0, "a"), seed_of(1, "a"), seed_of(0, "b"), seed_of(0, "a", "b")}) == 4
    assert seed_of(0, "weights", "3/res") == int.from_bytes(
        hashlib.sha256(b'[0, "weights", "3/res"]').digest()[:7], "big"
    )
