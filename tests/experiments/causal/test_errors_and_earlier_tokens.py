"""Errors, edits at earlier tokens and logits: the engine against one whole forward pass with a plain hook for each."""

from __future__ import annotations

import pytest
import torch

from saeflow.errors import InvalidArgument
from saeflow.experiments.causal import PreparedText, RemoveError, Trial
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Positions, Rescale
from saeflow.sources.architectures import Point

from ...sources.tiny_models import N_LAYERS
from .worlds import KINDS, N_FEATURES, TEXT, VARIANTS, active_features, dictionaries_on, language_model

POSITION, EARLIER = 9, (8, 5, 0)
WORLDS = [(variant, "jumprelu") for variant in VARIANTS] + [("llama", kind) for kind in KINDS if kind != "jumprelu"]


def read(model, dictionaries, tokens, site, position):
    """Every activation of a site at a token, by a pass of its own."""
    dictionary = dictionaries[site]
    point = Point(site.layer, dictionary.tap)
    return dictionary.encode(model.capture(tokens, [point])[point][0, position])


def without_error(dictionary, position):
    """A plain hook that puts the reconstruction of a token in its place."""

    def change(h):
        x = h[:, position]
        mean = x.mean(dim=-1, keepdim=True) if dictionary.preprocessing.center else 0
        out = h.clone()
        out[:, position] = dictionary.decode(dictionary.encode(x), x) + mean
        return out

    return {Point(dictionary.site.layer, dictionary.tap): change}


@pytest.mark.parametrize(("variant", "kind"), WORLDS)
def test_errors_earlier_tokens_and_logits_are_those_of_whole_passes(variant, kind):
    model = language_model(variant)
    tokens = model.tokenize([TEXT])
    dictionaries = dictionaries_on(model, tokens, KINDS[kind])
    text = PreparedText(model, dictionaries, tokens, layers=range(N_LAYERS))
    for layer in range(N_LAYERS):
        sites = [Site(layer, part) for part in Part]
        below = [Site(layer - 1, Part.RES)] if layer else []
        watch = tuple(FeatureId(site, index) for site in sites for index in range(N_FEATURES))
        # 1. the error of each predecessor site at the token, and 2. a feature and the error at earlier tokens
        trials = [Trial(layer, POSITION, (RemoveError(site),), watch) for site in (*below, *sites[:2])]
        for site in below:
            for token in EARLIER:
                loud = active_features(model, dictionaries, tokens, site, token)
                edits = [RemoveError(site)]
                if loud:
                    edits += [Rescale((loud[0],)), Rescale(tuple(loud[:2]), 2.0)]
                trials += [Trial(layer, POSITION, (edit,), watch, token) for edit in edits]
        for trial, outcome in zip(trials, text.run(trials), strict=True):
            [edit], token = trial.edits, trial.edited_token
            if isinstance(edit, RemoveError):
                under = without_error(dictionaries[edit.site], token)
            else:
                under = [Rescale(edit.features, edit.r, Positions((token,)))]
            with model.intervening(under, dictionaries):
                plain = torch.cat([read(model, dictionaries, tokens, site, POSITION) for site in sites])
            assert torch.tensor(outcome.after) == pytest.approx(plain, rel=1e-4, abs=2e-5)
        # 3. the logits after edits of the residual stream
        site = sites[2]
        loud = active_features(model, dictionaries, tokens, site, POSITION)
        edits = [None, Rescale((loud[0],)), Rescale(tuple(loud[:2]), 0.5), RemoveError(site)]
        found = text.logits(layer, POSITION, edits)
        under = [
            [],
            [Rescale((loud[0],), tokens=Positions((POSITION,)))],
            [Rescale(tuple(loud[:2]), 0.5, Positions((POSITION,)))],
            without_error(dictionaries[site], POSITION),
        ]
        for row, edit in zip(found, under, strict=True):
            with model.intervening(edit, dictionaries):
                plain = model.capture(tokens, [], logits=True).logits[0, POSITION]
            assert row == pytest.approx(plain, rel=1e-4, abs=2e-5)


def test_an_edit_at_an_earlier_token_moves_what_attention_reads_and_nothing_before_it():
    model = language_model("llama")
    tokens = model.tokenize([TEXT])
    dictionaries = dictionaries_on(model, tokens)
    text = PreparedText(model, dictionaries, tokens, layers=range(N_LAYERS))
    entry, exit_ = Site(0, Part.RES), Site(1, Part.RES)
    loud = tuple(active_features(model, dictionaries, tokens, entry, 5))
    watch = tuple(FeatureId(site, index) for site in (entry, exit_) for index in range(N_FEATURES))
    [one] = text.run([Trial(1, POSITION, (Rescale(loud),), watch, 5)])
    assert one.after[:N_FEATURES] == one.before[:N_FEATURES]
    assert one.after[N_FEATURES:] != one.before[N_FEATURES:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trial(1, 3, (RemoveError(Site("1/res")),), ()), "layer 1 cannot edit 1/res"),
        (lambda: Trial(1, 3, (RemoveError(Site("0/res")),), (), 4), "edits token 4 and reads token 3. Edit one from 0"),
        (lambda: Trial(1, 3, (RemoveError(Site("1/mlp")),), (), 2), "token 3 does not read in that layer.*0/res"),
    ],
)
def test_what_no_token_can_read_is_refused(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_a_trial_of_an_earlier_token_has_no_loss():
    model = language_model("llama")
    tokens = model.tokenize([TEXT])
    text = PreparedText(model, dictionaries_on(model, tokens), tokens, layers=[1])
    with pytest.raises(InvalidArgument, match="has no loss of its own"):
        text.run([Trial(1, 3, (RemoveError(Site("0/res")),), (), 2)], loss=True)
    with pytest.raises(InvalidArgument, match="is no edit of 1/res"):
        text.logits(1, 3, [RemoveError(Site("0/res"))])
