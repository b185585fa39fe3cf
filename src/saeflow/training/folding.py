"""The normalisation of activations, and how it is folded into trained weights.

    x' = (x - mean) * scale         mean norm sqrt(d_in)         trained on x', reads x when folded

With n the norms of the trained decoder rows, read by an input normalised with (m, s) and written to an output
normalised with (m_out, s_out), which are the same for an autoencoder, an activation in the units of the output is
a = a' n / s_out. So the same function of raw activations, with unit decoder rows, has

    W_enc <- W_enc n s / s_out        b_enc <- (b_enc - s W_enc m) n / s_out      threshold <- threshold n / s_out
    W_dec <- W_dec / n                b_dec <- b_dec / s_out + m_out

Section 3.2 of Gemma Scope (arXiv 2408.05147) has the scale; the mean is folded in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.sources.activations import Activation, JumpReLU, TopK
from saeflow.sources.dictionary import PLAIN, Dictionary
from saeflow.training.settings import TrainingTarget


@dataclass(frozen=True, eq=False)
class Normalisation:
    """What is subtracted from an activation and what it is then multiplied by."""

    mean: Float[Tensor, " d_in"]
    scale: float

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """(x - mean) * scale in float32."""
        return (x.float() - self.mean.to(x.device)) * self.scale

    @staticmethod
    def of(mean: Float[Tensor, " d_in"], norm: Float[Tensor, ""], where: str) -> Normalisation:
        """From the mean of some rows and their mean norm around it; `where` is for the message.

        Raises:
            InvalidArgument: when the rows do not differ.
        """
        if not (bool(torch.isfinite(norm)) and float(norm) > 0):
            raise InvalidArgument(
                f"the activations at {where} have a mean norm of {float(norm)} around their mean: there is nothing to "
                "learn from them. Check the texts and the model."
            )
        return Normalisation(mean.float(), len(mean) ** 0.5 / float(norm))


@dataclass(frozen=True, eq=False)
class TrainedWeights:
    """Weights as they are trained, on normalised activations; rows are features, of any norm.

    `threshold` is None for TopK, which has `k`.
    """

    W_enc: Float[Tensor, "n_features d_in"]
    b_enc: Float[Tensor, " n_features"]
    W_dec: Float[Tensor, "n_features d_out"]
    b_dec: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " n_features"] | None
    k: int = 0


def fold(weights: TrainedWeights, target: TrainingTarget, read: Normalisation, written: Normalisation) -> Dictionary:
    """The dictionary on raw activations, with unit decoder rows. See the head of the file.

    TopK ranks activations times the norms of decoder rows, as it was trained.

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
    """The inverse of `fold`, with decoder rows at norm 1: where training goes on from a dictionary.

    Raises:
        InvalidArgument: when the dictionary does something that is not trained here: a normalisation of each token, a
            subtracted `b_dec`, a skip, an activation that is neither JumpReLU nor TopK, or decoder rows of other norms.
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
