"""The normalisation of activations, and how it is folded into trained weights.

    x' = (x - mean) * scale         mean norm sqrt(d_in)         trained on x', reads x when folded

Let n be the norms of the trained decoder rows, (m, s) the normalisation of the input, and (m_out, s_out) that of the
output, which is the same for an autoencoder. An activation in units of the output is a = a' n / s_out. The same
function of raw activations, with unit decoder rows, therefore has

    W_enc <- W_enc n s / s_out        b_enc <- (b_enc - s W_enc m) n / s_out      threshold <- threshold n / s_out
    W_dec <- W_dec / n                b_dec <- b_dec / s_out + m_out

Section 3.2 of Gemma Scope (arXiv 2408.05147) describes the scale; the mean is folded in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.sources.activations import Activation, JumpReLU, TopK
from saeflow.sources.dictionary import PLAIN, Dictionary
from saeflow.training.settings import TrainingTarget

_UNIT: Final = 1e-3
"""How far from 1 the norm of a unit row may be, after a file of fewer bits."""


@dataclass(frozen=True, eq=False)
class Normalisation:
    """A mean to subtract from an activation, and a scale to multiply the difference by."""

    mean: Float[Tensor, " d_in"]
    scale: float

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """(x - mean) * scale in float32."""
        return (x.float() - self.mean.to(x.device)) * self.scale

    @staticmethod
    def of(mean: Float[Tensor, " d_in"], norm: Float[Tensor, ""], where: str) -> Normalisation:
        """Make a normalisation from the mean of some rows and their mean norm around it; the error names `where`.

        Raises:
            InvalidArgument: when the rows do not differ, or are not finite.
        """
        if not (bool(torch.isfinite(norm)) and float(norm) > 0):
            raise InvalidArgument(
                f"the activations at {where} have a mean norm of {float(norm)} around their mean: there is nothing to "
                "learn from them. Check the texts and the model."
            )
        return Normalisation(mean.float(), len(mean) ** 0.5 / float(norm))


@dataclass(frozen=True, eq=False)
class TrainedWeights:
    """Weights as trained, on normalised activations; one row per feature, of any norm.

    `threshold` is None for TopK, which has `k` instead.
    """

    W_enc: Float[Tensor, "n_features d_in"]
    b_enc: Float[Tensor, " n_features"]
    W_dec: Float[Tensor, "n_features d_out"]
    b_dec: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " n_features"] | None
    k: int = 0


def fold(weights: TrainedWeights, target: TrainingTarget, read: Normalisation, written: Normalisation) -> Dictionary:
    """The dictionary on raw activations, with unit decoder rows; see the module docstring.

    A folded TopK ranks features as in training: by activation times the norm of the trained decoder row.

    Raises:
        InvalidArgument: when a weight is not finite, or a decoder row is zero.
    """
    n = weights.W_dec.double().norm(dim=1)
    if not bool(torch.isfinite(n).all() and (n > 0).all() and torch.isfinite(weights.W_enc.sum())):
        raise InvalidArgument(
            f"the weights at {target.site} are not finite, or a decoder row is zero: training has diverged. Give a "
            "lower --lr, or a longer warm-up."
        )
    W_enc = weights.W_enc.double()
    size = n / written.scale
    b_enc = (weights.b_enc.double() - read.scale * (W_enc @ read.mean.to(W_enc))) * size
    activation: Activation = (
        TopK(weights.k) if weights.threshold is None else JumpReLU((weights.threshold.double() * size).float())
    )
    return Dictionary(
        target.site,
        tap=target.reads,
        W_enc=(W_enc * (size * read.scale)[:, None]).float(),
        b_enc=b_enc.float(),
        W_dec=(weights.W_dec.double() / n[:, None]).float(),
        b_dec=(weights.b_dec.double() / written.scale + written.mean.to(W_enc)).float(),
        activation=activation,
    )


def unfold(dictionary: Dictionary, read: Normalisation, written: Normalisation) -> TrainedWeights:
    """The inverse of `fold`, with decoder rows at norm 1: the weights from which training continues.

    Raises:
        InvalidArgument: when the dictionary has something that is not trained here: a normalisation per token, a
            subtracted `b_dec`, a skip connection, an activation that is neither JumpReLU nor TopK, or a TopK whose
            decoder rows have other norms than 1: bringing them to 1 would change which features are the largest.
    """
    activation = dictionary.activation
    if (
        dictionary.preprocessing != PLAIN
        or dictionary.W_skip is not None
        or not isinstance(activation, JumpReLU | TopK)
    ):
        raise InvalidArgument(
            f"training cannot go on from the dictionary at {dictionary.site} (activation {activation.kind.value}, "
            f"{dictionary.preprocessing}). Give one that saeflow train wrote."
        )
    n = dictionary.W_dec.double().norm(dim=1)
    if isinstance(activation, TopK) and bool(((n - 1).abs() > _UNIT).any()):
        raise InvalidArgument(
            f"the dictionary at {dictionary.site} is a TopK whose decoder rows have norms from {float(n.min()):.3g} to "
            f"{float(n.max()):.3g}. Training keeps them at 1, which would change the features that are the largest. "
            "Give one with rows of norm 1."
        )
    W_enc, size = dictionary.W_enc.double(), n * written.scale
    enc = W_enc * (size / read.scale)[:, None]
    b_enc = dictionary.b_enc.double() * size + read.scale * (enc @ read.mean.to(W_enc))
    return TrainedWeights(
        W_enc=enc.float(),
        b_enc=b_enc.float(),
        W_dec=(dictionary.W_dec.double() / n[:, None]).float(),
        b_dec=((dictionary.b_dec.double() - written.mean.to(W_enc)) * written.scale).float(),
        threshold=(activation.threshold.double() * size).float() if isinstance(activation, JumpReLU) else None,
        k=activation.k if isinstance(activation, TopK) else 0,
    )
