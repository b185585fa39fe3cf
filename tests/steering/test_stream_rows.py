"""Scales are the lengths of folded rows in the stream, checked against the model's own modules."""

from __future__ import annotations

import pytest
import torch

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite, WidthMismatch
from saeflow.ids import FeatureId, Part, Site
from saeflow.sources.activations import BatchTopK, JumpReLU, ReLU, TopK
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Norm, Preprocessing
from saeflow.steering.sizes import fold_scales, has_threshold, stream_rows, typical_activations

from ..sources.tiny_models import TEXTS, tiny_model
from .dictionaries import N_FEATURES, random_dictionaries, random_dictionary

RES, MLP, ATT = (Site(1, part) for part in (Part.RES, Part.MLP, Part.ATT))
Z_WIDTH = 32  # of the tiny families with heads of their own width


def at(site, *indices):
    return [FeatureId(site, index) for index in indices]


def test_a_scale_is_the_length_of_the_folded_row():
    dictionaries = random_dictionaries(RES, MLP)
    features = [*at(RES, 3, 0), *at(MLP, 9)]
    found = fold_scales(dictionaries, features)
    assert list(found) == sorted(features)
    for feature, scale in found.items():
        folded = dictionaries[feature.site].fold().W_dec[feature.index]
        assert scale == pytest.approx(folded.norm().item(), rel=1e-6)


def test_one_threshold_for_all_counts_for_each():
    dictionary = random_dictionary(RES, activation=BatchTopK(torch.tensor(0.7)))
    found = fold_scales({RES: dictionary}, at(RES, 2))
    assert found[FeatureId(RES, 2)] == pytest.approx(0.7 * dictionary.W_dec[2].norm().item(), rel=1e-6)


@pytest.mark.parametrize("activation", [ReLU(), TopK(3), JumpReLU(torch.zeros(N_FEATURES))])
def test_without_a_threshold_a_typical_activation_takes_its_place(activation):
    dictionary = random_dictionary(RES, activation=activation)
    assert not has_threshold(dictionary, FeatureId(RES, 4))
    found = fold_scales({RES: dictionary}, at(RES, 4), activity={FeatureId(RES, 4): 2.5})
    assert found[FeatureId(RES, 4)] == pytest.approx(2.5 * dictionary.W_dec[4].norm().item(), rel=1e-6)
    for activity in (None, {}, {FeatureId(RES, 4): 0.0}):
        with pytest.raises(InvalidArgument, match=r"1/res/4 cannot be folded.*typical_activations"):
            fold_scales({RES: dictionary}, at(RES, 4), activity=activity)


def test_a_threshold_comes_before_an_activity():
    dictionaries = random_dictionaries(RES)
    feature = FeatureId(RES, 1)
    assert has_threshold(dictionaries[RES], feature)
    assert fold_scales(dictionaries, [feature], activity={feature: 99.0}) == fold_scales(dictionaries, [feature])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_of_z_are_as_long_as_what_the_model_writes(family):
    model = tiny_model(family)
    width = Z_WIDTH if family == "llama" else model.d_model
    dictionary = random_dictionary(ATT, width=width, tap=Tap.Z)
    found = fold_scales({ATT: dictionary}, at(ATT, 0, 7), model=model)
    tokens = model.tokenize(TEXTS[:1])
    plain = model.capture(tokens, [ATT])[ATT]
    for feature, scale in found.items():
        step = dictionary.activation.threshold[feature.index] * dictionary.W_dec[feature.index]
        with model.intervening({(1, Tap.Z): lambda z, step=step: z + step}):
            written = model.capture(tokens, [ATT])[ATT] - plain
        assert written.norm(dim=-1).mean().item() == pytest.approx(scale, rel=1e-4)
    with pytest.raises(WidthMismatch, match="output projection"):
        fold_scales({ATT: dictionary}, at(ATT, 0))


def test_behind_a_norm_the_mean_over_tokens_is_taken():
    model = tiny_model("gemma2")
    dictionary = random_dictionary(ATT, width=Z_WIDTH, tap=Tap.Z)
    found = fold_scales({ATT: dictionary}, at(ATT, 5), model=model, texts=TEXTS)
    block = model.block(1)
    norm = block.post_attention_layernorm
    inverse = []
    for text in TEXTS:
        z = model.capture(model.tokenize([text]), [(1, Tap.Z)])[1, Tap.Z][0, 1:]  # without BOS
        before = block.self_attn.o_proj(z)
        inverse.append(torch.rsqrt(before.pow(2).mean(-1) + norm.eps))
    row = block.self_attn.o_proj.weight @ dictionary.W_dec[5] * (1 + norm.weight)
    expected = dictionary.activation.threshold[5] * row.norm() * special_free(model, inverse)
    assert found[FeatureId(ATT, 5)] == pytest.approx(expected.item(), rel=1e-4)
    with pytest.raises(InvalidArgument, match=r"1/att write depends on the token.*--no-fold"):
        fold_scales({ATT: dictionary}, at(ATT, 5), model=model)


def special_free(model, values):
    """The mean of some values a token, over the tokens of TEXTS that are not special."""
    kept = []
    for text, some in zip(TEXTS, values, strict=True):
        ids = model.tokenize([text]).input_ids[0, 1:]
        kept += [v for i, v in zip(ids.tolist(), some, strict=True) if i not in model.tokenizer.all_special_ids]
    return torch.stack(kept).mean()


def test_a_dictionary_that_normalises_writes_at_the_scale_of_its_tokens():
    model = tiny_model("llama")
    dictionary = random_dictionary(RES, preprocessing=Preprocessing(norm=Norm.RESCALE))
    found = fold_scales({RES: dictionary}, at(RES, 2), model=model, texts=TEXTS)
    scales = [
        model.capture(model.tokenize([text]), [RES])[RES][0, 1:].norm(dim=-1) / model.d_model**0.5 for text in TEXTS
    ]
    expected = dictionary.activation.threshold[2] * dictionary.W_dec[2].norm() * special_free(model, scales)
    assert found[FeatureId(RES, 2)] == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(InvalidArgument, match=r"1/res write depends on the token"):
        fold_scales({RES: dictionary}, at(RES, 2))


def test_what_a_transcoder_writes_is_not_scaled_by_what_it_normalises():
    normed = Preprocessing(norm=Norm.RESCALE)
    dictionary = random_dictionary(MLP, tap=Tap.MLP_IN, preprocessing=normed)
    found = fold_scales({MLP: dictionary}, at(MLP, 2))
    expected = dictionary.activation.threshold[2] * dictionary.W_dec[2].norm()
    assert found[FeatureId(MLP, 2)] == pytest.approx(expected.item(), rel=1e-6)


def test_typical_activations_are_means_over_the_tokens_where_a_feature_fires():
    model = tiny_model("llama")
    dictionary = random_dictionary(RES)
    dictionary.b_enc[0] = -1e6  # never fires
    texts = TEXTS * 4  # more than one batch
    found = typical_activations(model, {RES: dictionary}, at(RES, *range(N_FEATURES)), texts)
    assert FeatureId(RES, 0) not in found
    for index in range(1, N_FEATURES):
        fired = []
        for text in TEXTS:
            tokens = model.tokenize([text])
            acts = dictionary.encode(model.capture(tokens, [RES])[RES])[0, :, index]
            special = torch.isin(tokens.input_ids[0], torch.tensor(model.tokenizer.all_special_ids))
            fired += [a for a, s in zip(acts.tolist(), special.tolist(), strict=True) if a > 0 and not s]
        if not fired:
            assert FeatureId(RES, index) not in found
        else:
            assert found[FeatureId(RES, index)] == pytest.approx(sum(fired) / len(fired), rel=1e-4)
    assert len(found) > 3


def test_a_feature_that_is_not_there_is_refused():
    dictionaries = random_dictionaries(RES)
    with pytest.raises(UnknownSite, match="0/res/1 is named"):
        fold_scales(dictionaries, [FeatureId(Site(0, Part.RES), 1)])
    with pytest.raises(UnknownFeature, match=r"1/res/10 lies outside.*0 to 9"):
        fold_scales(dictionaries, at(RES, 10))


def test_rows_in_the_stream_are_those_a_dictionary_tells():
    model = tiny_model("gemma2")
    for dictionary in (random_dictionary(RES), random_dictionary(ATT, width=Z_WIDTH, tap=Tap.Z)):
        rows = stream_rows(dictionary, at(dictionary.site, 3, 8), model)
        torch.testing.assert_close(rows.float(), dictionary.written_rows(model)[[3, 8]])
