"""Search features as the user types, by id, site or words, and pick those worth a first look. No torch.

    4/res/123      the feature                          4/res          the first features of the site
    123            row 123 of every site, res first     4/res force    "force" at that site
    force, forc    words, or the beginning of one

If the word index is missing or out of date, it is built in the background; meanwhile a search finds ids only and
reports the progress. Features worth a look are picked in the background too. A release of 26 layers has 147,000
residual features in its last third, each judged by its graph, so large sites are sampled at evenly spaced rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from saeflow.demo.pick import Pick, worth_a_look
from saeflow.errors import InvalidId, SaeflowError
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.search import Hit, build_index, search
from saeflow.labels.words import FeatureWords, Words
from saeflow.matching.atlas import Atlas
from saeflow.web.responses import Indexing, PickInfo

N_PICKS: Final = 8
MOST_JUDGED: Final = 1_000
"""Features judged for picks, over all sites."""


class Finder:
    """Searches the words of a release.

    Attributes:
        indexing: the progress of the index; None once it is built, or without words.
        problem: why words cannot be searched; empty when they can.
    """

    def __init__(self, folder: Path | None, words: Words, sizes: Mapping[Site, int]) -> None:
        """`folder` holds the words to search, None without words; `sizes` determines which ids exist."""
        self._folder, self._words, self._sizes = folder, words, sizes
        self.indexing: Indexing | None = None
        self.problem = ""

    def find(self, query: str, limit: int, site: Site | None = None) -> list[Hit]:
        """At most `limit` features: those that the query names as ids first, then the best matches of its words."""
        named, rest, at = self._named(query, limit)
        at = site or at
        found: list[Hit] = []
        for feature in named:
            if at is None or feature.site == at:
                known = self._words.get(feature) or FeatureWords("")
                found.append(Hit(feature, known.label, known.tokens, known.frequency))
        if rest and self._folder is not None and self.indexing is None and not self.problem:
            sites = None if at is None else [at]
            hits = search(self._folder, rest, limit, sites=sites)
            known = set(named)
            found += [hit for hit in hits if hit.feature not in known and self._is_there(hit.feature)]
        return found[:limit]

    def _named(self, query: str, limit: int) -> tuple[list[FeatureId], str, Site | None]:
        """The features that a query names as ids, the rest of the query to search in words, and the site it names."""
        first, _, rest = query.strip().partition(" ")
        if first.isdecimal() and first.isascii():
            # this row at every site that has it, the residual stream first
            row = int(first) if len(first) < 10 else -1
            sites = sorted(self._sizes, key=lambda site: (site.part is not Part.RES, site))
            rows = [FeatureId(site, row) for site in sites if 0 <= row < self._sizes[site]]
            return rows[:limit], query, None
        try:
            feature = FeatureId.parse(first)
            return ([feature] if self._is_there(feature) else []), rest, None
        except InvalidId:
            pass
        try:
            site = Site.parse(first.rstrip("/"))
        except InvalidId:
            return [], query, None
        size = self._sizes.get(site, 0)
        return ([] if rest else [FeatureId(site, row) for row in range(min(size, limit))]), rest, site

    def _is_there(self, feature: FeatureId) -> bool:
        return feature.index < self._sizes.get(feature.site, 0)

    def build(self) -> None:
        """Build the index if it is missing or out of date; on failure, store the reason in `problem`."""

        def tell(done: int, total: int, _: str) -> None:
            self.indexing = Indexing(done=done, total=total)

        try:
            if self._folder is not None:
                build_index(self._folder, progress=tell)
        except (SaeflowError, OSError) as error:
            self.problem = str(error)
        self.indexing = None


@dataclass(frozen=True)
class _SomeWords:
    """Words restricted to at most `each` evenly spaced rows per site."""

    words: Words
    sizes: Mapping[Site, int]
    each: int

    def get(self, feature: FeatureId) -> FeatureWords | None:
        """The words of a feature; None when it has none."""
        return self.words.get(feature)

    def site(self, site: Site) -> list[FeatureWords | None]:
        """The words of every row at a site; None for rows that are not sampled."""
        size = self.sizes.get(site, 0)
        step = max(1, -(-size // self.each))
        return [self.words.get(FeatureId(site, row)) if row % step == 0 else None for row in range(size)]


class Picks:
    """Finds features worth a first look.

    Attributes:
        found: the picks; None until `look` has found them.
    """

    def __init__(self, atlas: Atlas, words: Words, sizes: Mapping[Site, int], most: int = MOST_JUDGED) -> None:
        """Prepare a look, which judges at most about `most` features."""
        self._atlas, self._words, self._sizes, self._most = atlas, words, sizes, most
        self.found: list[PickInfo] | None = None

    def look(self) -> None:
        """Find the picks and store them in `found`."""
        layers = {site.layer for site in self._sizes if site.part is Part.RES}
        each = max(1, self._most // max(1, len(layers) // 3))
        try:
            found = worth_a_look(self._atlas, _SomeWords(self._words, self._sizes, each), N_PICKS)
        except (SaeflowError, OSError):
            found = []  # a damaged table is reported when a graph needs it
        self.found = [PickInfo(feature=str(one.graph.seed), label=one.label, why=_why(one)) for one in found]


def _why(pick: Pick) -> str:
    """What makes the pick worth a look, in a few words."""
    graph = pick.graph
    if graph.span is None:
        return ""
    first, last = graph.span
    facts = [f"flows from layer {first} to {last}" if last > first else f"lives in layer {first}"]
    if n := len(graph.circuits):
        facts.append(f"{n} linear circuit{'s' if n > 1 else ''}")
    cases = [node.evolution.case for node in graph.nodes if node.evolution is not None]
    facts.append(f"cases {', '.join(dict.fromkeys(cases))}")
    return "; ".join(facts)
