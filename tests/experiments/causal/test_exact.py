"""Every trial agrees with a whole forward pass under hooks, for every family and kind of dictionary."""

from __future__ import annotations

import pytest

from saeflow.experiments.causal import PreparedText
from saeflow.sources.architectures import ARCHITECTURES

from ...sources.tiny_models import CONFIGS, N_LAYERS, hooks_on
from .reference import Reference
from .worlds import KINDS, TEXT, VARIANTS, dictionaries_on, language_model, trials_at

LAST = 12


def agree(found, expected):
    close = lambda values: pytest.approx(values, rel=1e-4, abs=2e-5)  # noqa: E731
    assert found.before == close(expected.before)
    assert found.after == close(expected.after)
    assert found.loss_before == pytest.approx(expected.loss_before, rel=1e-5)
    assert found.loss_after == pytest.approx(expected.loss_after, rel=1e-5)


def moved(outcomes):
    """How many outcomes the edits changed, in activations and in loss."""
    acts = sum(one.before != pytest.approx(one.after, rel=1e-3, abs=1e-3) for one in outcomes)
    return acts, sum(abs(one.loss_after - one.loss_before) > 1e-4 for one in outcomes)


def check(model, dictionaries, tokens, trials, **options):
    text = PreparedText(model, dictionaries, tokens, layers=range(N_LAYERS), **options)
    found = text.run(trials, loss=True)
    reference = Reference(model, dictionaries, tokens)
    for trial, one in zip(trials, found, strict=True):
        agree(one, reference.outcome(trial))
    assert hooks_on(model) == 0
    return found


def test_every_mapped_family_is_tried():
    assert {VARIANTS[name][0] for name in VARIANTS} == set(CONFIGS) == set(ARCHITECTURES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trial_is_a_whole_forward_pass_under_hooks_in_every_family(variant):
    model = language_model(variant)
    tokens = model.tokenize([TEXT])
    assert tokens.lengths == [LAST + 1]
    dictionaries = dictionaries_on(model, tokens)
    places = [(0, 5), (1, 0), (1, 7), (2, 9), (1, LAST), (2, 1)]
    trials = [
        trial
        for n, (layer, position) in enumerate(places)
        for trial in trials_at(model, dictionaries, tokens, layer, position)[n % 5 :: 5]
    ]
    acts, losses = moved(check(model, dictionaries, tokens, trials))
    assert acts > len(trials) / 2
    assert losses > len(trials) / 3


@pytest.mark.parametrize("variant", ["gemma3_text", "gpt_neox", "gpt_neox serial"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_is_exact_for_every_kind_of_dictionary(variant, kind):
    model = language_model(variant)
    tokens = model.tokenize([TEXT])
    dictionaries = dictionaries_on(model, tokens, KINDS[kind])
    trials = [
        *trials_at(model, dictionaries, tokens, 1, 7, (0.0, -1.0))[::2],
        *trials_at(model, dictionaries, tokens, 2, 4, (0.5, 2.0))[1::2],
    ]
    acts, _ = moved(check(model, dictionaries, tokens, trials))
    assert acts > len(trials) / 2
