"""Activation functions against their formulas in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saeflow.errors import InvalidArgument
from saeflow.sources.activations import ActivationKind, BatchTopK, JumpReLU, ReLU, TopK


def _pre(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(seed))


def test_relu_is_the_positive_part():
    pre = _pre()
    np.testing.assert_array_equal(ReLU()(pre).numpy(), np.maximum(pre.numpy(), 0))


def test_jumprelu_is_off_exactly_at_its_threshold_and_on_just_above():
    threshold = torch.tensor([0.5, 0.5, 0.5, 0.0, -1.0, -1.0])
    above = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    pre = torch.tensor([0.5, float(above), 0.49, 0.0, -0.5, 0.25])
    assert JumpReLU(threshold)(pre).tolist() == [0.0, float(above), 0.0, 0.0, 0.0, 0.25]


@pytest.mark.parametrize("seed", range(3))
def test_jumprelu_equals_its_formula(seed: int):
    pre, threshold = _pre(seed), torch.rand(8, generator=torch.Generator().manual_seed(seed))
    p, t = pre.numpy(), threshold.numpy()
    np.testing.assert_array_equal(JumpReLU(threshold)(pre).numpy(), np.where(p > t, np.maximum(p, 0), 0))


def test_jumprelu_refuses_another_number_of_features():
    with pytest.raises(InvalidArgument, match="3 thresholds for 8 pre-activations"):
        JumpReLU(torch.ones(3))(_pre())


@pytest.mark.parametrize("k", [1, 3, 8])
def test_topk_keeps_the_k_largest_and_no_negative(k: int):
    pre = _pre()
    p = pre.numpy()
    kept = p >= np.sort(p, axis=-1)[..., -k][..., None]
    np.testing.assert_array_equal(TopK(k)(pre).numpy(), np.where(kept, np.maximum(p, 0), 0))


def test_topk_keeps_fewer_than_k_where_fewer_are_positive():
    assert TopK(3)(torch.tensor([-1.0, 2.0, -3.0, -4.0])).tolist() == [0.0, 2.0, 0.0, 0.0]


def test_topk_refuses_k_that_makes_no_sense():
    with pytest.raises(InvalidArgument, match="k = 0"):
        TopK(0)
    with pytest.raises(InvalidArgument, match="k = 9 on 8 features"):
        TopK(9)(_pre())


def test_batchtopk_at_inference_does_not_depend_on_the_batch():
    pre, act = _pre(), BatchTopK(torch.tensor(0.7))
    torch.testing.assert_close(act(pre)[1, 2], act(pre[1, 2]), rtol=0, atol=0)
    p = pre.numpy()
    np.testing.assert_array_equal(act(pre).numpy(), np.where(p > np.float32(0.7), p, 0))


def test_batchtopk_takes_one_threshold_a_feature_too_and_is_strict():
    threshold = torch.full((8,), 0.7)
    torch.testing.assert_close(BatchTopK(threshold)(_pre()), BatchTopK(torch.tensor(0.7))(_pre()), rtol=0, atol=0)
    assert float(BatchTopK(torch.tensor(0.7))(torch.tensor([0.7]))) == 0.0
    with pytest.raises(InvalidArgument, match="8 thresholds"):
        BatchTopK(threshold)(torch.zeros(2))


def test_moving_keeps_kind_and_parameters():
    for act in (ReLU(), TopK(2), JumpReLU(torch.ones(2)), BatchTopK(torch.tensor(1.0))):
        moved = act.to(dtype=torch.float64)
        assert moved.kind is act.kind
        if isinstance(moved, JumpReLU | BatchTopK):
            assert moved.threshold.dtype is torch.float64
    assert {kind.value for kind in ActivationKind} == {"relu", "jumprelu", "topk", "batchtopk", "function"}
