"""The output score agrees with the published procedure by hand; features that speak score high, others do not."""

from __future__ import annotations

import pytest
import torch

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite
from saeflow.ids import FeatureId, Part, Site
from saeflow.sources.activations import JumpReLU, ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing
from saeflow.steering import output_score
from saeflow.steering.output_score import output_scores

from ..sources.tiny_models import D_MODEL, N_LAYERS, VOCAB, tiny_model
from .dictionaries import N_FEATURES, random_dictionary

PROMPTS = ("w5 w9 w12", "w30 w41")
K = 5


def features(site, n=N_FEATURES):
    return [FeatureId(site, index) for index in range(n)]


def by_hand(model, dictionary, index, prompt, factor):
    """One feature, one prompt: encode, raise, decode, add the error back; sort the whole vocabulary."""
    tokens = model.tokenize([prompt])

    def amplify(h):
        acts = dictionary.encode(h)
        error = h - dictionary.decode(acts, h)
        acts[:, -1, index] += factor * acts[:, -1].max()
        return dictionary.decode(acts, h) + error

    with model.intervening({dictionary.point: amplify}):
        logits = model.capture(tokens, [], logits=True).logits[0, -1]
    p = torch.softmax(logits, dim=0)
    hf = model.hf_model
    lens = hf.get_output_embeddings()(hf.model.norm(dictionary.written_rows(model)))[index]
    promoted = torch.topk(torch.softmax(lens, dim=0), K).indices.tolist()
    order = torch.argsort(p, descending=True).tolist()
    rank = min(order.index(token) for token in promoted)
    return (1 - rank / len(p)) * p[promoted].max().item()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("part", Part)
def test_scores_are_those_of_the_published_procedure(family, part):
    model, site = tiny_model(family), Site(1, part)
    dictionary = random_dictionary(site)
    found = output_scores(model, {site: dictionary}, features(site), prompts=PROMPTS[:1], factor=3.0, k=K)
    assert list(found) == features(site)
    for feature, score in found.items():
        expected = by_hand(model, dictionary, feature.index, PROMPTS[0], 3.0)
        assert score == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert max(found.values()) > 1.05 * min(found.values())


@pytest.mark.parametrize(
    "more",
    [
        {"tap": Tap.Z, "width": 32},
        {"preprocessing": Preprocessing(norm=Norm.RESCALE)},
        {"preprocessing": Preprocessing(center=True)},
    ],
    ids=["z", "normalised", "centred"],
)
def test_dictionaries_of_every_kind_are_turned_up_in_the_tensor_they_read(more):
    model, site = tiny_model("llama"), Site(1, Part.ATT)
    dictionary = random_dictionary(site, **more)
    found = output_scores(model, {site: dictionary}, features(site, 4), prompts=PROMPTS[1:], factor=2.0, k=K)
    for feature, score in found.items():
        assert score == pytest.approx(by_hand(model, dictionary, feature.index, PROMPTS[1], 2.0), rel=1e-3, abs=1e-7)


def test_a_transcoder_is_turned_up_where_it_writes_by_what_it_reads():
    model, site = tiny_model("llama"), Site(1, Part.MLP)
    dictionary = random_dictionary(site, tap=Tap.MLP_IN, preprocessing=Preprocessing(norm=Norm.RESCALE))
    tokens = model.tokenize(PROMPTS[:1])
    loudest = dictionary.encode(model.capture(tokens, [dictionary.point])[dictionary.point])[0, -1].max()
    found = output_scores(model, {site: dictionary}, features(site, 4), prompts=PROMPTS[:1], factor=2.0, k=K)
    for feature, score in found.items():
        row = dictionary.W_dec[feature.index]

        def write(h, row=row):
            h = h.clone()
            h[:, -1] += 2.0 * loudest * row
            return h

        with model.intervening({site: write}):
            p = torch.softmax(model.capture(tokens, [], logits=True).logits[0, -1], dim=0)
        promoted = [token.id for token in model.logit_lens(row[None], K)[0]]
        best = p[promoted].max()
        assert score == pytest.approx(((1 - (p > best).sum() / len(p)) * best).item(), rel=1e-4)


def test_several_prompts_give_the_mean_and_batches_do_not_matter(monkeypatch):
    model, site = tiny_model("llama"), Site(1, Part.RES)
    made = {site: random_dictionary(site)}
    both = output_scores(model, made, features(site), prompts=PROMPTS, k=K)
    alone = [output_scores(model, made, features(site), prompts=[prompt], k=K) for prompt in PROMPTS]
    for feature, score in both.items():
        assert score == pytest.approx(sum(scores[feature] for scores in alone) / 2, rel=1e-6)
    told = []
    monkeypatch.setattr(output_score, "AT_ONCE", 3)
    split = output_scores(model, made, features(site), prompts=PROMPTS, k=K, progress=lambda *news: told.append(news))
    assert split == pytest.approx(both, rel=1e-5, abs=1e-9)
    assert told == [(done, N_FEATURES, "1/res") for done in (0, 3, 6, 9)]


def speaking(model, site, rows):
    """A dictionary with given rows, of which the first fires strongly on everything."""
    n = len(rows)
    bias = torch.full((n,), -1.0)
    bias[0] = 5.0
    return Dictionary(
        site,
        tap=Tap.of(site.part),
        W_enc=torch.zeros(n, D_MODEL),
        b_enc=bias,
        W_dec=rows,
        b_dec=torch.zeros(D_MODEL),
        activation=ReLU(),
    )


def test_a_row_that_speaks_scores_one_and_one_too_weak_to_speak_what_the_model_says_anyway():
    model, site = tiny_model("llama"), Site(N_LAYERS - 1, Part.RES)
    with torch.no_grad():
        model.hf_model.get_output_embeddings().weight *= 8  # a model sure of what it says
    head, gain = model.hf_model.get_output_embeddings().weight, model.hf_model.model.norm.weight
    token = head[7] * gain
    weak = token / token.norm() * 1e-6
    rows = torch.stack([20 * token, weak]).detach()
    scores = output_scores(model, {site: speaking(model, site, rows)}, features(site, 2), prompts=PROMPTS, k=1)
    said, silent = scores.values()
    assert said > 0.95
    # the second promotes the same token, too weakly to change the model: its probability stays what it was
    lens = model.logit_lens(rows, 1)
    assert lens[0][0].id == lens[1][0].id
    plain = []
    for prompt in PROMPTS:
        p = torch.softmax(model.capture(model.tokenize([prompt]), [], logits=True).logits[0, -1], dim=0)
        best = p[lens[1][0].id]
        plain.append((1 - (p > best).sum().item() / VOCAB) * best.item())
    assert silent == pytest.approx(sum(plain) / 2, rel=1e-2)
    assert silent < said


def test_a_prompt_on_which_nothing_fires_is_left_out_and_none_is_an_error():
    model, site = tiny_model("llama"), Site(1, Part.RES)
    made = random_dictionary(site)
    loudest = {
        prompt: made.encode(model.capture(model.tokenize([prompt]), [site])[site])[0, -1].max().item()
        for prompt in PROMPTS
    }
    quiet, loud = sorted(PROMPTS, key=loudest.__getitem__)
    assert loudest[quiet] < loudest[loud]
    cut = JumpReLU(torch.full((N_FEATURES,), (loudest[quiet] + loudest[loud]) / 2))
    half = {site: random_dictionary(site, activation=cut)}
    some = features(site, 3)
    assert output_scores(model, half, some, prompts=PROMPTS, k=K) == output_scores(
        model, half, some, prompts=[loud], k=K
    )
    with pytest.raises(InvalidArgument, match=r"no feature at 1/res is active at the end of 'w.*Give other prompts"):
        output_scores(model, half, some, prompts=[quiet], k=K)
    with pytest.raises(InvalidArgument, match="no prompt"):
        output_scores(model, half, some, prompts=[], k=K)


def test_what_cannot_be_scored_is_refused():
    model, site = tiny_model("llama"), Site(1, Part.RES)
    made = {site: random_dictionary(site)}
    with pytest.raises(UnknownSite):
        output_scores(model, made, [FeatureId(Site(0, Part.RES), 1)], prompts=PROMPTS)
    with pytest.raises(UnknownFeature):
        output_scores(model, made, [FeatureId(site, N_FEATURES)], prompts=PROMPTS)
    with pytest.raises(InvalidArgument, match="factor = 0"):
        output_scores(model, made, features(site), prompts=PROMPTS, factor=0.0)
    with pytest.raises(InvalidArgument, match=f"1 to {VOCAB}"):
        output_scores(model, made, features(site), prompts=PROMPTS, k=VOCAB + 1)
