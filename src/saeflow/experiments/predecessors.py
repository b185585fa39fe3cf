"""Which features a matching method names as the predecessors of every residual feature. No torch.

A method of the experiments is a table for each pair (R_L, P), P among R_{L-1}, M_L and A_L: the rows of P it
names for every feature of R_L, and its score. Origins ask which of them are active (section 5.1), deactivation
removes those that are (section 5.2). What differs between methods is in these tables and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors.numpy import save

from saeflow.errors import InvalidArgument, UnknownSite
from saeflow.experiments.sampling import generator
from saeflow.ids import Part, Site
from saeflow.matching.table import MatchTable

Pair = tuple[Site, Site]
Tables = Mapping[Pair, MatchTable]
PARTS = (Part.RES, Part.MLP, Part.ATT)


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """What a method names at one predecessor site for every feature of a residual site.

    Attributes:
        index: rows of the predecessor's dictionary, best first; -1 where the method names none.
        score: s(P): the score of the best match; NaN where there is none.
    """

    index: Int[np.ndarray, "n_source k"]
    score: Float[np.ndarray, " n_source"]

    def active(
        self,
        features: Int[np.ndarray, " n"],
        rows: Int[np.ndarray, " n"],
        on: Bool[np.ndarray, "batch n_target"],
    ) -> Bool[np.ndarray, " n"]:
        """Whether any named predecessor of `features[i]` is on at token `rows[i]` of `on` (appendix A.2)."""
        named = self.index[features]
        return np.any((named >= 0) & on[rows[:, None], named], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Predecessors:
    """A matching method as the experiments use it.

    Attributes:
        method: its name in every table, such as "cosine top-5".
        named: for each pair of sites it covers.
        made_by: what its tables are, with a checksum of what they name.
    """

    method: str
    named: Mapping[Pair, Named]
    made_by: str

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the residual sites it covers."""
        return tuple(sorted({source.layer for source, _ in self.named}))

    def at(self, site: Site, part: Part) -> Named | None:
        """What is named at the predecessor of `site` at `part`; None where the method has no table."""
        for predecessor in site.predecessors:
            if predecessor.part is part:
                return self.named.get((site, predecessor))
        return None


def top_k(method: str, tables: Tables, k: int = 1) -> Predecessors:
    """The k best matches of each feature; a match that scores 0 or less is none (section 3.2).

    Raises:
        UnknownSite: when no table leads from a residual site to a predecessor.
        InvalidArgument: when a table keeps fewer than k matches.
    """

    def best(pair: Pair, index: Int[np.ndarray, "n_source k"]) -> Int[np.ndarray, "n_source n"]:
        if index.shape[1] < k:
            raise InvalidArgument(
                f"{method} takes {k} matches, and the table from {pair[0]} to {pair[1]} keeps {index.shape[1]}. Build "
                f"the atlas with --k {k}."
            )
        return index[:, :k]

    return _choose(method, tables, best)


def random_of_top_k(method: str, tables: Tables, k: int = 5, seed: int = 0) -> Predecessors:
    """One of the k best matches of each feature, drawn once a feature: the random strategy of appendix A.2.

    Raises:
        UnknownSite: when no table leads from a residual site to a predecessor.
    """

    def one(pair: Pair, index: Int[np.ndarray, "n_source k"]) -> Int[np.ndarray, "n_source n"]:
        among = min(k, index.shape[1])
        column = generator(seed, "random of top", str(pair[0]), str(pair[1])).integers(0, among, len(index))
        return index[np.arange(len(index)), column][:, None]

    return _choose(method, tables, one)


def to_bytes(methods: Iterable[Predecessors]) -> bytes:
    """Best match and score of every feature under every method, as a safetensors file.

    Keys are "cosine 4/res-3/res index" and "... score": a results folder keeps them, so that its tables need
    no atlas.
    """
    arrays: dict[str, np.ndarray] = {}
    for method in methods:
        for (source, target), named in method.named.items():
            arrays[f"{method.method} {source}-{target} index"] = np.ascontiguousarray(named.index[:, 0])
            arrays[f"{method.method} {source}-{target} score"] = named.score.astype(np.float32)
    return save(arrays)


def _choose(
    method: str,
    tables: Tables,
    choose: Callable[[Pair, Int[np.ndarray, "n_source k"]], Int[np.ndarray, "n_source n"]],
) -> Predecessors:
    pairs = sorted(pair for pair in tables if pair[1] in pair[0].predecessors)
    if not pairs:
        raise UnknownSite(
            f"the tables of {method} lead from no residual site to a predecessor. Build an atlas of them."
        )
    named: dict[Pair, Named] = {}
    digest = hashlib.sha256()
    for pair in pairs:
        table = tables[pair]
        with np.errstate(invalid="ignore"):
            matched = (table.index >= 0) & (table.score > 0)
        index = choose(pair, np.where(matched, table.index, -1).astype(np.int64))
        score = np.where(matched[:, 0], table.score[:, 0], np.nan).astype(np.float64)
        named[pair] = Named(index, score)
        digest.update(f"{pair[0]} {pair[1]}".encode() + index.tobytes() + score.tobytes())
    kinds = sorted({tables[pair].method for pair in pairs})
    return Predecessors(
        method, named, f"{', '.join(kinds)}, {len(pairs)} tables, sha256 {digest.hexdigest()[:16]}"
    )
