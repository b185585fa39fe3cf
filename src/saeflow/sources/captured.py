"""The tensors captured in one forward pass, by site or point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from saeflow.errors import UnknownSite
from saeflow.ids import Site
from saeflow.sources.architectures import Point, PointLike


@dataclass(frozen=True, slots=True, eq=False)
class Captured(Mapping[Site | Point, Tensor]):
    """The tensors of one forward pass at the requested sites and points.

    Each value is `Float[Tensor, "batch pos d_model"]` (`d_in` wide for `z`) in the model's dtype, without
    gradient. Values at padding are included and meaningless.

    Attributes:
        tensors: point -> tensor; index the object itself by site, `(layer, Tap.Z)` or point.
        requested: the sites and points, as the caller named them.
        inputs: layer -> the input of its block, for the requested layers.
        logits: `Float[Tensor, "batch pos vocab"]` where requested, else None.
    """

    tensors: Mapping[Point, Tensor]
    requested: tuple[Site | Point, ...]
    inputs: Mapping[int, Tensor]
    logits: Tensor | None

    def __getitem__(self, point: PointLike) -> Tensor:
        """The tensor at a site or point.

        Raises:
            UnknownSite: when it was not captured.
        """
        point = Point.at(point)
        if point not in self.tensors:
            have = ", ".join(map(str, self.requested)) or "none"
            raise UnknownSite(f"{point} was not captured; captured: {have}. Name it in capture(tokens, sites).")
        return self.tensors[point]

    def __iter__(self) -> Iterator[Site | Point]:
        """Iterate over the sites and points, as the caller named them."""
        return iter(self.requested)

    def __len__(self) -> int:
        """How many sites and points were requested."""
        return len(self.requested)
