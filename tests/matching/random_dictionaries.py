"""Dictionaries whose tensors all differ, for methods that read more than decoders."""

from __future__ import annotations

import torch

from saeflow.ids import Site
from saeflow.sources.activations import Activation, JumpReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary, Preprocessing

PLAIN = Preprocessing()


def random_dictionary(
    site: str,
    n: int,
    d: int = 12,
    seed: int = 0,
    *,
    tap: Tap | None = None,
    preprocessing: Preprocessing = PLAIN,
    activation: Activation | None = None,
) -> Dictionary:
    """Rows of any norm, thresholds above 0, biases of both signs."""
    g = torch.Generator().manual_seed(seed)
    where = Site.parse(site)
    return Dictionary(
        where,
        tap=tap or Tap.of(where.part),
        W_enc=torch.randn(n, d, generator=g),
        b_enc=torch.randn(n, generator=g),
        W_dec=torch.randn(n, d, generator=g) * torch.rand(n, 1, generator=g).add(0.1),
        b_dec=torch.randn(d, generator=g),
        activation=activation or JumpReLU(torch.rand(n, generator=g) + 0.2),
        preprocessing=preprocessing,
    )


class Writer:
    """A model that can say what its attention writes."""

    def __init__(self, d_model: int, d_z: int) -> None:
        self.W_O = torch.randn(d_model, d_z, generator=torch.Generator().manual_seed(99))
        self.gain = torch.linspace(0.5, 2, d_model)

    def attention_writer(self, layer: int):
        return self.W_O, self.gain
