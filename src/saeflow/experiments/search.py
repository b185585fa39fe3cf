"""What matching could have found: the best active predecessor, and the best small set (section 5.2, table 1).

Exhaustive search removes each active feature of the predecessor sites alone and keeps the best for each target:
the most a single predecessor can do. Greedy search goes on from there, adding the active feature that lowers
the target most until it is silent, nothing helps, or the set is full; the paper stops at one feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saeflow.experiments.counterfactuals import Counterfactuals, Cut
from saeflow.experiments.predecessors import PARTS
from saeflow.experiments.token_layer import TokenLayer
from saeflow.ids import FeatureId, Part

LARGEST_SET = 5
"""Features a greedy set may hold."""

CANDIDATES = 32
"""Active features greedy search looks at: those that lower the target most when removed alone."""


def ask_singles(asked: Counterfactuals, here: TokenLayer) -> None:
    """Ask for every active predecessor removed alone, all targets watched."""
    for features in here.active.values():
        for feature in features:
            asked.ask(Cut(here.layer, here.position, (feature,)), here.targets)


def best_single(asked: Counterfactuals, here: TokenLayer, target: FeatureId, part: Part) -> Cut | None:
    """The active feature of one site whose removal leaves least of the target; None where none is active."""
    cuts = [Cut(here.layer, here.position, (feature,)) for feature in here.active.get(part, ())]
    return min(cuts, key=lambda cut: asked.after(cut, target), default=None)


@dataclass
class _Search:
    """A greedy search for one target, between rounds."""

    here: TokenLayer
    target: FeatureId
    candidates: list[FeatureId]
    best: Cut
    z: float
    open: bool = True

    def cuts(self) -> list[Cut]:
        """The set so far with each further candidate."""
        chosen = self.best.features
        return [
            Cut.of(self.best.layer, self.best.position, (*chosen, feature))
            for feature in self.candidates
            if feature not in chosen
        ]

    def step(self, asked: Counterfactuals) -> None:
        """Take the best of the answered cuts, or end the search."""
        best = min(self.cuts(), key=lambda cut: asked.after(cut, self.target), default=None)
        z = self.z if best is None else asked.after(best, self.target)
        if best is None or z >= self.z:
            self.open = False
            return
        self.best, self.z = best, z
        self.open = z > 0 and len(best.features) < LARGEST_SET


def greedy(asked: Counterfactuals, places: Sequence[TokenLayer]) -> dict[tuple[int, int, FeatureId], Cut]:
    """The greedy set for every target of a text, as (layer, position, target) -> cut, in rounds over all of them.

    The single removals must be answered already. A set is empty where no single removal lowers the target.
    """
    searches = [_begin(asked, here, target) for here in places for target in here.targets]
    for search in searches:
        search.step(asked)  # the first round is the exhaustive search
    while running := [search for search in searches if search.open]:
        for search in running:
            for cut in search.cuts():
                asked.ask(cut, (search.target,))
        asked.answer()
        for search in running:
            search.step(asked)
    return {(search.here.layer, search.here.position, search.target): search.best for search in searches}


def _begin(asked: Counterfactuals, here: TokenLayer, target: FeatureId) -> _Search:
    every = [feature for part in PARTS for feature in here.active.get(part, ())]
    every.sort(key=lambda feature: asked.after(Cut(here.layer, here.position, (feature,)), target))
    empty = Cut(here.layer, here.position, ())
    return _Search(here, target, every[:CANDIDATES], empty, here.targets[target])
