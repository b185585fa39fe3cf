"""Matching methods of the experiments: which features each names as the predecessors of every residual feature.

A method is one table for each pair (R_L, P), with P one of R_{L-1}, M_L and A_L: for every feature of R_L, the features
of P that it names, and the score s(P). The origins experiment checks which of them are active (section 5.1), the
deactivation experiment removes the active ones (section 5.2). Methods differ only in these tables.

Cosine tables come from an atlas. Permutation tables (Balagansky et al. 2024) are made from the weights, Pearson
tables (appendix C.4) from activations on held-out texts; both are made once and kept in a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors.numpy import save

from saeflow.errors import InvalidArgument, UnknownSite, nearest
from saeflow.experiments.groups import SEARCHES
from saeflow.experiments.sampling import Dataset, generator, held_out
from saeflow.ids import Part, Site
from saeflow.matching.build import build_atlas, weights_of
from saeflow.matching.correlation import correlate
from saeflow.matching.table import MatchTable
from saeflow.plain_types import Progress
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

PEARSON_TOKENS: Final = 100_000
"""The most tokens that Pearson correlations are measured on, as in appendix C.4."""

PEARSON_TEXTS: Final = 1000
"""The most held-out texts of each dataset that Pearson tables are made on."""

Pair = tuple[Site, Site]
Tables = Mapping[Pair, MatchTable]


@dataclass(frozen=True, slots=True, eq=False)
class NamedPredecessors:
    """The features of one predecessor site that a method names for every feature of a residual site.

    Attributes:
        index: rows of the predecessor's dictionary, best first; -1 where the method names none.
        score: s(P), the score of the best match; NaN without one.
    """

    index: Int[np.ndarray, "n_source k"]
    score: Float[np.ndarray, " n_source"]

    def active(
        self, features: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"], on: Bool[np.ndarray, "batch n_target"]
    ) -> Bool[np.ndarray, " n"]:
        """For each i, whether a named predecessor of `features[i]` is active in row `rows[i]` of `on` (appendix A.2).

        `on` has one row per token: which features of the predecessor site are active there.
        """
        named = self.index[features]
        return np.any((named >= 0) & on[rows[:, None], named], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Predecessors:
    """A matching method as the experiments use it.

    Attributes:
        method: its name in every table, such as "cosine top-5".
        named: the predecessors it names, for each pair of sites it covers.
        made_by: the kind of its tables, with a checksum of their contents.
    """

    method: str
    named: Mapping[Pair, NamedPredecessors]
    made_by: str

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the residual sites that it covers."""
        return tuple(sorted({source.layer for source, _ in self.named}))


def top_k(method: str, tables: Tables, k: int = 1) -> Predecessors:
    """The method that names the k best matches of each feature; scores of 0 or less do not count (section 3.2).

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
    """The method that names one of the k best matches, drawn once per feature: the random strategy of appendix A.2.

    Raises:
        UnknownSite: when no table leads from a residual site to a predecessor.
    """

    def one(pair: Pair, index: Int[np.ndarray, "n_source k"]) -> Int[np.ndarray, "n_source n"]:
        among = min(k, index.shape[1])
        column = generator(seed, "random of top", str(pair[0]), str(pair[1])).integers(0, among, len(index))
        return index[np.arange(len(index)), column][:, None]

    return _choose(method, tables, one)


def to_bytes(methods: Iterable[Predecessors]) -> bytes:
    """The best match and its score for every feature under every method, as a safetensors file.

    Keys are "cosine 4/res-3/res index" and "... score". A results folder keeps the file, so that its tables can be
    made without an atlas.
    """
    arrays: dict[str, np.ndarray] = {}
    for method in methods:
        for (source, target), named in method.named.items():
            arrays[f"{method.method} {source}-{target} index"] = np.ascontiguousarray(named.index[:, 0])
            arrays[f"{method.method} {source}-{target} score"] = named.score.astype(np.float32)
    return save(arrays)


def _choose(
    method: str, tables: Tables, choose: Callable[[Pair, Int[np.ndarray, "n_source k"]], Int[np.ndarray, "n_source n"]]
) -> Predecessors:
    pairs = sorted(pair for pair in tables if pair[1] in pair[0].predecessors)
    if not pairs:
        raise UnknownSite(
            f"the tables of {method} lead from no residual site to a predecessor. Build an atlas of them."
        )
    named: dict[Pair, NamedPredecessors] = {}
    digest = hashlib.sha256()
    for pair in pairs:
        table = tables[pair]
        with np.errstate(invalid="ignore"):
            matched = (table.index >= 0) & (table.score > 0)
        index = choose(pair, np.where(matched, table.index, -1).astype(np.int64))
        score = np.where(matched[:, 0], table.score[:, 0], np.nan).astype(np.float64)
        named[pair] = NamedPredecessors(index, score)
        digest.update(f"{pair[0]} {pair[1]}".encode() + index.tobytes() + score.tobytes())
    kinds = sorted({tables[pair].method for pair in pairs})
    return Predecessors(method, named, f"{', '.join(kinds)}, {len(pairs)} tables, sha256 {digest.hexdigest()[:16]}")


@dataclass(frozen=True)
class Matchings:
    """The tables of every method, each made or opened on first use.

    Attributes:
        model: the language model; Pearson runs it, and it projects attention features that live in z.
        dictionaries: the dictionaries.
        atlas: cosine tables.
        layers: residual layers whose predecessors are matched.
        folder: where permutation and Pearson tables are kept.
        fitted: datasets whose held-out texts Pearson tables are made on.
        given: existing Pearson tables; if None, they are made.
        release: name of the dictionaries, recorded in the tables that are made.
        seed: seed of the choice among five matches, and of the order of held-out texts.
        progress: makes a callback for each kind of table that is made, given the name that users see.
    """

    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]
    atlas: Tables
    layers: Sequence[int]
    folder: Path
    fitted: Sequence[Dataset] = ()
    given: Tables | None = None
    release: str = ""
    seed: int = 0
    progress: Callable[[str], Progress] | None = None

    @property
    def pairs(self) -> list[Pair]:
        """The residual sites of the layers, paired with those of their predecessors that the atlas covers."""
        sites = [Site(layer, Part.RES) for layer in self.layers]
        return [(site, p) for site in sites for p in site.predecessors if (site, p) in self.atlas]

    @cached_property
    def permutation(self) -> Tables:
        """One-to-one tables from the decoder rows; pairs kept from an earlier run are not matched again."""
        sites = {site: self.dictionaries[site] for site in sorted({site for pair in self.pairs for site in pair})}
        return build_atlas(
            sites,
            out=self.folder / f"permutation-{self._key()}",
            method="permutation",
            release=self.release,
            projector=self.model,
            progress=self._progress("permutation:"),
        )

    @cached_property
    def pearson(self) -> Tables:
        """Tables of Pearson correlations: those given, or else made on held-out texts and kept.

        Raises:
            InvalidArgument: when there is no dataset to make them on.
        """
        if self.given is not None:
            return self.given
        if not self.fitted:
            raise InvalidArgument("Pearson tables need datasets to be made on. Give some, or an atlas with --pearson.")
        texts = held_out(self.fitted, PEARSON_TEXTS, self.seed)
        return correlate(
            self.model,
            self.dictionaries,
            texts,
            out=self.folder / f"pearson-{self._key(*texts)}",
            pairs=self.pairs,
            max_tokens=PEARSON_TOKENS,
            release=self.release,
            progress=self._progress("Pearson:"),
        )

    def _key(self, *texts: str) -> str:
        """A key for the tables of these pairs, from these weights and these texts."""
        made_from = weights_of(self.dictionaries, {site for pair in self.pairs for site in pair})
        content = [sorted(made_from.values()), [[str(site) for site in pair] for pair in self.pairs], texts]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def _progress(self, what: str) -> Progress | None:
        return self.progress(what) if self.progress else None


_METHODS: Final[dict[str, Callable[[Matchings], Predecessors]]] = {
    "cosine": lambda m: top_k("cosine", m.atlas),
    "cosine-top-5": lambda m: top_k("cosine top-5", m.atlas, 5),
    "permutation": lambda m: top_k("permutation", m.permutation),
    "pearson": lambda m: top_k("pearson", m.pearson),
}
_STRATEGIES: Final[dict[str, Callable[[Matchings], Predecessors]]] = {
    "top-1": lambda m: top_k("top-1", m.atlas),
    "top-5": lambda m: top_k("top-5", m.atlas, 5),
    "random": lambda m: random_of_top_k("random of top-5", m.atlas, 5, m.seed),
    "permutation": lambda m: top_k("permutation", m.permutation),
    "pearson": lambda m: top_k("pearson top-1", m.pearson),
}
METHODS: Final = tuple(_METHODS)
STRATEGIES: Final = (*_STRATEGIES, *SEARCHES)


def origin_methods(names: Sequence[str], matchings: Matchings) -> list[Predecessors]:
    """The methods of the origins experiment with these names from `METHODS`.

    Raises:
        InvalidArgument: for an unknown name, a name given twice, or no name.
    """
    check_names("method", names, METHODS)
    return [_METHODS[name](matchings) for name in names]


def deactivation_strategies(names: Sequence[str], matchings: Matchings) -> tuple[list[Predecessors], tuple[str, ...]]:
    """The matching strategies with these names from `STRATEGIES`, and the names of the searches among them.

    Raises:
        InvalidArgument: for an unknown name, a name given twice, or no matching strategy.
    """
    check_names("strategy", names, STRATEGIES)
    matching = [_STRATEGIES[name](matchings) for name in names if name not in SEARCHES]
    if not matching:
        raise InvalidArgument(
            f"{', '.join(names)} are searches, seen through a matching strategy. Add one, such as top-1."
        )
    return matching, tuple(name for name in names if name in SEARCHES)


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Check that names are known, given once each, and at least one.

    Raises:
        InvalidArgument: when they are not.
    """
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise InvalidArgument(
            f"{', '.join(names) or 'nothing'} cannot be taken as {kind} names."
            f"{nearest(unknown[0], known) if unknown else ''} Give each once, of {', '.join(known)}."
        )
