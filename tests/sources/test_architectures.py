"""The map of module paths: every family is found, its paths exist, and a stranger is told what is known."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CONFIGS, N_LAYERS, TEXTS, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, FalconConfig, OPTConfig

from saeflow.errors import UnknownArchitecture
from saeflow.ids import Part, Site
from saeflow.sources.architectures import ARCHITECTURES, Point, Tap, View, architecture_of
from saeflow.sources.model import LanguageModel


def test_every_mapped_family_has_a_tiny_model():
    assert set(CONFIGS) == set(ARCHITECTURES)


def test_an_unknown_architecture_is_refused_with_those_known():
    config = OPTConfig(hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    hf_model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnknownArchitecture, match=r"'opt'.*gemma2.*gpt_neox.*llama") as caught:
        LanguageModel(hf_model, tiny_tokenizer())
    assert all(known in str(caught.value) for known in ARCHITECTURES)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_path_leads_to_a_module(model_type):
    model = tiny_model(model_type)
    found = architecture_of(model.hf_model.config)
    trunk = model.hf_model.get_submodule(found.trunk)
    assert isinstance(trunk.get_submodule(found.embed), torch.nn.Embedding)
    assert trunk.get_submodule(found.final_norm).weight.shape == (model.d_model,)
    block = trunk.get_submodule(found.blocks)[0]
    for tap in Tap:
        block.get_submodule(found.module(tap))


@pytest.mark.parametrize("model_type", CONFIGS)
@torch.no_grad()
def test_block_input_plus_what_both_parts_write_is_the_block_output(model_type):
    model = tiny_model(model_type)
    sites = [Site(layer, part) for layer in range(N_LAYERS) for part in Part]
    held = model.capture(model.tokenize(TEXTS), sites, inputs=range(N_LAYERS))
    for layer in range(N_LAYERS):
        att, mlp, res = (held[Site(layer, part)] for part in (Part.ATT, Part.MLP, Part.RES))
        assert min(att.norm(), mlp.norm()) > 0.1  # both parts do something
        assert (held.inputs[layer] + att + mlp - res).abs().max() <= 1e-5 * res.abs().max().clamp(min=1)


def test_a_site_names_the_point_of_its_own_tensor():
    assert Point.at(Site.parse("2/att")) == Point(2, Tap.ATT) != Point(2, Tap.Z)
    assert [Tap.of(part).part for part in Part] == list(Part)
    assert Tap.Z.part is Part.ATT
    assert str(Point(2, Tap.Z)) == "2/z"
    assert not Point(2, Tap.ATT) != (2, Tap.ATT)  # noqa: SIM202 - `!=` is what is tested
    assert Point(2, Tap.ATT, View.NORM) != (2, Tap.ATT)


@pytest.mark.parametrize(
    ("told", "norms", "parallel"),
    [
        ({}, ("input_layernorm", "input_layernorm"), True),
        ({"parallel_attn": False}, ("input_layernorm", "post_attention_layernorm"), False),
        ({"new_decoder_architecture": True}, ("ln_attn", "ln_mlp"), True),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, ("input_layernorm",) * 2, True),
    ],
)
def test_the_configuration_of_a_falcon_says_which_norms_its_parts_have(told, norms, parallel):
    found = architecture_of(FalconConfig(**told))
    assert ((found.first_norm, found.mlp_norm), found.parallel) == (norms, parallel)


@torch.no_grad()
def test_what_the_mlp_writes_is_kept_though_the_block_adds_to_it_in_place():
    model = tiny_model("falcon")
    tokens = model.tokenize(TEXTS[:1])
    mlp, att = (model.capture(tokens, [Site(1, part)])[Site(1, part)] for part in (Part.MLP, Part.ATT))
    both = model.capture(tokens, [Site(1, Part.MLP), Site(1, Part.ATT), Site(1, Part.RES)])
    assert torch.equal(both[Site(1, Part.MLP)], mlp)
    assert att.norm() > 0.1


@torch.no_grad()
def test_what_a_granite_part_returns_is_multiplied_on_its_way_to_the_stream():
    model = tiny_model("granite")
    tokens = model.tokenize(TEXTS[:1])
    site, module = Site(1, Part.MLP), Point(1, Tap.MLP, View.MODULE)
    held = model.capture(tokens, [site, module])
    torch.testing.assert_close(held[site], 0.22 * held[module])
    assert torch.equal(model.part_gain(site), torch.full((model.d_model,), 0.22))
    before = model.capture(tokens, [Site(1, Part.RES)])[Site(1, Part.RES)]
    with model.intervening({site: lambda h: h + 1.0}):
        after = model.capture(tokens, [Site(1, Part.RES)])[Site(1, Part.RES)]
    torch.testing.assert_close(after, before + 1.0, atol=1e-4, rtol=1e-4)
