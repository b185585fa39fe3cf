"""A map of sites for a family that is not in the table: right, it holds; wrong, the first text says so."""

from __future__ import annotations

import pickle

import pytest
import torch
from tiny_models import COMMON, D_MODEL, N_LAYERS, TEXTS, tiny_hf_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, OPTConfig, PhiConfig, StableLmConfig

from saeflow.errors import InvalidArgument, UnknownArchitecture
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Add
from saeflow.sources.activations import ReLU
from saeflow.sources.architectures import Point, Tap, View
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel, load_model

LLAMA = {
    "res": "model.layers",
    "att": "self_attn",
    "mlp": "mlp",
    "mlp_in": "post_attention_layernorm",
    "z": "self_attn.o_proj",
    "norm": "model.norm",
}
GEMMA = LLAMA | {
    "att": "post_attention_layernorm",
    "mlp": "post_feedforward_layernorm",
    "mlp_in": "pre_feedforward_layernorm",
}
PHI = {
    "res": "model.layers",
    "att": "self_attn",
    "mlp": "mlp",
    "mlp_in": "input_layernorm",
    "z": "self_attn.dense",
    "norm": "model.final_layernorm",
}
THREE_HEADS = {**COMMON, "num_attention_heads": 3, "num_key_value_heads": 3}
EVERY_PLACE = [(layer, tap) for layer in range(N_LAYERS) for tap in (Tap.RES, Tap.ATT, Tap.MLP, Tap.Z, Tap.MLP_IN)]


def random_model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@pytest.mark.parametrize(("family", "sites"), [("llama", LLAMA), ("gemma2", GEMMA)])
def test_a_map_of_a_known_family_gives_what_the_table_gives(family, sites):
    by_table = LanguageModel(tiny_hf_model(family), tiny_tokenizer())
    by_map = LanguageModel(tiny_hf_model(family), tiny_tokenizer(), sites=sites)
    tokens, directions = by_table.tokenize(TEXTS), torch.randn(3, D_MODEL)
    known, mapped = by_table.capture(tokens, EVERY_PLACE), by_map.capture(tokens, EVERY_PLACE)
    assert all(torch.equal(known[place], mapped[place]) for place in EVERY_PLACE)
    assert torch.equal(by_map.unembed(directions), by_table.unembed(directions))
    assert (by_map.parallel, by_map.architecture.att_norm) == (by_table.parallel, by_table.architecture.att_norm)
    for known_part, mapped_part in zip(by_table.attention_writer(1), by_map.attention_writer(1), strict=True):
        assert (known_part is None and mapped_part is None) or torch.equal(known_part, mapped_part)


@pytest.mark.parametrize(
    ("config", "sites", "parallel", "centred"),
    [
        (PhiConfig(**THREE_HEADS), PHI, True, True),
        (StableLmConfig(**THREE_HEADS), LLAMA, False, True),
        (StableLmConfig(**THREE_HEADS, use_parallel_residual=True), LLAMA | {"mlp_in": "input_layernorm"}, True, True),
    ],
)
def test_a_family_that_is_not_in_the_table_works_by_a_map(config, sites, parallel, centred):
    hf_model = random_model(config)
    with pytest.raises(UnknownArchitecture, match=r"sites=\{'res': ..., 'att': ..., 'mlp': ...\}"):
        LanguageModel(hf_model, tiny_tokenizer())
    model = LanguageModel(hf_model, tiny_tokenizer(), sites=sites)
    assert (model.parallel, model.architecture.centred) == (parallel, centred)
    tokens = model.tokenize(TEXTS[:1])
    held = model.capture(tokens, [Site(1, part) for part in Part], inputs=[1])
    att, mlp, res = (held[Site(1, part)] for part in (Part.ATT, Part.MLP, Part.RES))
    torch.testing.assert_close(held.inputs[1] + att + mlp, res, atol=1e-5, rtol=1e-5)
    site = Site(1, Part.RES)
    rows = torch.randn(5, D_MODEL)
    d = Dictionary(
        site, tap=Tap.RES, W_enc=rows, b_enc=torch.zeros(5), W_dec=rows, b_dec=torch.zeros(D_MODEL), activation=ReLU()
    )
    with model.intervening([Add({FeatureId(site, 2): 3.0})], {site: d}):
        moved = model.capture(tokens, [site])[site]
    torch.testing.assert_close(moved, res + 3 * d.directions()[2], atol=1e-4, rtol=1e-4)
    assert model.generate(["w5 w9"], max_new_tokens=3, temperature=0)


@pytest.mark.parametrize(
    ("family", "sites", "said"),
    [
        (
            "gemma2",
            LLAMA | {"mlp_in": "pre_feedforward_layernorm"},
            "layer 0 what att .self_attn. and mlp .mlp. return",
        ),
        ("granite", LLAMA, "does not add up"),
        (
            "llama",
            {k: v for k, v in LLAMA.items() if k != "mlp_in"},
            "mlp reads neither .* Name the norm before the MLP",
        ),
        ("llama", {"res": "model.layers"}, "has the keys res. It needs res, att and mlp"),
        ("llama", LLAMA | {"resid": "x"}, "has the keys .*resid"),
        (
            "llama",
            LLAMA | {"mlp": "ffn"},
            "mlp is 'ffn', and LlamaDecoderLayer has no module 'ffn'. It has self_attn, mlp",
        ),
        ("llama", LLAMA | {"z": "self_attn.out"}, "z is 'self_attn.out', and self_attn has no module 'out'"),
        ("llama", LLAMA | {"res": "model.norm"}, "res is 'model.norm', a LlamaRMSNorm; it is the list of blocks"),
    ],
)
def test_a_map_that_is_not_the_model_s_is_refused_at_load(family, sites, said):
    with pytest.raises(InvalidArgument, match=said):
        LanguageModel(tiny_hf_model(family), tiny_tokenizer(), sites=sites)


def test_what_a_map_leaves_out_is_named_where_it_is_needed():
    sites = {key: path for key, path in LLAMA.items() if key not in ("z", "norm")}
    model = LanguageModel(tiny_hf_model("llama"), tiny_tokenizer(), sites=sites)
    assert model.capture(model.tokenize(TEXTS), [Site(1, Part.ATT)])
    for use in (
        lambda: model.capture(model.tokenize(TEXTS), [(1, Tap.Z)]),
        lambda: model.attention_writer(1),
        lambda: model.unembed(torch.ones(1, D_MODEL)),
        lambda: model.capture(model.tokenize(TEXTS), [Point(1, Tap.Z, View.PROCESSED)]),
    ):
        with pytest.raises(InvalidArgument, match=r"the map of this model's sites has no '(z|norm|v)'"):
            use()


def test_a_map_goes_with_the_name_of_the_model_to_another_process_and_to_the_same_model_with_other_beginnings(tmp_path):
    random_model(PhiConfig(**THREE_HEADS)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnknownArchitecture, match="'phi' has no map of its sites"):
        load_model(tmp_path)
    model = load_model(tmp_path, sites=PHI)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301  (made here)
    assert again.architecture == model.architecture
    tokens = model.tokenize(TEXTS)
    assert torch.equal(
        again.capture(tokens, [Site(2, Part.RES)])[Site(2, Part.RES)],
        model.capture(tokens, [Site(2, Part.RES)])[Site(2, Part.RES)],
    )


def test_parts_that_see_the_tokens_of_all_texts_in_one_list_are_refused():
    config = OPTConfig(
        vocab_size=48,
        hidden_size=D_MODEL,
        ffn_dim=40,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        word_embed_proj_dim=D_MODEL,
        max_position_embeddings=64,
    )
    sites = {"res": "model.decoder.layers", "att": "self_attn", "mlp": "fc2", "mlp_in": "final_layer_norm"}
    with pytest.raises(
        InvalidArgument, match=r"a Linear returns the tokens of all texts in one list, of shape \[\d+, 24\]"
    ):
        LanguageModel(random_model(config), tiny_tokenizer(), sites=sites)
