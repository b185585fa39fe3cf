"""The state that every route sees: an atlas with its words, themes, results and model. No torch."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from saeflow.errors import InvalidArgument, SaeflowError, UnknownFeature, UnknownSite
from saeflow.flow.scores import HIGH, Thresholds
from saeflow.ids import FeatureId, Site
from saeflow.labels.neuronpedia import Sources
from saeflow.labels.words import Words
from saeflow.matching.atlas import Atlas
from saeflow.matching.rows import TableRows
from saeflow.steering.theme import Theme
from saeflow.web.model_thread import ModelThread
from saeflow.web.requests import GrowthQuery, ThresholdsBody
from saeflow.web.results import Origins, ResultsFolder
from saeflow.web.search import Finder, Picks

HEAD_START = 2.0
"""Seconds that background work waits at most for the first graph or search, so that it does not slow them."""

MOST_CUTS = 64
"""Sets of calibrated thresholds kept in memory."""


@dataclass(eq=False)
class Explorer:
    """An atlas, and what is known about its features.

    Attributes:
        atlas: the matches from which graphs are grown.
        release: the name of its dictionaries, as used in plans.
        words: labels and contexts of features.
        finder: the search over words and ids.
        themes: the themes that ship with saeflow for this release.
        sources: the names of the dictionaries on Neuronpedia; None where it has no pages for them.
        results: the results folders given at the start.
        origins: each feature's shares of the origin groups, from the first results folder of `saeflow origins`.
        picks: features worth a first look.
        model: the thread that runs the model; None without a model.
    """

    atlas: Atlas
    release: str
    words: Words
    finder: Finder
    themes: Sequence[Theme]
    sources: Sources | None
    results: Sequence[ResultsFolder]
    origins: Origins | None
    picks: Picks
    model: ModelThread | None
    first_request: threading.Event = field(default_factory=threading.Event)
    """Set once the first graph is drawn or the first search is made."""
    _calibrated: dict[float, Thresholds] = field(default_factory=dict[float, Thresholds])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def sizes(self) -> Mapping[Site, int]:
        """The number of features at each site of the atlas, in order of computation."""
        return sizes_of(self.atlas)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers of the atlas."""
        return tuple(sorted({site.layer for site in self.sizes}))

    def feature(self, text: str) -> FeatureId:
        """The feature of the atlas that `text` names.

        Raises:
            InvalidId: when `text` is not a feature id.
            UnknownSite: when the atlas has no dictionary at its site.
            UnknownFeature: when its index lies outside the dictionary.
        """
        found = FeatureId.parse(text)
        size = self.site(found.site)
        if found.index >= size:
            raise UnknownFeature(
                f"{found} does not exist: the dictionary at {found.site} has {size} features, 0 to {size - 1}. Search "
                "for one that does."
            )
        return found

    def site(self, site: Site) -> int:
        """The number of features at a site.

        Raises:
            UnknownSite: when the atlas has no dictionary there.
        """
        size = self.sizes.get(site)
        if size is None:
            parts = ", ".join(sorted({known.part.value for known in self.sizes}))
            raise UnknownSite(
                f"{self.atlas.release} has no dictionary at {site}. Layers {self.layers[0]} to {self.layers[-1]} of "
                f"{parts} are there."
            )
        return size

    def label(self, feature: FeatureId) -> str:
        """The label of a feature; empty when it has none."""
        known = self.words.get(feature)
        return known.label if known else ""

    def thresholds(self, chosen: GrowthQuery | ThresholdsBody) -> Thresholds:
        """The thresholds of a request: the given cosines, or thresholds calibrated for a false-discovery rate.

        Raises:
            InvalidArgument: when both are given, or the atlas has no nulls.
        """
        plain = chosen.model_fields_set & {"t_res", "t_mlp", "t_att", "high"}
        if chosen.fdr is None:
            high = chosen.high if isinstance(chosen, GrowthQuery) else HIGH
            return Thresholds(res=chosen.t_res, mlp=chosen.t_mlp, att=chosen.t_att, high=high)
        if plain:
            raise InvalidArgument(
                f"calibrated thresholds replace {', '.join(sorted(plain))}. Give either those, or fdr."
            )
        return self.calibrated(chosen.fdr)

    def calibrated(self, fdr: float) -> Thresholds:
        """Thresholds calibrated for a false-discovery rate, cached by rate.

        Raises:
            InvalidArgument: when the atlas has no nulls.
        """
        with self._lock:
            if fdr not in self._calibrated:
                if len(self._calibrated) >= MOST_CUTS:
                    self._calibrated.clear()
                self._calibrated[fdr] = Thresholds.calibrated(self.atlas, fdr)
            return self._calibrated[fdr]

    def theme(self, name: str) -> Theme:
        """The theme of that name among those that ship with saeflow; it never reads a file.

        Raises:
            InvalidArgument: when no theme has that name.
        """
        for theme in self.themes:
            if theme.name == name:
                return theme
        known = ", ".join(theme.name for theme in self.themes) or "none"
        raise InvalidArgument(f"there is no theme {name!r} of {self.release}. Themes: {known}.")

    def begin(self) -> None:
        """Start a background thread that prepares, in turn, the word index, the picks, origins and results pages."""

        def work() -> None:
            self.first_request.wait(HEAD_START)
            self.finder.build()
            self.picks.look()
            if self.origins is not None:
                self.origins.read()
            for folder in self.results:
                with suppress(SaeflowError):  # a run without tables: its page reports that
                    folder.page()

        threading.Thread(target=work, name="saeflow-begin", daemon=True).start()


def sizes_of(atlas: Atlas) -> dict[Site, int]:
    """The number of features at each site, from the row count of a table that starts there."""
    found: dict[Site, int] = {}
    for (source, target), (name, _) in sorted(atlas.files.items()):
        if source not in found:
            found[source] = TableRows(Path(atlas.folder) / name, source, target).n_source
    return dict(sorted(found.items()))
