"""What is done to a hidden state before it is encoded, and undone after it is decoded.

    x = centre(h);  x = (x - shift) / scale;  W_enc multiplies x (minus b_dec, where a release subtracts it)

The scale and the shift are numbers of each token, taken from the token itself.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor


class Norm(enum.StrEnum):
    """How each token's vector is normalised before encoding, and restored after decoding."""

    NONE = "none"
    LAYER_NORM = "layer_norm"
    """(h - mean) / (std + 1e-5), std with Bessel's correction, as sae-lens does."""
    RESCALE = "rescale"
    """h * sqrt(d_in) / |h|: also what an RMSNorm does before it multiplies by its gain."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done to h before `W_enc`: centre over d_in, normalise, subtract `b_dec`, in this order."""

    subtract_b_dec: bool = False
    center: bool = False
    norm: Norm = Norm.NONE

    def prepare(
        self, h: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch d_in"], Tensor | float, Tensor | float]:
        """h centred and normalised, and the scale and shift that undo the normalisation.

        Raises:
            Nothing.
        """
        if self.center:
            h = h - h.mean(dim=-1, keepdim=True)
        if self.norm is Norm.LAYER_NORM:
            mean = h.mean(dim=-1, keepdim=True)
            std = (h - mean).std(dim=-1, keepdim=True)
            return (h - mean) / (std + 1e-5), std, mean
        if self.norm is Norm.RESCALE:
            scale = torch.linalg.vector_norm(h, dim=-1, keepdim=True) / h.shape[-1] ** 0.5
            return h / scale.clamp_min(torch.finfo(h.dtype).tiny), scale, 0.0  # 0 stays 0
        return h, 1.0, 0.0


PLAIN: Final = Preprocessing()
"""Nothing is done to h."""
