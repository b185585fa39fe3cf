"""Texts to active features: special tokens do not count, and what is done in pieces is what is done at once."""

import pytest
import torch
from tiny_models import D_MODEL, TEXTS, tiny_model

from saeflow.errors import InvalidArgument, UnknownSite
from saeflow.ids import Part, Site
from saeflow.sources import activity
from saeflow.sources.activations import Function, JumpReLU, TopK
from saeflow.sources.activity import encoded, encoder_digest, site_groups, site_states, special_tokens, text_batches
from saeflow.sources.dictionary import Dictionary, Tap

SITES = [Site(0, Part.MLP), Site(0, Part.RES), Site(1, Part.RES)]


def dictionary(site, act=None):
    W = torch.randn(24, D_MODEL, generator=torch.Generator().manual_seed(site.layer))
    act = act or JumpReLU(torch.full((24,), 0.5))
    return Dictionary(
        site, tap=Tap.of(site.part), W_enc=W, b_enc=torch.zeros(24), W_dec=W, b_dec=W[0] * 0, activation=act
    )


def test_encoders_of_different_functions_have_different_digests():
    model = tiny_model("llama")
    functions = (torch.relu, lambda x: torch.relu(x - 1.0), torch.relu)
    first, other, again = (encoder_digest(dictionary(SITES[0], Function(f)), model) for f in functions)
    assert first == again != other


def test_special_tokens_do_not_count():
    model = tiny_model("llama")
    tokens = model.tokenize(["w5 <eos> w9", "w4"])
    assert special_tokens(model, tokens).tolist() == [[True, False, True, False], [True, False, True, True]]
    texts = [*TEXTS, "w13 <eos> w14 w15 w16"]
    ids = torch.cat([batch.tokens.input_ids[batch.real] for batch in text_batches(model, texts, texts_at_once=2)])
    assert len(ids) == sum(len([w for w in text.split() if w[0] == "w" and w != "w2"]) for text in texts)
    assert (ids > 2).all()


def test_the_number_of_tokens_can_be_limited_to_the_token():
    model = tiny_model("llama")
    assert [batch.n_tokens for batch in text_batches(model, TEXTS, max_tokens=12, texts_at_once=2)] == [12]
    assert sum(batch.n_tokens for batch in text_batches(model, TEXTS, max_tokens=14, texts_at_once=1)) == 14
    with pytest.raises(InvalidArgument, match="1 tokens that are not special, and 2 or more"):
        list(text_batches(model, ["w5"]))
    assert [batch.n_tokens for batch in text_batches(model, ["w5"], least=1)] == [1]


def test_states_are_those_of_a_capture_site_by_site():
    model, made = tiny_model("gemma2"), {site: dictionary(site) for site in SITES}
    for batch in text_batches(model, TEXTS, texts_at_once=2):
        states = site_states(model, made, SITES, batch.tokens)
        captured = model.capture(batch.tokens, SITES)
        assert list(states) == SITES
        assert all(torch.equal(states[site], captured[site]) for site in SITES)
    with pytest.raises(UnknownSite):
        site_states(model, {Site(9, Part.RES): dictionary(Site(9, Part.RES))}, [Site(9, Part.RES)], batch.tokens)


@pytest.mark.parametrize("act", [None, TopK(3)])
def test_encoding_in_pieces_is_encoding(monkeypatch, act):
    monkeypatch.setattr(activity, "ENCODED_AT_ONCE", 7)
    d, h = dictionary(SITES[0], act), torch.randn(30, D_MODEL, requires_grad=True)
    pieces = list(encoded(d, h))
    assert [len(piece) for piece in pieces] == [7, 7, 7, 7, 2]
    assert not any(piece.requires_grad for piece in pieces)
    torch.testing.assert_close(torch.cat(pieces), d.encode(h))


@pytest.mark.parametrize(("at_once", "sizes"), [(None, [3]), (1, [1, 1, 1]), (2, [2, 1]), (9, [3])])
def test_a_group_of_dictionaries_is_unloaded_when_it_is_done(at_once, sizes):
    made = {site: dictionary(site) for site in SITES}
    found = []
    for group in site_groups(made, SITES, at_once):
        held = [site for site in SITES if "W_enc" in vars(made[site])]
        assert not held
        assert all(made[site].W_enc is not None for site in group)
        found += [list(group)]
    assert [len(group) for group in found] == sizes
    assert [site for group in found for site in group] == SITES
    assert not any("W_enc" in vars(d) for d in made.values())
