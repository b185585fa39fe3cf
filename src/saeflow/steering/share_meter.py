"""How far plans move the stream, measured while a model runs under them.

What is added at every layer adds up in the stream, so two shares are kept for each row of a batch, with d_l the
sum of all that the row's plan changes at the sites of layer l and h_l the stream after layer l as it comes in there,
before its own change but with those of all earlier sites in it:

    layer l   the mean over tokens of |d_l| / |h_l|
    total     the mean over tokens of |d_0 + ... + d_L| / |h_L|, with L the last layer the plan changes

The sum counts what a plan adds, not how later layers transform it. `sizes` has the same shares as an estimate
beforehand, against the mean length of unsteered states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeflow.sources.architectures import Point, Tap
from saeflow.sources.hooks import Clock


class ShareMeter:
    """Collects what `row_plans` reports; one object for one batch.

    Attributes:
        live: which rows still count; None for all. A text that has ended is filled up with padding, whose
            hidden states mean nothing.
    """

    def __init__(self, *, skip: int = 0) -> None:
        """The first `skip` tokens of a text do not count: 1 leaves out a begin-of-text token; nor does padding."""
        self.live: Bool[Tensor, " batch"] | None = None
        self._skip = skip
        self._clock = Clock()
        self._first: Point | None = None
        self._last: Mapping[int, Float[Tensor, " n"]] = {}
        self._tokens = torch.zeros(())
        self._weights = torch.zeros(0, 0)
        self._layers: dict[int, Tensor] = {}
        self._total: Tensor | None = None
        self._in_layer: Tensor | None = None
        self._carried: Tensor | None = None

    def begin(self, points: Sequence[Point], last: Mapping[int, Float[Tensor, " n"]], clock: Clock) -> None:
        """What is going to be reported.

        Args:
            points: every point that will be, in order of computation; a layer's residual point is always there.
            last: by layer, 1 for the rows whose plans change it last and 0 for others.
            clock: tells which tokens the running forward pass holds.
        """
        self._first = points[0] if points else None
        self._last, self._clock = last, clock

    def note(
        self, point: Point, h: Float[Tensor, "batch pos d_in"], change: Float[Tensor, "#batch #pos d_model"] | None
    ) -> None:
        """At `point` the hidden state `h` came in, and the stream is changed by `change`; None for no change."""
        if point == self._first:
            self._in_layer = self._carried = None
            self._weights = self._counted(h)
            self._tokens = self._tokens + self._weights.sum(dim=1)
        if change is not None:
            # a change that is the same at every token has one column
            step = change.float()
            self._in_layer = step if self._in_layer is None else self._in_layer + step
        if point.tap is Tap.RES and self._in_layer is not None:
            self._end_of_layer(point.layer, h, self._in_layer)
            self._in_layer = None

    def _end_of_layer(
        self, layer: int, h: Float[Tensor, "batch pos d_model"], change: Float[Tensor, "#batch #pos d_model"]
    ) -> None:
        size = _length(h).clamp_min_(torch.finfo(torch.float32).tiny)
        self._carried = change if self._carried is None else self._carried + change
        share = self._sum(_length(change) / size)
        self._layers[layer] = self._layers[layer] + share if layer in self._layers else share
        if layer in self._last:
            share = self._sum(_length(self._carried) / size) * self._last[layer].to(share)
            self._total = share if self._total is None else self._total + share

    def by_layer(self) -> dict[int, list[float]]:
        """For each layer that was changed, the share of each row; 0 where a row's plan has nothing there."""
        return {layer: self._mean(shares) for layer, shares in sorted(self._layers.items())}

    def largest(self, rows: int) -> list[float]:
        """For each of `rows` rows, the largest share of a layer."""
        layers = self.by_layer().values()
        return [max((shares[row] for shares in layers), default=0.0) for row in range(rows)]

    def total(self, rows: int) -> list[float]:
        """For each of `rows` rows, the share of the sum of all changes."""
        return [0.0] * rows if self._total is None else self._mean(self._total)

    def _counted(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos"]:
        """1 at the tokens that count."""
        counted = (self._clock.positions >= self._skip).to(h.device, torch.float32).expand(h.shape[:2])
        return counted if self.live is None else counted * self.live.float()[:, None]

    def _sum(self, shares: Float[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
        """Over the tokens that count; hidden states at padding may be anything."""
        return shares.masked_fill(self._weights == 0, 0.0).sum(dim=1)

    def _mean(self, sums: Float[Tensor, " batch"]) -> list[float]:
        return (sums / self._tokens.clamp_min(1)).tolist()


def _length(x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
