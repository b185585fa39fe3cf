"""Features worth a first look, found in a thread after the start. No torch.

A release of 26 layers has 147,000 residual features in its last third, and each is judged by its graph: of large
sites rows are taken at even distances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from saeflow.demo.pick import Pick as Found
from saeflow.demo.pick import worth_a_look
from saeflow.errors import SaeflowError
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.words import FeatureWords, Words
from saeflow.matching.atlas import Atlas
from saeflow.web.answers import Pick

N_PICKS = 8
MOST_JUDGED = 1_000
"""Features that are judged, over all sites."""


@dataclass(frozen=True)
class _Some:
    """Words of rows at even distances; nothing of the others."""

    words: Words
    sizes: Mapping[Site, int]
    each: int

    def get(self, feature: FeatureId) -> FeatureWords | None:
        """What is known of a feature."""
        return self.words.get(feature)

    def site(self, site: Site) -> list[FeatureWords | None]:
        """What is known of some rows of a site."""
        size = self.sizes.get(site, 0)
        step = max(1, -(-size // self.each))
        return [self.words.get(FeatureId(site, row)) if row % step == 0 else None for row in range(size)]


class Picks:
    """Looks for the features once."""

    def __init__(self, atlas: Atlas, words: Words, sizes: Mapping[Site, int], most: int = MOST_JUDGED) -> None:
        """Nothing is done before `look`; at most about `most` features are judged."""
        self._atlas, self._words, self._sizes, self._most = atlas, words, sizes, most
        self._found: list[Pick] | None = None

    @property
    def found(self) -> list[Pick] | None:
        """The picks; None while they are looked for."""
        return self._found

    def look(self) -> None:
        """Look for the features."""
        layers = {site.layer for site in self._sizes if site.part is Part.RES}
        each = max(1, self._most // max(1, len(layers) // 3))
        try:
            found = worth_a_look(self._atlas, _Some(self._words, self._sizes, each), N_PICKS)
        except (SaeflowError, OSError):
            found = []  # a damaged table is told where its graph is asked for
        self._found = [Pick(feature=str(one.graph.seed), label=one.label, why=_why(one)) for one in found]


def _why(pick: Found) -> str:
    """What there is to see, in a few words."""
    graph = pick.graph
    if graph.span is None:
        return ""
    first, last = graph.span
    told = [f"flows from layer {first} to {last}" if last > first else f"lives in layer {first}"]
    if n := len(graph.circuits):
        told.append(f"{n} linear circuit{'s' if n > 1 else ''}")
    cases = [node.evolution.case for node in graph.nodes if node.evolution is not None]
    told.append(f"cases {', '.join(dict.fromkeys(cases))}")
    return "; ".join(told)
