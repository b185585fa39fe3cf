"""How often two methods name the same predecessor. Only reads tables, without torch.

For every residual feature, each method names a best match at each predecessor site (section 3.3). The share of
features for which two methods name the same one shows how much depends on the choice of the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from saeflow.errors import InvalidArgument
from saeflow.ids import Part
from saeflow.matching.atlas import Pair
from saeflow.matching.table import MatchTable


@dataclass(frozen=True, slots=True)
class AgreementRow:
    """Agreement of two methods on the predecessors of one part, for the residual features of one layer.

    Attributes:
        method_a: The method whose best match is looked up.
        method_b: The method among whose matches it is looked up.
        part: The part of the predecessors; for `res` they are in the layer before.
        layer: The layer of the residual features.
        same: Share of features whose best match is the same under both, in [0, 1].
        in_top_k: Share whose best match under `method_a` is among all that `method_b` keeps, in [0, 1].
        n: Number of features to which both methods give a match. If 0, both shares are NaN.
    """

    method_a: str
    method_b: str
    part: Part
    layer: int
    same: float
    in_top_k: float
    n: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of every two methods, in both directions, at every layer and part."""

    rows: tuple[AgreementRow, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods compared, in the order they were given."""
        return tuple(dict.fromkeys(row.method_a for row in self.rows))

    def share(self, method_a: str, method_b: str, part: Part | None = None) -> tuple[float, float, int]:
        """(same, in_top_k, n) of two methods over all layers, for one part or all; all features have equal weight.

        Raises:
            InvalidArgument: when the two were not compared there.
        """
        rows = [
            row
            for row in self.rows
            if (row.method_a, row.method_b) == (method_a, method_b) and part in (None, row.part) and row.n
        ]
        n = sum(row.n for row in rows)
        if not n:
            where = "anywhere" if part is None else f"at {part.value}"
            raise InvalidArgument(
                f"{method_a!r} and {method_b!r} were not compared {where}. Compared were: {', '.join(self.methods)}."
            )
        same = sum(row.same * row.n for row in rows) / n
        return same, sum(row.in_top_k * row.n for row in rows) / n, n


def agreement(tables: Mapping[str, Mapping[Pair, MatchTable]]) -> Agreement:
    """Compare methods by the tables they made, each an Atlas or a dict of tables by (source, target).

    The comparison covers pairs of a residual site and one of its predecessors that both methods have. It leaves out
    features without a match under either method, such as those that a one-to-one method leaves without a partner.

    Raises:
        InvalidArgument: when no two methods share such a pair, or their tables are from different dictionaries.
    """
    rows: list[AgreementRow] = []
    for (name_a, of_a), (name_b, of_b) in permutations(tables.items(), 2):
        one, other = (getattr(made, "weights", {}) for made in (of_a, of_b))
        if differ := [str(site) for site in one if other.get(site, one[site]) != one[site]]:
            raise InvalidArgument(
                f"{name_a!r} and {name_b!r} were matched from other weights at {', '.join(differ)}. Compare methods on "
                "the same dictionaries."
            )
        shared = [pair for pair in of_a if pair in of_b and pair[1] in pair[0].predecessors]
        rows += [_compare(name_a, name_b, of_a[pair], of_b[pair]) for pair in sorted(shared)]
    if not rows:
        raise InvalidArgument(
            f"no two of the methods given ({', '.join(tables) or 'none'}) have a table from a residual site to a "
            "predecessor in common. Match the same sites with two methods or more."
        )
    return Agreement(tuple(rows))


def _compare(name_a: str, name_b: str, a: MatchTable, b: MatchTable) -> AgreementRow:
    if (a.n_source, a.n_target) != (b.n_source, b.n_target):
        raise InvalidArgument(
            f"{a.source} to {a.target}: {name_a!r} matched {a.n_source} to {a.n_target} features and {name_b!r} "
            f"{b.n_source} to {b.n_target}. Compare methods on the same dictionaries."
        )
    both = ~np.isneginf(a.score[:, 0]) & ~np.isneginf(b.score[:, 0])
    n = int(both.sum())
    first = a.index[both, :1]
    there = (first == b.index[both]) & ~np.isneginf(b.score[both])
    same = float(there[:, 0].mean()) if n else float("nan")
    in_top_k = float(there.any(axis=1).mean()) if n else float("nan")
    return AgreementRow(name_a, name_b, a.target.part, a.source.layer, same, in_top_k, n)
