"""What saeflow assumes of a language model, on models that others trained; `make test-real` fetches and runs them.

Not part of `make test`: the two take a download of 330 MB and 1.6 GB of disk.
"""

from __future__ import annotations

import pytest
import torch

from saeflow.errors import SaeflowError
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Add, Rescale
from saeflow.sources.activations import ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.fetch_packaged_model import check, get_model
from saeflow.sources.model import load_model
from saeflow.sources.packaged_models import CHECK_TEXT, MODELS, model_folder

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("default")]

TEXTS = [CHECK_TEXT, "def area(width, height):\n    return width * height\n", "Once upon a time there was a fox."]
ANSWERS = {"smollm2-135m": " Paris.", "gemma-3-270m": " the capital of the country of France."}


@pytest.fixture(scope="module", params=sorted(MODELS))
def name(request):
    try:
        get_model(request.param)
    except SaeflowError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return load_model(name)


@pytest.fixture(scope="module")
def tokens(model):
    return model.tokenize(TEXTS)


@pytest.fixture(scope="module")
def sites(model):
    return [Site(layer, part) for layer in range(model.n_layers) for part in Part]


@pytest.fixture(scope="module")
def captured(model, tokens, sites):
    places = [*sites, *((layer, Tap.Z) for layer in range(model.n_layers))]
    return model.capture(tokens, places, inputs=range(model.n_layers), logits=True)


def test_the_converted_model_has_the_loss_that_is_stated(name, model):
    low, high = MODELS[name].loss
    assert low <= check(MODELS[name], model_folder(name)) <= high
    assert model.name == name
    assert model.prepend_bos == MODELS[name].prepend_bos
    assert (model.n_layers, model.d_model) == (MODELS[name].n_layers, MODELS[name].d_model)
    assert model.hf_model.num_parameters() == MODELS[name].n_parameters
    assert len(model.hf_model.get_input_embeddings().weight) == MODELS[name].n_vocab


def test_what_comes_in_and_the_two_parts_add_up_to_what_goes_out_at_every_layer(model, tokens, captured):
    real = tokens.attention_mask.bool()
    for layer in range(model.n_layers):
        parts = [captured[Site(layer, part)][real].double() for part in (Part.ATT, Part.MLP)]
        out = captured[Site(layer, Part.RES)][real].double()
        gap = (captured.inputs[layer][real].double() + parts[0] + parts[1] - out).norm(dim=-1) / out.norm(dim=-1)
        assert gap.max() < 1e-6, f"layer {layer}: {gap.max()}"


def test_captured_residuals_are_the_hidden_states_of_the_model_and_capture_changes_no_logit(model, tokens, captured):
    real = tokens.attention_mask.bool()
    with torch.no_grad():
        out = model.hf_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
        )
    assert torch.equal(out.logits, captured.logits)
    for layer in range(model.n_layers - 1):  # the last entry is after the final norm
        assert torch.equal(out.hidden_states[layer + 1][real], captured[Site(layer, Part.RES)][real])


def test_z_is_what_the_output_projection_reads(model, tokens, captured):
    real = tokens.attention_mask.bool()
    for layer in range(model.n_layers):
        block = model.block(layer)
        with torch.no_grad():
            att = block.get_submodule(model.architecture.o_proj)(captured[layer, Tap.Z])
            if model.architecture.att_norm is not None:
                att = block.get_submodule(model.architecture.att_norm)(att)
        cosine = torch.cosine_similarity(att[real], captured[Site(layer, Part.ATT)][real], dim=-1)
        assert cosine.min() > 1 - 1e-6, f"layer {layer}: {cosine.min()}"


def test_edits_that_change_nothing_change_no_bit(model, tokens, sites, captured):
    made = torch.Generator().manual_seed(0)
    dictionaries = {}
    for site in sites:
        W = torch.randn(4, model.d_model, generator=made)
        zeros = torch.zeros(4)
        dictionaries[site] = Dictionary(
            site, tap=Tap.of(site.part), W_enc=W, b_enc=zeros, W_dec=W, b_dec=W[0] * 0, activation=ReLU()
        )
    with model.intervening([Rescale((FeatureId(site, 1),), 1.0) for site in sites], dictionaries):
        assert torch.equal(model.capture(tokens, [], logits=True).logits, captured.logits)
    with model.intervening([Add({FeatureId(site, 1): 0.0}) for site in sites], dictionaries):
        assert torch.equal(model.capture(tokens, [], logits=True).logits, captured.logits)
    assert torch.equal(model.capture(tokens, [], logits=True).logits, captured.logits)  # and the hooks are gone


def test_a_cache_and_padding_on_the_left_give_what_a_pass_without_them_gives(model):
    prompts = ["The capital of France is", "Once upon a time, in a small town by the sea, there"]
    alone = []
    for prompt in prompts:
        ids = model.tokenize([prompt]).input_ids
        with torch.no_grad():
            for _ in range(4):
                following = model.hf_model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
                ids = torch.cat([ids, following], dim=1)
        alone.append(ids[0, -4:].tolist())
    rows = [model.tokenize([prompt]).input_ids[0].tolist() for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[model.pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        out = model.hf_model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert out[:, width:].tolist() == alone


def test_greedy_decoding_says_what_the_model_is_known_to_say(name, model):
    assert model.generate(["The capital of France is"], max_new_tokens=16, temperature=0)[0][0].startswith(
        ANSWERS[name]
    )


def test_kernels_of_attention_agree(name, tokens, captured):
    other = load_model(name)
    other.hf_model.set_attn_implementation("eager")
    real = tokens.attention_mask.bool()
    gap = (other.capture(tokens, [], logits=True).logits - captured.logits)[real].abs().max()
    assert gap < 2e-4 * captured.logits[real].abs().max()


def test_sixteen_bits_are_near(name, model, tokens):
    loss = model.loss(tokens)
    half = load_model(name, dtype=torch.bfloat16).loss(tokens)
    assert abs(loss.nanmean() - half.float().nanmean()) < 0.02 * loss.nanmean()
