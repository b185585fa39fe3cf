"""The matching methods of the experiments by name, and the tables behind them, made when they are missing.

Cosine tables come from an atlas. Permutation tables (Balagansky et al. 2024) are made from the weights, Pearson
tables (appendix C.4) from activations on texts that no experiment samples; both are kept in a folder and made
once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from saeflow.errors import InvalidArgument
from saeflow.experiments.predecessors import Pair, Predecessors, Tables, random_of_top_k, top_k
from saeflow.experiments.results import Progress
from saeflow.experiments.sampling import Dataset, held_out
from saeflow.ids import Part, Site
from saeflow.matching.build import build_atlas
from saeflow.matching.correlation import correlate
from saeflow.matching.same_weights import weights_of
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

SEARCHES: Final = ("exhaustive", "greedy")
PEARSON_TOKENS: Final = 100_000
"""Tokens that Pearson correlations are measured on at most, as in appendix C.4."""

PEARSON_TEXTS: Final = 1000
"""Held-out texts of each dataset at most."""


@dataclass(frozen=True)
class Matchings:
    """Where the tables of every method come from, each made or opened when first asked for.

    Attributes:
        model: the language model, which Pearson runs and which projects attention features that live in z.
        dictionaries: the dictionaries.
        atlas: cosine tables.
        layers: residual layers whose predecessors are matched.
        folder: where permutation and Pearson tables are kept.
        fitted: datasets whose held-out texts Pearson tables are made on.
        given: Pearson tables that are there already; made when None.
        release: name of the dictionaries, for the tables that are made.
        seed: of the choice among five matches, and of the order of held-out texts.
        progress: makes a callback for each kind of table that is made, named for people.
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
        """Residual sites of the layers with the predecessors that the atlas has too."""
        sites = [Site(layer, Part.RES) for layer in self.layers]
        return [(site, p) for site in sites for p in site.predecessors if (site, p) in self.atlas]

    @cached_property
    def permutation(self) -> Tables:
        """One-to-one tables from the decoder rows; a pair that is kept from before is not matched again."""
        sites = {
            site: self.dictionaries[site] for site in sorted({site for pair in self.pairs for site in pair})
        }
        return build_atlas(
            sites, out=self.folder / f"permutation-{self._key()}", method="permutation", release=self.release,
            projector=self.model, progress=self._progress("permutation:"),
        )  # fmt: skip

    @cached_property
    def pearson(self) -> Tables:
        """Tables of correlations: those given, else made on held-out texts and kept.

        Raises:
            InvalidArgument: when there is no dataset to make them on.
        """
        if self.given is not None:
            return self.given
        if not self.fitted:
            raise InvalidArgument(
                "Pearson tables need datasets to be made on. Give some, or an atlas with --pearson."
            )
        texts = held_out(self.fitted, PEARSON_TEXTS, self.seed)
        return correlate(
            self.model, self.dictionaries, texts, out=self.folder / f"pearson-{self._key(*texts)}", pairs=self.pairs,
            max_tokens=PEARSON_TOKENS, release=self.release, progress=self._progress("Pearson:"),
        )  # fmt: skip

    def _key(self, *texts: str) -> str:
        """A name for tables of these pairs, made from these weights on these texts."""
        made_from = weights_of(self.dictionaries, {site for pair in self.pairs for site in pair})
        told = [sorted(made_from.values()), [[str(site) for site in pair] for pair in self.pairs], texts]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

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
    """The methods of the origins experiment by name, of `METHODS`.

    Raises:
        InvalidArgument: for an unknown name, one given twice, or none.
    """
    _check("method", names, METHODS)
    return [_METHODS[name](matchings) for name in names]


def deactivation_strategies(
    names: Sequence[str], matchings: Matchings
) -> tuple[list[Predecessors], tuple[str, ...]]:
    """The strategies of the deactivation experiment by name, of `STRATEGIES`, and the searches among them.

    Raises:
        InvalidArgument: for an unknown name, one given twice, or no matching strategy.
    """
    _check("strategy", names, STRATEGIES)
    matching = [_STRATEGIES[name](matchings) for name in names if name not in SEARCHES]
    if not matching:
        raise InvalidArgument(
            f"{', '.join(names)} are searches, seen through a matching strategy. Add one, such as top-1."
        )
    return matching, tuple(name for name in names if name in SEARCHES)


def _check(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise InvalidArgument(
            f"{', '.join(names) or 'nothing'} cannot be taken as {kind} names. Give each once, of {', '.join(known)}."
        )
