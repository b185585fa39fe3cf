"""Which matches of a feature are taken as its predecessors (section 5.2, appendix A.2), and mutual matches.

    top-1            the best match
    top-5            the best five: active if any of them is, inactive only if all are (A.2)
    random of top-5  one of the best five, at random

"permutation" of the paper is top-1 over the table of a permutation. No torch: tables are read, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.matching.table import MatchTable
from saeflow.records import Match


@runtime_checkable
class Kept(Protocol):
    """What a strategy asks of a MatchTable or an Atlas."""

    @property
    def k(self) -> int:
        """How many matches are kept for each feature."""
        ...

    def best(self, feature: FeatureId, target: Site, k: int | None = None) -> tuple[Match, ...]:
        """The best `k` matches of `feature` at `target`, best first."""
        ...


@runtime_checkable
class Strategy(Protocol):
    """Picks among the matches of a feature."""

    @property
    def name(self) -> str:
        """The paper's name for it, such as "top-1"."""
        ...

    def choose(self, matches: Kept, feature: FeatureId, target: Site) -> tuple[Match, ...]:
        """The matches that count as the predecessors of `feature` at `target`, best first."""
        ...


@dataclass(frozen=True, slots=True)
class Top:
    """The best `k` matches, all of them.

    Raises:
        InvalidArgument: for `k` below 1.
    """

    k: int = 1

    def __post_init__(self) -> None:
        """Refuse k below 1."""
        _check_k(self.k)

    @property
    def name(self) -> str:
        """`top-1`, `top-5`."""
        return f"top-{self.k}"

    def choose(self, matches: Kept, feature: FeatureId, target: Site) -> tuple[Match, ...]:
        """The best `k`; fewer where a one-to-one method gave the feature no partner.

        Raises:
            InvalidArgument: when `matches` keeps fewer than `k`.
            UnknownSite, UnknownFeature: as `best` does.
        """
        return _best(matches, feature, target, self.k)


@dataclass(frozen=True, slots=True)
class RandomOfTop:
    """One of the best `k` matches, at random.

    Which one depends on `seed`, the feature and the target site, and on nothing else: not on what was asked
    before.

    Raises:
        InvalidArgument: for `k` below 1, or a negative seed.
    """

    k: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse k below 1 and a negative seed."""
        _check_k(self.k)
        if self.seed < 0:
            raise InvalidArgument(f"seed {self.seed} is negative. Give 0 or more.")

    @property
    def name(self) -> str:
        """`random of top-5`."""
        return f"random of top-{self.k}"

    def generator(self, feature: FeatureId, target: Site) -> np.random.Generator:
        """The generator of this feature's choice at this target."""
        place = (feature.layer, feature.part.rank, feature.index, target.layer, target.part.rank)
        return np.random.default_rng([self.seed, *place])

    def choose(self, matches: Kept, feature: FeatureId, target: Site) -> tuple[Match, ...]:
        """One match; none where a one-to-one method gave the feature no partner.

        Raises:
            InvalidArgument: when `matches` keeps fewer than `k`.
            UnknownSite, UnknownFeature: as `best` does.
        """
        found = _best(matches, feature, target, self.k)
        return (found[int(self.generator(feature, target).integers(len(found)))],) if found else ()


def ranks_back(table: MatchTable, back: MatchTable) -> Int32[np.ndarray, "n_source k"]:
    """At which place each match names the feature in return: 0 is its best; -1 where it does not.

    `back` is the table of the opposite direction, and what it does not keep counts as not named.

    Raises:
        InvalidArgument: when `back` does not lead back.
    """
    if (back.source, back.target) != (table.target, table.source) or (
        (back.n_source, back.n_target) != (table.n_target, table.n_source)
    ):
        raise InvalidArgument(
            f"a table {back.source} ({back.n_source}) to {back.target} ({back.n_target}) does not lead back from "
            f"{table.source} ({table.n_source}) to {table.target} ({table.n_target}). Give the two of one pair."
        )
    named = np.where(np.isneginf(back.score), -1, back.index)[table.index]
    own = named == np.arange(table.n_source)[:, None, None]
    own[np.isneginf(table.score)] = False
    return np.where(own.any(axis=2), own.argmax(axis=2), -1).astype(np.int32)


def mutual(table: MatchTable, back: MatchTable, k: int = 1) -> Bool[np.ndarray, "n_source k"]:
    """Which of the best `k` matches have the feature among their own best `k`.

    With k = 1, `mutual(...)[:, 0]` marks mutual best matches.

    Raises:
        InvalidArgument: when `back` does not lead back, or a table keeps fewer than `k`.
    """
    _check_k(k)
    if k > min(table.k, back.k):
        raise InvalidArgument(
            f"mutual top-{k} was asked of tables that keep {table.k} and {back.k}. Match again with k of {k}."
        )
    rank = ranks_back(table, back)[:, :k]
    return (rank >= 0) & (rank < k)


def _best(matches: Kept, feature: FeatureId, target: Site, k: int) -> tuple[Match, ...]:
    if k > matches.k:
        raise InvalidArgument(
            f"the best {k} matches of {feature} were asked of tables that keep {matches.k}. Match again with k of "
            f"{k}, or use top-{matches.k}."
        )
    return matches.best(feature, target, k)


def _check_k(k: int) -> None:
    if k < 1:
        raise InvalidArgument(f"k={k} matches were asked for. Give k of at least 1.")
