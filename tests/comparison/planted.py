"""Two dictionaries of which it is known what they share, and releases of them on disk."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saeflow.ids import Site
from saeflow.sources.dictionary import Dictionary

from ..matching.planted import dictionary

D = 96
SITE = Site("1/res")


class Known:
    """Words of one dictionary, by row."""

    def __init__(self, rows):
        self.rows = rows

    def get(self, feature):
        return self.rows[feature.index]

    def site(self, site):
        return self.rows


def unit(n: int, seed: int, d: int = D) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def noisy(rows: torch.Tensor, noise: float, seed: int) -> torch.Tensor:
    """Rows at a cosine of about 1 / sqrt(1 + noise^2) with those given."""
    return torch.nn.functional.normalize(rows + noise * unit(len(rows), seed, rows.shape[1]), dim=1)


@dataclass(frozen=True)
class Pair:
    """B has the features `same` of A in another order, some upside down, parts of two of A's, and its own.

    Attributes:
        partner: the row of B for each of A's shared features.
        flipped: shared features of A whose row in B points the other way.
        split: features of A that are sums of `parts`, rows of B.
    """

    a: Dictionary
    b: Dictionary
    partner: dict[int, int]
    flipped: tuple[int, ...]
    split: dict[int, tuple[int, ...]]
    own_a: tuple[int, ...]
    own_b: tuple[int, ...]


def plant(seed: int = 0) -> Pair:
    rows, more = unit(60, seed), unit(40, seed + 1)
    parts = unit(5, seed + 2)
    split = {40: (0, 1), 41: (2, 3, 4)}
    rows[40] = torch.nn.functional.normalize(parts[:2].sum(dim=0), dim=0)
    rows[41] = torch.nn.functional.normalize(parts[2:].sum(dim=0), dim=0)
    same = torch.arange(40)
    copies = noisy(rows[same], 0.2, seed + 3)
    flipped = (3, 17)
    copies[list(flipped)] *= -1
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed + 4))
    b = torch.cat([copies[order], parts, more])
    partner = {int(row): place for place, row in enumerate(order.tolist())}
    return Pair(
        dictionary(SITE, rows * torch.linspace(0.5, 3, 60)[:, None]),  # norms must not matter
        dictionary(SITE, b * torch.linspace(4, 0.2, 85)[:, None]),
        partner,
        flipped,
        {feature: tuple(40 + part for part in some) for feature, some in split.items()},
        tuple(range(42, 60)),
        tuple(range(45, 85)),
    )
