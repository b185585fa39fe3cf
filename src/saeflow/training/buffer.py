"""Activations of many points, captured in one pass, and a buffer that shuffles them and keeps their rows aligned.

    batches of tokens -> one forward pass -> rows of every point -> buffer -> batches of rows in a random order

The buffer holds `rows` rows of every point. When half of them have been served, new rows take their slots and all are
mixed again, so that a batch holds rows from many texts, recent and older. One order serves all points: row i of every
tensor of a batch is the same token. Nothing is written to disk except the buffer itself, in a checkpoint.

With `uses` of 2, a row that was served once goes back into the mix, and its slot is freed after the second time: the
model runs half as often for the same number of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.sources.activity import special_tokens
from saeflow.sources.architectures import Point, Tap, View
from saeflow.sources.massive import is_massive, norm_limit
from saeflow.sources.model import LanguageModel
from saeflow.training.texts import TokenBatches

Rows = dict[Point, Tensor]
"""`Float[Tensor, "n d_in"]` for each point, with one n for all: row i is the same token everywhere."""


class Moments(NamedTuple):
    """The mean of a point's rows, their mean norm around it, and the squared norm above which a row is massive."""

    mean: Float[Tensor, " d_in"]
    norm: Float[Tensor, ""]
    limit: float


class ActivationRows:
    """Rows of activations at some points, one forward pass for all, without special tokens and padding."""

    def __init__(
        self, model: LanguageModel, batches: TokenBatches, points: Sequence[Point], *, half: bool = False
    ) -> None:
        """Run nothing yet. `half` keeps rows in bfloat16."""
        self._model, self._batches, self._points = model, batches, tuple(points)
        self._dtype = torch.bfloat16 if half else None

    def __iter__(self) -> Iterator[Rows]:
        return self

    def __next__(self) -> Rows:
        """The rows of the next batch of tokens.

        Raises:
            StopIteration: when the tokens end.
            InvalidArgument: when an activation is not finite.
        """
        tokens = next(self._batches)
        kept = ~special_tokens(self._model, tokens)
        captured = self._model.capture(tokens, self._points)
        return {point: captured[point][kept].to(dtype=self._dtype) for point in self._points}


class ShuffledBuffer:
    """Batches of rows in a random order, from rows in the order of the texts; see the module docstring."""

    def __init__(self, source: Iterator[Rows], *, rows: int, batch: int, seed: int, uses: int = 1) -> None:
        """Draw nothing yet.

        Args:
            source: yields rows by point, as many for each point.
            rows: how many rows the buffer holds.
            batch: rows per batch.
            seed: determines the order, together with the rows.
            uses: how many times each row is served, never twice before the buffer is mixed again.

        Raises:
            InvalidArgument: when `rows` is less than two batches.
        """
        if batch < 1 or rows < 2 * batch:
            raise InvalidArgument(
                f"a buffer of {rows} rows for batches of {batch}. Give a buffer of two batches or more."
            )
        self._source, self._capacity, self._batch, self._uses = source, rows, batch, uses
        self._generator = torch.Generator().manual_seed(seed)
        self._held: Rows = {}
        self._spilled: Rows = {}
        self._order = torch.empty(0, dtype=torch.long)
        self._served = 0
        self._uses_left = torch.zeros(rows, dtype=torch.long)
        self._ended = False

    @property
    def left(self) -> int:
        """How many rows are still to be served before the buffer is mixed again."""
        return len(self._order) - self._served

    def __iter__(self) -> Iterator[Rows]:
        return self

    def __next__(self) -> Rows:
        """The next batch, a copy.

        Raises:
            StopIteration: when the source has ended and less than a batch is left.
            WidthMismatch: when the source changes its points or widths, or gives one point more rows than another.
        """
        self.fill()
        if self.left < self._batch:
            raise StopIteration
        slots = self._order[self._served : self._served + self._batch]
        self._served += self._batch
        self._uses_left[slots] -= 1
        return {point: held[slots.to(held.device)] for point, held in self._held.items()}

    def fill(self) -> None:
        """Refill and mix the buffer if at least half of its rows have been served.

        Raises:
            WidthMismatch: as for the next batch.
        """
        if self.left > self._capacity // 2:
            return
        live = self._live()
        if self._ended and self.left == len(live):
            return
        taken = torch.zeros(self._capacity, dtype=torch.bool)
        taken[live] = True
        free = torch.nonzero(~taken).flatten()
        filled = 0
        while filled < len(free) and not self._ended:
            rows = self._spilled or self._draw()
            if not rows:
                break
            n = min(len(free) - filled, len(next(iter(rows.values()))))
            for point, new in rows.items():
                self._held[point][free[filled : filled + n].to(new.device)] = new[:n]
            self._spilled = {point: new[n:] for point, new in rows.items()} if n < _count(rows) else {}
            self._uses_left[free[filled : filled + n]] = self._uses
            filled += n
        both = torch.cat([live, free[:filled]])
        self._order = both[torch.randperm(len(both), generator=self._generator)]
        self._served = 0

    def moments(self, *, centre: bool, massive: float) -> Mapping[Point, Moments]:
        """For each point, the mean of the rows held and their mean norm around it, in float64.

        Massive rows are left out: those with a squared norm above `massive` times the median of their point; 0 leaves
        out none. Without `centre`, the means are zeros, and the norms are taken around them.

        Raises:
            InvalidArgument: when the buffer is empty.
        """
        if not self.left:
            raise InvalidArgument("the texts gave no row of activations. Give texts with more tokens.")
        live = self._live()
        found: dict[Point, Moments] = {}
        for point, held in self._held.items():
            rows = live.to(held.device)
            limit = norm_limit(held[rows], massive)
            rows = rows[~is_massive(held[rows], limit)]
            total = torch.stack([held[slots].double().sum(0) for slots in rows.split(8192)]).sum(0)
            mean = total / len(rows) if centre else torch.zeros_like(total)
            norms = [(held[slots].double() - mean).norm(dim=1).sum() for slots in rows.split(8192)]
            found[point] = Moments(mean, torch.stack(norms).sum() / len(rows), limit)
        return found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The rows still to be served, in order, as tensors, and the rest as plain values.

        Slots are not saved, because they do not affect what is served.
        """
        live = self._live()
        tensors = {f"left.{p}": held[live.to(held.device)] for p, held in self._held.items()}
        tensors |= {f"spilled.{p}": rows.contiguous() for p, rows in self._spilled.items()}
        tensors["generator"] = self._generator.get_state()
        tensors["uses_left"] = self._uses_left[live]
        return tensors, {"due": self.left, "ended": self._ended, "points": [[p.layer, p.tap.value] for p in self._held]}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Resume where `state` was taken; the source must be at the same position.

        Raises:
            KeyError: when a tensor is missing.
        """
        points = [Point(int(layer), Tap(tap), *map(View, view)) for layer, tap, *view in state["points"]]
        self._ended = bool(state["ended"])
        self._generator.set_state(tensors["generator"])
        self._held, self._spilled = {}, {}
        n = 0
        for point in points:
            rows = tensors[f"left.{point}"]
            n = len(rows)
            self._held[point] = rows.new_empty(self._capacity, rows.shape[1])
            self._held[point][:n] = rows
            if f"spilled.{point}" in tensors:
                self._spilled[point] = tensors[f"spilled.{point}"]
        due = int(state["due"])
        # rows that wait for the next mixing go first in the order, and count as served
        self._order, self._served = torch.cat([torch.arange(due, n), torch.arange(due)]), n - due
        self._uses_left[:n] = tensors["uses_left"]

    def _live(self) -> Int[Tensor, " n"]:
        """The slots of rows still to be served: those due before the next mixing, in their order, then the others."""
        served = self._order[: self._served]
        return torch.cat([self._order[self._served :], served[self._uses_left[served] > 0]])

    def _draw(self) -> Rows:
        rows = next(self._source, None)
        while rows is not None and not _count(rows):
            rows = next(self._source, None)
        if rows is None:
            self._ended = True
            return {}
        if not self._held:
            self._held = {p: new.new_empty(self._capacity, new.shape[1]) for p, new in rows.items()}
        widths = {str(p): tuple(new.shape) for p, new in rows.items()}
        fits = rows.keys() == self._held.keys() and len({len(new) for new in rows.values()}) == 1
        if not fits or any(new.shape[1] != self._held[p].shape[1] for p, new in rows.items()):
            held = {str(p): int(h.shape[1]) for p, h in self._held.items()}
            raise WidthMismatch(
                f"rows of shapes {widths} do not fit a buffer of widths {held}. Every place gives as many rows, of the "
                "width it began with."
            )
        return rows


def _count(rows: Rows) -> int:
    return len(next(iter(rows.values()))) if rows else 0
