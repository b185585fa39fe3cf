"""Tiny models, dictionaries that fire on them, and plans for the tests of steered generation."""

from __future__ import annotations

import torch

from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import EVERYWHERE
from saeflow.sources.activations import ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.tokens import Tokens
from saeflow.steering.plan import SteeringDirection, SteeringPlan, Step

from ..sources.tiny_models import D_MODEL, N_LAYERS, tiny_model

FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox")
EVERY_SITE = tuple(Site(layer, part) for layer in range(N_LAYERS) for part in Part)
F = 10


def dictionary_at(site, seed=0):
    """Random features, rows of lengths other than 1, of which about half fire at a token."""
    make = torch.Generator().manual_seed(1000 * seed + 10 * site.layer + site.part.rank)
    draw = lambda *shape: torch.randn(*shape, generator=make)  # noqa: E731
    return Dictionary(
        site,
        tap=Tap.of(site.part),
        W_enc=draw(F, D_MODEL),
        b_enc=draw(F),
        W_dec=0.3 * draw(F, D_MODEL),
        b_dec=draw(D_MODEL),
        activation=ReLU(),
    )


def dictionaries():
    return {site: dictionary_at(site) for site in EVERY_SITE}


def activation(values, tokens=EVERYWHERE, **about):
    """A plan from {"1/res/3": 2.0}."""
    return _plan(SteeringDirection.ACTIVATE, values, tokens, about)


def suppression(values, tokens=EVERYWHERE, **about):
    return _plan(SteeringDirection.SUPPRESS, values, tokens, about)


def _plan(direction, values, tokens, about):
    steps = tuple(Step(FeatureId.parse(name), value) for name, value in values.items())
    return SteeringPlan(direction, steps, tokens=tokens, **about)


def everywhere(direction, value, features=(0, 3)):
    """The same value for some features of every site."""
    names = {f"{site}/{index}": value for site in EVERY_SITE for index in features}
    return _plan(direction, names, EVERYWHERE, {})


def endless(model_type):
    """A model that writes on and on: no token ends a text."""
    model = tiny_model(model_type)
    model.hf_model.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    return model


PLANS = (
    activation({"0/mlp/1": 2.0, "1/res/3": -1.5, "1/res/4": 1.0, "2/att/0": 3.0}),
    None,
    suppression({"0/res/1": 0.0, "0/res/2": -2.0, "1/mlp/3": 2.5, "2/res/0": 0.0}),
    suppression({"0/res/2": 0.5, "0/res/7": 0.0}),
    activation({"0/res/5": 4.0, "2/res/6": 1.0}),
)
"""A plan of either kind for each of five rows, one row without."""


def rows_of(tokens, n):
    """The first text, n times."""
    ids = tokens.input_ids[:1].expand(n, -1)
    return Tokens(ids, torch.ones_like(ids))
