"""Activation functions of sparse autoencoders: pre-activations in, feature activations out.

The first stage of the flow: a Dictionary multiplies by `W_enc`, adds `b_enc` and hands the result to
one of these. They are the forms used at inference; how a threshold was trained does not matter here.

    ReLU       max(pre, 0)
    JumpReLU   relu(pre) * (pre > threshold)              one threshold per feature
    TopK       the k largest of relu(pre), the rest 0
    BatchTopK  relu(pre) * (pre > threshold)              one threshold for all, kept from training
    Function   any other, given in Python                 features may compete in it, as under TopK

The comparison with a threshold is strict: a feature exactly at its threshold is off.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument

_T = TypeVar("_T", bound="_Thresholded")


class ActivationKind(enum.StrEnum):
    """The name of an activation function in a file."""

    RELU = "relu"
    JUMPRELU = "jumprelu"
    TOPK = "topk"
    BATCHTOPK = "batchtopk"
    FUNCTION = "function"
    """Given in Python: no file says it."""


@dataclass(frozen=True, slots=True)
class ReLU:
    """max(pre, 0), as in the first sparse autoencoders (Cunningham et al. 2023, arXiv 2309.08600)."""

    kind: ClassVar[ActivationKind] = ActivationKind.RELU

    def __call__(self, pre: Float[Tensor, "*batch n_features"]) -> Float[Tensor, "*batch n_features"]:
        """Map pre-activations to activations, shape kept."""
        return torch.relu(pre)

    def of(self, features: Int[Tensor, " k"]) -> ReLU:  # noqa: ARG002
        """The same for some features alone."""
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ReLU:  # noqa: ARG002
        """Itself: there is no tensor to move."""
        return self


@dataclass(frozen=True, eq=False)
class _Thresholded:
    """relu(pre) * (pre > threshold), with one threshold or one per feature."""

    threshold: Tensor

    def __call__(self, pre: Float[Tensor, "*batch n_features"]) -> Float[Tensor, "*batch n_features"]:
        """Map pre-activations to activations, shape kept.

        Raises:
            InvalidArgument: when the last axis of `pre` is not one value per threshold.
        """
        if self.threshold.ndim and pre.shape[-1] != self.threshold.shape[0]:
            raise InvalidArgument(
                f"{self.threshold.shape[0]} thresholds for {pre.shape[-1]} pre-activations. Give one threshold per "
                "feature."
            )
        return torch.relu(pre) * (pre > self.threshold)

    def of(self: _T, features: Int[Tensor, " k"]) -> _T:
        """The same for some features alone. Raises IndexError, from torch, for a feature that is not there."""
        return type(self)(self.threshold[features]) if self.threshold.ndim else self

    def to(self: _T, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> _T:
        """The same with its threshold on `device` in `dtype`. Raises RuntimeError, from torch, without the device."""
        return type(self)(self.threshold.to(device=device, dtype=dtype))


@dataclass(frozen=True, eq=False)
class JumpReLU(_Thresholded):
    """relu(pre) * (pre > threshold), strictly above (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    threshold: Float[Tensor, " n_features"]
    kind: ClassVar[ActivationKind] = ActivationKind.JUMPRELU


@dataclass(frozen=True, eq=False)
class BatchTopK(_Thresholded):
    """relu(pre) * (pre > threshold), one threshold kept from training (Bussmann et al. 2024).

    Source: arXiv 2412.06410. In training the k * batch largest activations of a batch survive; at inference a
    feature must not depend on what else is in the batch, so the paper replaces the cut by the
    mean of the smallest surviving activation. One number for all features, or one per feature.
    """

    threshold: Float[Tensor, ""] | Float[Tensor, " n_features"]
    kind: ClassVar[ActivationKind] = ActivationKind.BATCHTOPK


@dataclass(frozen=True, slots=True)
class TopK:
    """The k largest of relu(pre), the rest 0 (Gao et al. 2025, arXiv 2406.04093).

    Fewer than k are active where fewer than k are positive.
    """

    k: int
    kind: ClassVar[ActivationKind] = ActivationKind.TOPK

    def __post_init__(self) -> None:
        """Refuse k below 1."""
        if self.k < 1:
            raise InvalidArgument(f"TopK with k = {self.k} keeps nothing. Give k of 1 or more.")

    def __call__(self, pre: Float[Tensor, "*batch n_features"]) -> Float[Tensor, "*batch n_features"]:
        """Map pre-activations to activations, shape kept.

        Raises:
            InvalidArgument: when there are fewer than k features.
        """
        n_features = pre.shape[-1]
        if self.k > n_features:
            raise InvalidArgument(f"TopK with k = {self.k} on {n_features} features. Give k of {n_features} at most.")
        values, index = torch.topk(torch.relu(pre), self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, index, values)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TopK:  # noqa: ARG002
        """Itself: there is no tensor to move."""
        return self


@dataclass(frozen=True, slots=True)
class Function:
    """A function of all pre-activations of a token, for an activation that no other class is.

    Which features it needs to see to give one of them is not known: it is always called with all.
    """

    function: Callable[[Tensor], Tensor]
    kind: ClassVar[ActivationKind] = ActivationKind.FUNCTION

    def __call__(self, pre: Float[Tensor, "*batch n_features"]) -> Float[Tensor, "*batch n_features"]:
        """Map pre-activations to activations, shape kept.

        Raises:
            InvalidArgument: when the function returns another shape.
        """
        acts = self.function(pre)
        if acts.shape != pre.shape:
            raise InvalidArgument(
                f"the activation function returned shape {list(acts.shape)} for pre-activations of shape "
                f"{list(pre.shape)}. Return one activation for each."
            )
        return acts

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Function:  # noqa: ARG002
        """Itself: what the function holds is its own."""
        return self


Activation: TypeAlias = ReLU | JumpReLU | TopK | BatchTopK | Function
COMPETING: Final = (TopK, Function)
"""Where an activation depends on the pre-activations of other features, so that all are computed."""


def kept_threshold(threshold: Float[Tensor, "*shape"], origin: str) -> BatchTopK:
    """A BatchTopK with the threshold a file keeps.

    Raises:
        BadFile: when it is not above 0, as a threshold is before training sets it (-1 in dictionary_learning, 0 in
            sae-lens): every positive feature would be on.
    """
    low = threshold.min()
    if not bool(low > 0):
        raise BadFile(
            f"{origin}: the threshold of this BatchTopK is {float(low):.3g}, so training never set it, and every "
            "feature with a positive pre-activation would be on. Directions are known, activations are not. Take a "
            "later checkpoint, or write the mean of the smallest kept activation of a batch into the file as its "
            "threshold."
        )
    return BatchTopK(threshold)
