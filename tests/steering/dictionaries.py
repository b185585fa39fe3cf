"""Random dictionaries for the tiny models."""

import torch

from saeflow.sources.activations import JumpReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary, Preprocessing

from ..sources.tiny_models import D_MODEL

N_FEATURES = 10


def random_dictionary(site, *, width=D_MODEL, tap=None, activation=None, preprocessing=None, n_features=N_FEATURES):
    """Rows of lengths other than 1, thresholds of each feature's own."""
    make = torch.Generator().manual_seed(10 * site.layer + site.part.rank)
    draw = lambda *shape: torch.randn(*shape, generator=make)  # noqa: E731
    return Dictionary(
        site,
        tap=tap or Tap.of(site.part),
        W_enc=draw(n_features, width),
        b_enc=draw(n_features),
        W_dec=draw(n_features, width),
        b_dec=draw(width),
        activation=activation or JumpReLU(draw(n_features).abs() + 0.1),
        preprocessing=preprocessing or Preprocessing(),
    )


def random_dictionaries(*sites, **more):
    return {site: random_dictionary(site, **more) for site in sites}
