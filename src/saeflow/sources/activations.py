"""Activation functions of sparse autoencoders: pre-activations in, feature activations out.

A Dictionary multiplies by `W_enc`, adds `b_enc` and passes the result to one of these functions. They are the forms
used at inference; how a threshold was trained does not matter here.

    ReLU       max(pre, 0)
    JumpReLU   relu(pre) * (pre > threshold)              one threshold per feature
    TopK       the k largest of relu(pre), the rest 0
    BatchTopK  relu(pre) * (pre > threshold)              one threshold for all features, kept from training
    Function   any other function, given in Python        features may compete, as under TopK

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
    """Given in Python; never stored in a file."""


@dataclass(frozen=True, slots=True)
class ReLU:
    """max(pre, 0), as in the first sparse autoencoders (Cunningham et al. 2023, arXiv 2309.08600)."""

    kind: ClassVar[ActivationKind] = ActivationKind.RELU

    def __call__(self, pre: Float[Tensor, "*batch n_features"]) -> Float[Tensor, "*batch n_features"]:
        """Map pre-activations to activations, shape kept."""
        return torch.relu(pre)

    def of(self, features: Int[Tensor, " k"]) -> ReLU:  # noqa: ARG002
        """The activation for a subset of the features: unchanged."""
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ReLU:  # noqa: ARG002
        """Return itself: it holds no tensor to move."""
        return self


@dataclass(frozen=True, eq=False)
class _Thresholded:
    """relu(pre) * (pre > threshold), with one threshold or one per feature."""

    threshold: Tensor

    def __call__(self, pre: Float[Tensor, "*batch n_features"]) -> Float[Tensor, "*batch n_features"]:
        """Map pre-activations to activations, shape kept.

        Raises:
            InvalidArgument: when there is one threshold per feature and the last axis of `pre` has another length.
        """
        if self.threshold.ndim and pre.shape[-1] != self.threshold.shape[0]:
            raise InvalidArgument(
                f"{self.threshold.shape[0]} thresholds for {pre.shape[-1]} pre-activations. Give one threshold per "
                "feature."
            )
        return torch.relu(pre) * (pre > self.threshold)

    def of(self: _T, features: Int[Tensor, " k"]) -> _T:
        """The activation for a subset of the features. Torch raises IndexError for an index out of range."""
        return type(self)(self.threshold[features]) if self.threshold.ndim else self

    def to(self: _T, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> _T:
        """The activation with its threshold on `device` in `dtype`. Torch raises RuntimeError for a missing device."""
        return type(self)(self.threshold.to(device=device, dtype=dtype))


@dataclass(frozen=True, eq=False)
class JumpReLU(_Thresholded):
    """relu(pre) * (pre > threshold), a strict comparison (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    threshold: Float[Tensor, " n_features"]
    kind: ClassVar[ActivationKind] = ActivationKind.JUMPRELU


@dataclass(frozen=True, eq=False)
class BatchTopK(_Thresholded):
    """relu(pre) * (pre > threshold), with a threshold kept from training (Bussmann et al. 2024, arXiv 2412.06410).

    In training, the k * batch largest activations of a batch survive. At inference, an activation must not depend on
    the rest of the batch, so the paper uses a threshold instead: the mean over batches of the smallest surviving
    activation. The threshold is one number for all features, or one per feature.
    """

    threshold: Float[Tensor, ""] | Float[Tensor, " n_features"]
    kind: ClassVar[ActivationKind] = ActivationKind.BATCHTOPK


@dataclass(frozen=True, slots=True)
class TopK:
    """The k largest of relu(pre), the rest 0 (Gao et al. 2025, arXiv 2406.04093).

    Fewer than k features are active where fewer than k pre-activations are positive.
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
        """Return itself: it holds no tensor to move."""
        return self


@dataclass(frozen=True, slots=True)
class Function:
    """A Python function of all pre-activations of a token, for activations that no other class covers.

    It is always called with all features, since nothing says which of them one activation depends on.
    """

    function: Callable[[Tensor], Tensor]
    kind: ClassVar[ActivationKind] = ActivationKind.FUNCTION

    def __call__(self, pre: Float[Tensor, "*batch n_features"]) -> Float[Tensor, "*batch n_features"]:
        """Map pre-activations to activations, shape kept.

        Raises:
            InvalidArgument: when the function returns a different shape.
        """
        acts = self.function(pre)
        if acts.shape != pre.shape:
            raise InvalidArgument(
                f"the activation function returned shape {list(acts.shape)} for pre-activations of shape "
                f"{list(pre.shape)}. Return one activation for each."
            )
        return acts

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Function:  # noqa:ARG002
        """Return itself: tensors that the function holds are left where they are."""
        return self


Activation: TypeAlias = ReLU | JumpReLU | TopK | BatchTopK | Function
COMPETING: Final = (TopK, Function)
"""Activations in which a feature depends on the pre-activations of others, so that all must be computed."""


def kept_threshold(threshold: Float[Tensor, "*shape"], origin: str) -> BatchTopK:
    """A BatchTopK with the threshold stored in a file.

    Raises:
        BadFile: when the threshold is not above 0, as before training sets it (-1 in dictionary_learning, 0 in
            sae-lens): every feature with a positive pre-activation would be on.
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
