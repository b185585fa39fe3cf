"""What a module does is asked of the module: weights in other forms give the directions they are run with."""

from __future__ import annotations

import pytest
import torch
from tiny_models import D_MODEL, tiny_model
from torch import Tensor, nn

from saeflow.errors import InvalidArgument
from saeflow.sources.modules import gain_of


class Codes(nn.Module):
    """Integer codes in `weight` and a scale a row beside it, as 8-bit layers hold a matrix."""

    def __init__(self, dense: Tensor) -> None:
        super().__init__()
        peak = dense.abs().amax(dim=1, keepdim=True)
        self.weight = nn.Parameter((dense / peak * 127).round().to(torch.int8), requires_grad=False)
        self.scale = peak / 127

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.float() * self.scale).T


class Adapted(nn.Module):
    """A frozen `weight` and a product of two thin matrices that is added, with a bias."""

    def __init__(self, dense: Tensor) -> None:
        super().__init__()
        self.weight, self.on = nn.Parameter(dense), True
        self.thin = torch.randn(dense.shape[0], 2) @ torch.randn(2, dense.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight + (self.thin if self.on else 0)).T + 3.0


class Taken(nn.Linear):
    """A layer whose values are elsewhere, as in an offloaded model: its own forward fetches them."""

    def __init__(self, dense: Tensor) -> None:
        super().__init__(dense.shape[1], dense.shape[0], bias=False, device="meta")
        self.values = dense
        self._hf_hook = type("Hook", (), {"execution_device": "cpu", "weights_map": {"weight": dense}})()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (as nn.Linear calls it)
        return input @ self.values.T


@pytest.mark.parametrize("form", [Codes, Adapted, Taken])
def test_attention_features_and_the_logit_lens_follow_what_the_modules_map_rows_to(form):
    torch.manual_seed(1)
    model = tiny_model("llama")
    attention = model.block(1).self_attn
    sizes = torch.logspace(-1.5, 1.5, D_MODEL)[:, None]  # channels differ in size, so that a lost scale shows
    attention.o_proj = form(torch.randn(D_MODEL, 32) * sizes)
    model.hf_model.lm_head = form(model.hf_model.lm_head.weight.detach() * torch.rand(48, 1))
    rows = torch.randn(6, 32)
    with torch.no_grad():
        told = attention.o_proj(rows) - attention.o_proj(torch.zeros(1, 32))
        gained = torch.randn(6, D_MODEL)
        head = model.hf_model.lm_head
        promoted = head(gained * model.trunk.norm.weight) - head(torch.zeros(1, D_MODEL))
    torch.testing.assert_close(rows @ model.attention_writer(1)[0].T, told, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.unembed(gained), promoted, atol=1e-4, rtol=1e-4)
    assert model.device.type == "cpu"


def test_an_adapter_that_is_switched_off_no_longer_counts():
    model = tiny_model("llama")
    model.block(1).self_attn.o_proj = adapted = Adapted(torch.randn(D_MODEL, 32))
    assert model.attention_writer(1)[0] is model.attention_writer(1)[0]
    adapted.on = False
    torch.testing.assert_close(model.attention_writer(1)[0], adapted.weight.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("d", [24, 25])
def test_the_gain_of_a_norm_is_its_weight_whatever_bias_it_adds(d):
    norm = nn.LayerNorm(d)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    torch.testing.assert_close(
        gain_of(norm, d, torch.float32, centred=True), norm.weight.detach(), atol=1e-5, rtol=1e-5
    )


def test_placeholders_and_modules_that_cannot_be_run_are_refused_in_a_sentence():
    model = tiny_model("llama")
    model.block(1).self_attn.o_proj = nn.Bilinear(32, 32, D_MODEL)
    with pytest.raises(InvalidArgument, match="what a Bilinear of the model does cannot be found out"):
        model.attention_writer(1)
    model.hf_model.to("meta")
    with pytest.raises(InvalidArgument, match="placeholders without values"):
        model.tokenize(["w5"])
