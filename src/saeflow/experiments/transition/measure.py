"""One text at one pair of sites: what every map predicts of h_B, and by how much it misses (appendix F).

    explained variance = 1 - sum |h_B - prediction|^2 / sum |h_B - mean|^2

Both sums run over tokens and over all dimensions together (the variance of a dimension counts by its size). Special
tokens, the begin-of-text token above all, are left out: their hidden states are far larger than all others and would
decide both sums. The mean is that of all tokens that are measured; the mean that is a prediction (`MEAN`) is that of
the texts for fitting, and explains a little less than nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeflow.errors import WidthMismatch
from saeflow.experiments.transition.maps import TransitionMap
from saeflow.ids import Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import Captured

LEAST_SQUARES, AFFINE = "least squares", "affine map of h"
RECONSTRUCTION, OWN, IDENTITY, MEAN = "reconstruction", "source reconstruction", "identity", "mean"
BASELINES: Final = (RECONSTRUCTION, LEAST_SQUARES, AFFINE, OWN, IDENTITY, MEAN)
"""What is no transition matrix of the weights, in the order of tables."""


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """What stands at both ends of a pair on some tokens.

    Attributes:
        h: the stream at A, as the model has it.
        z: activations of A's dictionary there.
        truth: the stream at B; centred where B's dictionary reads it so.
    """

    h: Float[Tensor, "n width"]
    z: Float[Tensor, "n n_source"]
    truth: Float[Tensor, "n d_out"]


@dataclass(frozen=True, eq=False)
class DictionaryPair:
    """Two dictionaries, A before B.

    Raises:
        WidthMismatch: when their tensors differ in width.
    """

    source: Dictionary
    target: Dictionary

    def __post_init__(self) -> None:
        """Refuse widths that differ."""
        if self.source.d_in != self.target.d_in:
            raise WidthMismatch(
                f"{self.source.site} is {self.source.d_in} wide and {self.target.site} {self.target.d_in}. A "
                "transition needs two dictionaries of one model's stream."
            )

    @property
    def sites(self) -> tuple[Site, Site]:
        """Where A and B are."""
        return self.source.site, self.target.site

    @property
    def name(self) -> str:
        """`0/res > 1/res`, as rows of results have it."""
        return f"{self.sites[0]} > {self.sites[1]}"

    def ends(self, captured: Captured, real: Bool[Tensor, "batch pos"]) -> Ends:
        """What a forward pass held at both ends, on the real tokens."""
        with torch.no_grad():
            h = captured[self.source.point][real]
            z = self.source.encode(h).float()
            return Ends(h.float(), z, self.centred(captured[self.target.point][real]))

    def centred(self, h: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The stream at B as its dictionary sees it, in float32."""
        return self.target.preprocessing.prepare(h.to(self.target.W_enc.dtype))[0].float()


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What was learned on the texts for fitting.

    Attributes:
        mean: of h_B, on the texts for fitting.
        centre: of h_B, on the texts that are measured: what the variance is about.
        least_squares: T W_dec(B) of ridge regression.
        affine: rows of the best affine map of h_A, the constant last.
        scales: for each variant the factor that suits it best on the texts for validation.
        facts: strengths that were chosen, and numbers of tokens.
    """

    mean: Float[Tensor, " d_out"]
    centre: Float[Tensor, " d_out"]
    least_squares: Float[Tensor, "n_source d_out"]
    affine: Float[Tensor, "d_in d_out"]
    scales: Mapping[str, float]
    facts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over the tokens of a text, of what one map adds to b_dec(B).

    Attributes:
        along: sum of (h_B - b_dec) . prediction.
        square: sum of |prediction|^2.
    """

    along: float
    square: float

    def missed(self, whole: float, scale: float = 1.0) -> float:
        """Sum of |h_B - b_dec - scale * prediction|^2, where `whole` is that of |h_B - b_dec|^2; never below 0."""
        return max(0.0, whole - 2 * scale * self.along + scale * scale * self.square)


def written(ends: Ends, one: TransitionMap) -> Float[Tensor, "n d_out"]:
    """z T W_dec(B): the prediction without b_dec(B). Only rows of features that are active are made."""
    used = torch.nonzero(ends.z.any(dim=0)).flatten()
    return ends.z[:, used] @ one.rows(used)


def sums(ends: Ends, rest: Float[Tensor, "n d_out"], maps: Mapping[str, TransitionMap]) -> dict[str, Sums]:
    """The sums of every map on some tokens; `rest` is h_B - b_dec(B)."""
    used = torch.nonzero(ends.z.any(dim=0)).flatten()
    z = ends.z[:, used]
    found: dict[str, Sums] = {}
    for name, one in maps.items():
        said = z @ one.rows(used)
        along = float((said * rest).sum(dtype=torch.float64))
        found[name] = Sums(along, float((said * said).sum(dtype=torch.float64)))
    return found


def baselines(pair: DictionaryPair, ends: Ends, fitted: Fitted) -> Iterator[tuple[str, Float[Tensor, "n d_out"]]]:
    """Predictions of h_B that use no transition matrix of the weights."""
    device = ends.truth.device
    source, target = pair.source, pair.target
    yield RECONSTRUCTION, target.decode(target.encode(ends.truth)).float()
    rows = fitted.least_squares.to(device)
    yield LEAST_SQUARES, ends.z @ rows + target.b_dec.float()
    yield AFFINE, ends.h @ fitted.affine[:-1].to(device) + fitted.affine[-1].to(device)
    yield OWN, pair.centred(source.decode(ends.z.to(source.W_dec.dtype), ends.h).float())
    yield IDENTITY, pair.centred(ends.h)
    yield MEAN, fitted.mean.to(device).expand_as(ends.truth)


def squared(a: Float[Tensor, "n d_out"], b: Float[Tensor, "n d_out"]) -> float:
    """Sum of the squared differences, in float64."""
    return float(((a - b) ** 2).sum(dtype=torch.float64))
