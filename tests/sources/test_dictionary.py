"""Dictionary: encode and decode against numpy, directions, folding, and reading at first use."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from layouts import Arrays, arrays
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument, WidthMismatch
from saeflow.ids import Site
from saeflow.sources.activations import Activation, BatchTopK, JumpReLU, ReLU, TopK
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing, Tap
from saeflow.sources.weights import TensorsInMemory, Weights

SITE = Site.parse("3/res")


def make(a: Arrays, activation: Activation | None = None, **kwargs: Any) -> Dictionary:
    t = torch.from_numpy
    return Dictionary(
        kwargs.pop("site", SITE),
        tap=kwargs.pop("tap", Tap.RES),
        W_enc=t(a.W_enc),
        b_enc=t(a.b_enc),
        W_dec=t(a.W_dec),
        b_dec=t(a.b_dec),
        activation=activation or JumpReLU(t(a.threshold)),
        **kwargs,
    )


class Counting(Weights):
    """Weights that remember which tensors were read."""

    def __init__(self, a: Arrays) -> None:
        super().__init__("counting.safetensors", a.W_dec.shape, a.W_dec.shape[1])
        self.a, self.reads = a, list[str]()

    def read(self, name: str) -> Tensor:
        self.reads.append(name)
        return torch.from_numpy(getattr(self.a, name))


def lazy(weights: Counting, tap: Tap = Tap.RES) -> Dictionary:
    return Dictionary.reading(SITE, tap=tap, weights=weights, activation=lambda: JumpReLU(weights.read("threshold")))


def hidden(*shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("norm", list(Norm))
def test_encode_and_decode_equal_the_formula_in_numpy(subtract: bool, center: bool, norm: Norm):
    a, h = arrays(), hidden(2, 6, 4)
    x = h.numpy()
    x = x - x.mean(-1, keepdims=True) if center else x
    scale, shift = np.ones_like(x[..., :1]), np.zeros_like(x[..., :1])
    if norm is Norm.LAYER_NORM:
        shift, scale = x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
        x = (x - shift) / (scale + 1e-5)
    elif norm is Norm.RESCALE:
        scale = np.sqrt((x**2).sum(-1, keepdims=True) / 4)
        x = x / scale
    pre = (x - a.b_dec if subtract else x) @ a.W_enc.T + a.b_enc
    acts = np.where(pre > a.threshold, np.maximum(pre, 0), 0)
    d = make(a, preprocessing=Preprocessing(subtract_b_dec=subtract, center=center, norm=norm))
    np.testing.assert_allclose(d.encode(h).numpy(), acts, rtol=1e-4, atol=1e-5)
    expected = (acts @ a.W_dec + a.b_dec) * scale + shift
    np.testing.assert_allclose(d.decode(d.encode(h), h).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", [ReLU(), TopK(2), BatchTopK(torch.tensor(0.3))])
def test_encode_applies_the_activation_to_the_affine_map(activation: Activation):
    a, h = arrays(1), hidden(5, 4)
    pre = h.numpy() @ a.W_enc.T + a.b_enc
    acts = make(a, activation).encode(h)
    np.testing.assert_allclose(acts.numpy(), activation(torch.from_numpy(pre)).numpy(), rtol=1e-5, atol=1e-5)


def test_states_that_are_no_numbers_or_none_in_the_dtype_of_the_weights_are_not_encoded():
    d, h = make(arrays()), torch.ones(3, arrays().W_enc.shape[1])
    for bad in (float("nan"), float("inf")):
        with pytest.raises(InvalidArgument, match=r"dictionary at 3/res reads hold NaN .* at 1 of 3 tokens"):
            d.encode(h.index_fill(0, torch.tensor([1]), bad))
    with pytest.raises(InvalidArgument, match=r"at 3 of 3 tokens[.] float16 overflows"):
        d.to(dtype=torch.float16).encode(1e5 * h)


def test_a_state_of_zeros_stays_one_where_tokens_are_scaled_to_one_length():
    prepared, scale, _ = Preprocessing(norm=Norm.RESCALE).prepare(torch.zeros(2, 8))
    assert not prepared.any()
    assert not scale.any()


def test_half_precision_hidden_states_are_encoded_in_the_dtype_of_the_weights():
    assert make(arrays()).encode(hidden(3, 4).bfloat16()).dtype is torch.float32


def test_decode_with_a_norm_asks_for_the_hidden_states():
    d = make(arrays(), preprocessing=Preprocessing(norm=Norm.LAYER_NORM))
    with pytest.raises(InvalidArgument, match=r"3/res normalises every token.*decode\(acts, h\)"):
        d.decode(torch.zeros(2, 7))


def test_another_width_is_refused_with_both_widths():
    with pytest.raises(WidthMismatch, match="res of width 4, and the hidden states are 6 wide"):
        make(arrays()).encode(torch.zeros(2, 6))
    with pytest.raises(WidthMismatch, match="6 activations for the 7 features at 3/res"):
        make(arrays()).decode(torch.zeros(2, 6))


def test_shapes_that_do_not_go_together_are_refused_by_name():
    a = arrays()
    tensors = {name: torch.from_numpy(getattr(a, name)) for name in ("b_enc", "W_dec", "b_dec")}
    with pytest.raises(InvalidArgument, match=r"x: W_enc has shape \[4, 7\], expected \[7, 4\]"):
        TensorsInMemory({"W_enc": torch.from_numpy(a.W_enc.T), **tensors}, "x")


def test_a_dictionary_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(arrays()).tap = Tap.Z  # type: ignore[misc]


def test_directions_are_unit_rows_in_the_order_of_the_features():
    a = arrays()
    rows = make(a).directions().numpy()
    np.testing.assert_allclose(rows, a.W_dec / np.linalg.norm(a.W_dec, axis=1, keepdims=True), rtol=1e-5)


def test_directions_of_tiny_and_huge_rows_are_unit_too():
    a = arrays()
    a.W_dec[0] *= 1e-30
    a.W_dec[1] *= 1e30
    np.testing.assert_allclose(np.linalg.norm(make(a).directions().numpy(), axis=1), 1, rtol=1e-5)


class Writer:
    """A model whose attention writes z of width 4 into a stream of width 6."""

    def __init__(self, *, d_in: int = 4, gain: bool = True) -> None:
        rng = np.random.default_rng(9)
        self.W_O = rng.normal(size=(6, d_in)).astype(np.float32)
        self.gain = rng.uniform(0.5, 2, 6).astype(np.float32) if gain else None
        self.asked: list[int] = []

    def attention_writer(self, layer: int) -> tuple[Tensor, Tensor | None]:
        self.asked.append(layer)
        return torch.from_numpy(self.W_O), None if self.gain is None else torch.from_numpy(self.gain)


@pytest.mark.parametrize("gain", [False, True])
def test_directions_on_z_are_projected_through_the_model(gain: bool):
    a, model = arrays(), Writer(gain=gain)
    expected = a.W_dec @ model.W_O.T * (1 if model.gain is None else model.gain)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    rows = make(a, tap=Tap.Z, site=Site.parse("3/att")).directions(model)
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert model.asked == [3]


def test_a_gain_turns_the_direction():
    a = arrays()
    z = make(a, tap=Tap.Z)
    with_gain, without = z.directions(Writer()), z.directions(Writer(gain=False))
    assert float((with_gain * without).sum(1).min()) < 0.99


def test_directions_on_z_without_a_model_or_with_a_wrong_one_are_refused():
    z = make(arrays(), tap=Tap.Z, site=Site.parse("3/att"))
    with pytest.raises(WidthMismatch, match=r"3/att was trained on z.*width 4.*directions\(model\)"):
        z.directions()
    with pytest.raises(WidthMismatch, match=r"z of width 4, .* layer 3 maps width 5 to d_model 6"):
        z.directions(Writer(d_in=5))


def test_a_model_changes_nothing_where_the_tap_is_in_the_stream():
    d, model = make(arrays()), Writer()
    torch.testing.assert_close(d.directions(model), d.directions(), rtol=0, atol=0)
    assert model.asked == []


def test_folding_leaves_the_reconstruction_and_puts_thresholds_at_one():
    a, h = arrays(), hidden(64, 4)
    d = make(a, preprocessing=Preprocessing(subtract_b_dec=True))
    f = d.fold()
    torch.testing.assert_close(f.decode(f.encode(h)), d.decode(d.encode(h)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(f.encode(h) * torch.from_numpy(a.threshold), d.encode(h), rtol=1e-4, atol=1e-5)
    assert isinstance(f.activation, JumpReLU)
    assert f.activation.threshold.tolist() == [1.0] * 7
    np.testing.assert_allclose(f.W_dec.numpy(), a.W_dec * a.threshold[:, None], rtol=1e-5)
    np.testing.assert_allclose(f.W_enc.numpy(), a.W_enc / a.threshold[:, None], rtol=1e-5)


def test_folding_leaves_directions():
    d = make(arrays())
    torch.testing.assert_close(d.fold().directions(), d.directions())


def test_folding_without_positive_jumprelu_thresholds_is_refused():
    with pytest.raises(InvalidArgument, match="3/res has activation relu"):
        make(arrays(), ReLU()).fold()
    a = arrays()
    a.threshold[[2, 5]] = 0, -1
    with pytest.raises(InvalidArgument, match=r"2 of 7 thresholds at 3/res .* \[2, 5\]"):
        make(a).fold()


def test_sizes_read_nothing_and_directions_read_the_decoder_alone_once():
    weights = Counting(arrays())
    d = lazy(weights)
    assert (d.n_features, d.d_in, str(d)[:20]) == (7, 4, "Dictionary(3/res, 7 ")
    assert weights.reads == []
    d.directions()
    d.directions()
    assert weights.reads == ["W_dec"]


def test_encode_does_not_read_the_decoder():
    weights = Counting(arrays())
    lazy(weights).encode(hidden(2, 4))
    assert sorted(weights.reads) == ["W_enc", "b_enc", "threshold"]


def test_folded_directions_read_decoder_and_thresholds_alone():
    weights = Counting(arrays())
    lazy(weights).fold().directions()
    assert sorted(weights.reads) == ["W_dec", "threshold"]


def test_unloading_forgets_and_reads_again_to_the_same_values():
    weights = Counting(arrays())
    d = lazy(weights)
    before = d.W_dec.clone()
    d.unload()
    torch.testing.assert_close(d.W_dec, before, rtol=0, atol=0)
    assert weights.reads == ["W_dec", "W_dec"]


def test_moving_is_lazy_and_keeps_the_function():
    weights, h = Counting(arrays()), hidden(3, 4)
    d = lazy(weights)
    moved = d.to(dtype=torch.float64)
    assert weights.reads == []
    assert moved.W_dec.dtype is torch.float64
    torch.testing.assert_close(moved.decode(moved.encode(h)).float(), d.decode(d.encode(h)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_values_that_are_not_finite_name_file_tensor_and_rows(name: str, value: float):
    a = arrays()
    array = getattr(a, name)
    array[(2, 1) if array.ndim == 2 else 2] = value
    with pytest.raises(BadFile, match=rf"counting.safetensors: tensor '{name}' .* 1 of \d rows \(first rows \[2\]\)"):
        getattr(lazy(Counting(a)), name)


def test_a_decoder_row_of_zeros_has_no_direction_and_leaves_all_else_as_it_is():
    a = arrays()
    whole = lazy(Counting(a)).directions()
    a.W_dec[[1, 4]] = 0
    d = lazy(Counting(a))
    others = [0, 2, 3, 5, 6]
    assert torch.equal(d.directions()[others], whole[others])
    assert not d.directions()[[1, 4]].any()
    assert torch.isfinite(d.decode(torch.ones(1, 7))).all()


def test_a_decoder_row_that_is_not_finite_has_no_direction_and_cannot_be_decoded():
    a = arrays()
    whole = lazy(Counting(a)).directions()
    a.W_dec[3, 1] = np.inf
    d = lazy(Counting(a))
    assert torch.equal(d.directions()[[0, 1, 2, 4, 5, 6]], whole[[0, 1, 2, 4, 5, 6]])
    assert not d.directions()[3].any()
    with pytest.raises(BadFile, match=r"tensor 'W_dec' has NaN or infinite values in 1 of 7 rows .*\[3\]"):
        d.decode(torch.ones(1, 7))


def test_an_encoder_row_of_zeros_is_a_dead_feature_and_no_error():
    a = arrays()
    a.W_enc[1] = 0
    assert lazy(Counting(a)).encode(hidden(2, 4)).shape == (2, 7)


def test_a_z_feature_that_the_model_does_not_write_is_refused():
    a, model = arrays(), Writer()
    model.W_O[:] = 0
    with pytest.raises(BadFile, match="takes every row of 'W_dec' to zeros"):
        lazy(Counting(a), Tap.Z).directions(model)
