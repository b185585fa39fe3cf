"""Finding features as one types: by id, by site, by words. No torch.

    4/res/123      the feature                          4/res          the first features of the site
    123            row 123 of every site, res first     4/res force    "force" at that site
    force, forc    words, or the beginning of one

The index of words is built in a thread of its own where it is missing or old: a search meanwhile finds ids, and says
how far the index is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from saeflow.errors import InvalidId, SaeflowError
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.search import Hit, build_index, search
from saeflow.labels.words import Words
from saeflow.web.answers import Indexing


class Finder:
    """Searches the words of a release."""

    def __init__(self, folder: Path | None, words: Words, sizes: Mapping[Site, int]) -> None:
        """`folder` holds the words that are searched, None for none; `sizes` says which ids there are."""
        self._folder, self._words, self._sizes = folder, words, sizes
        self._indexing: Indexing | None = None
        self._problem = ""

    @property
    def indexing(self) -> Indexing | None:
        """How far the index is; None when it is there, or there are no words."""
        return self._indexing

    @property
    def problem(self) -> str:
        """Why words cannot be searched, empty when they can."""
        return self._problem

    def find(self, query: str, limit: int, site: Site | None = None) -> list[Hit]:
        """The features that fit a query best, those that it names as ids first; at most `limit`."""
        named, rest, at = self._named(query, limit)
        at = site or at
        found = [self._hit(feature) for feature in named if at is None or feature.site == at]
        if rest and self._folder is not None and self._indexing is None and not self._problem:
            sites = None if at is None else [at]
            hits = search(self._folder, rest, limit, sites=sites)
            known = set(named)
            found += [hit for hit in hits if hit.feature not in known and self._is_there(hit.feature)]
        return found[:limit]

    def _named(self, query: str, limit: int) -> tuple[list[FeatureId], str, Site | None]:
        """The features that a query names, what is left of it for the words, and the site it names."""
        first, _, rest = query.strip().partition(" ")
        if first.isdecimal() and first.isascii():
            return self._rows(first)[:limit], query, None
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

    def _rows(self, text: str) -> list[FeatureId]:
        """A row of every site that has it, the residual stream first."""
        row = int(text) if len(text) < 10 else -1
        sites = sorted(self._sizes, key=lambda site: (site.part is not Part.RES, site))
        return [FeatureId(site, row) for site in sites if 0 <= row < self._sizes[site]]

    def _is_there(self, feature: FeatureId) -> bool:
        return feature.index < self._sizes.get(feature.site, 0)

    def _hit(self, feature: FeatureId) -> Hit:
        known = self._words.get(feature)
        return Hit(feature, known.label, known.tokens, known.frequency) if known else Hit(feature, "", (), None)

    def build(self) -> None:
        """Build the index where it is missing or old; why that failed is in `problem`."""

        def tell(done: int, total: int, _: str) -> None:
            self._indexing = Indexing(done=done, total=total)

        try:
            if self._folder is not None:
                build_index(self._folder, progress=tell)
        except (SaeflowError, OSError) as error:
            self._problem = str(error)
        self._indexing = None
