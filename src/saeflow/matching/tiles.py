"""Tiles of a product a @ b.T, and the groups that their rows and columns are cut into."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

GATHERED = 1 << 22
"""Products ranked at a time: bounds the memory that ranking takes."""
SKEW = 16
"""Products between two rows of a buffer, so that a column does not fall on one set of the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """The rows or the columns of a tile, each cut into groups.

    Group j of a line holds its places j, j + n_groups, j + 2 n_groups…, so that all maxima of a tile are one
    elementwise maximum over slices.

    Attributes:
        products: The tile with one line a row; a transposed view where the lines are its columns.
        group_size: Products in a group.
    """

    products: Float[Tensor, "n m"]
    group_size: int

    @property
    def n_groups(self) -> int:
        """Groups of a line."""
        return self.products.shape[1] // self.group_size

    def maxima(self) -> Float[Tensor, "n groups"]:
        """The largest product of every group."""
        grouped = (self.group_size, self.n_groups)
        if self.products.stride(1) == 1:
            return self.products.unflatten(1, grouped).amax(1)
        return self.products.T.unflatten(0, grouped).amax(0).T

    def of_groups(
        self, line: Int[Tensor, "*which"], group: Int[Tensor, "*which2"]
    ) -> tuple[Float[Tensor, "*which3"], Int[Tensor, "*which3"]]:
        """The products of some groups, and their places in the line; one more axis than `group`."""
        steps = torch.arange(self.group_size, device=group.device) * self.n_groups
        places = group[..., None] + steps
        return self.products[line[..., None].expand_as(places), places], places


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """A tile of products, filled up with -inf to whole groups along both axes."""

    products: Float[Tensor, "height width"]
    n_rows: int
    n_columns: int
    k: int

    def rows(self) -> Lines:
        """Its rows as lines."""
        return Lines(self.products[: self.n_rows], group_size(self.products.shape[1], self.k))

    def columns(self) -> Lines:
        """Its columns as lines."""
        return Lines(self.products[:, : self.n_columns].T, group_size(self.products.shape[0], self.k))


def tiles(a: Tensor, b: Tensor, k: int, rows: int, columns: int) -> Iterator[tuple[slice, slice, Tile]]:
    """Every tile of a @ b.T with the rows and columns it stands for, one after the other in one buffer."""
    height, width = min(rows, len(a)), min(columns, len(b))
    tall, wide = _padded(height, k), _padded(width, k)
    buffer = a.new_full((tall, wide + SKEW), -torch.inf)[:, :wide]
    for top in range(0, len(a), height):
        for left in range(0, len(b), width):
            n, m = min(height, len(a) - top), min(width, len(b) - left)
            torch.mm(a[top : top + n], b[left : left + m].T, out=buffer[:n, :m])
            buffer[n:].fill_(-torch.inf)
            buffer[:, m:].fill_(-torch.inf)
            yield slice(top, top + n), slice(left, left + m), Tile(buffer, n, m, k)


def group_size(m: int, k: int) -> int:
    """Products in a group of a line of about `m`: looking at m / g maxima should cost what ranking k * g does."""
    return 2 ** max(2, min(6, round(math.log2(math.sqrt(m / k) + 1))))


def _padded(m: int, k: int) -> int:
    """The least length from `m` up that is whole groups of its own group size."""
    for length in range(m, 2 * m + 64):
        if length % group_size(length, k) == 0:
            return length
    raise AssertionError(f"no length from {m} is whole groups")
