"""What is explored: an atlas with its words and results, as every route sees it. No torch."""

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
"""Seconds that the work in the background waits for the first graph or search, which come first."""

MOST_CUTS = 64
"""Sets of calibrated thresholds that are kept."""


@dataclass(eq=False)
class Explorer:
    """An atlas, and what is known about its features.

    Attributes:
        atlas: where graphs grow.
        release: the name of its dictionaries, as plans name them.
        words: labels and contexts of features.
        finder: searches them.
        themes: those that come with saeflow for the release.
        sources: what Neuronpedia calls the features; None where it has no page of them.
        results: the results folders given at the start.
        origins: shares of origin groups of features, from those of the results that have them.
        picks: features worth a look.
        model: the thread in which the model works; None when there is no model.
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
    """Set when the first graph is drawn, or something is searched for."""
    _calibrated: dict[float, Thresholds] = field(default_factory=dict[float, Thresholds])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def sizes(self) -> Mapping[Site, int]:
        """How many features each site of the atlas has, in order of computation."""
        return sizes_of(self.atlas)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers of the atlas."""
        return tuple(sorted({site.layer for site in self.sizes}))

    def feature(self, text: str) -> FeatureId:
        """The feature of the atlas that `text` names.

        Raises:
            InvalidId: when it names none.
            UnknownSite: when the atlas has nothing at its site.
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
        """How many features a site has.

        Raises:
            UnknownSite: when the atlas has nothing there.
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
        """The label of a feature, empty where none is known."""
        known = self.words.get(feature)
        return known.label if known else ""

    def thresholds(self, chosen: GrowthQuery | ThresholdsBody) -> Thresholds:
        """The thresholds of a request: plain ones, or those calibrated for a false-discovery rate.

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
        """Thresholds calibrated for a false-discovery rate; they are kept.

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
        """The theme of a name, from those that come with saeflow: never a file.

        Raises:
            InvalidArgument: when there is none of that name.
        """
        for theme in self.themes:
            if theme.name == name:
                return theme
        known = ", ".join(theme.name for theme in self.themes) or "none"
        raise InvalidArgument(f"there is no theme {name!r} of {self.atlas.release}. Themes: {known}.")

    def begin(self) -> None:
        """Begin what works in the background: the index of words, picks, origins, pages of results; one by one."""

        def work() -> None:
            self.first_request.wait(HEAD_START)
            self.finder.build()
            self.picks.look()
            if self.origins is not None:
                self.origins.read()
            for folder in self.results:
                with suppress(SaeflowError):  # a run without tables: its page says so
                    folder.page()

        threading.Thread(target=work, name="saeflow-begin", daemon=True).start()


def sizes_of(atlas: Atlas) -> dict[Site, int]:
    """How many features each site has: the rows of a table that starts there."""
    found: dict[Site, int] = {}
    for (source, target), (name, _) in sorted(atlas.files.items()):
        if source not in found:
            found[source] = TableRows(Path(atlas.folder) / name, source, target).n_source
    return dict(sorted(found.items()))
