"""What is active at one token of a text at the sites around one layer: the ground of a deactivation trial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from saeflow.experiments.causal import PreparedText
from saeflow.experiments.methods import Predecessors
from saeflow.experiments.records import PARTS
from saeflow.experiments.sampling import Sample, generator
from saeflow.ids import FeatureId, Part, Site
from saeflow.sources.dictionary import Dictionary

HANDFUL = 5
"""Active features a control is chosen among."""


@dataclass(frozen=True)
class RowNorms:
    """Length of the decoder rows of each site, computed when first asked for."""

    dictionaries: Mapping[Site, Dictionary]
    known: dict[Site, np.ndarray]

    def of(self, feature: FeatureId) -> float:
        """The length of one row."""
        if feature.site not in self.known:
            rows = self.dictionaries[feature.site].W_dec.float()
            self.known[feature.site] = torch.linalg.vector_norm(rows, dim=1).cpu().numpy()
        return float(self.known[feature.site][feature.index])


@dataclass(frozen=True, slots=True, eq=False)
class TokenLayer:
    """One token and one layer: the targets there, and what is active at the predecessor sites.

    Attributes:
        layer: L.
        position: the token, a column of the text.
        targets: active features of res L that are looked at, with their activations.
        active: for each predecessor site, its active features with their activations, ascending.
        norms: lengths of decoder rows.
    """

    layer: int
    position: int
    targets: Mapping[FeatureId, float]
    active: Mapping[Part, Mapping[FeatureId, float]]
    norms: RowNorms

    @staticmethod
    def at(
        text: PreparedText, layer: int, position: int, sample: Sample, norms: RowNorms, *, n_targets: int, seed: int
    ) -> TokenLayer:
        """Read the clean pass; of more than `n_targets` active features so many are drawn (appendix A.2)."""
        site = Site(layer, Part.RES)
        targets = _active(text, site, position)
        if len(targets) > n_targets:
            rng = generator(seed, "targets", sample.dataset, sample.content, position, layer)
            kept = np.sort(rng.choice(len(targets), n_targets, replace=False)).tolist()
            features = list(targets)
            targets = {features[place]: targets[features[place]] for place in kept}
        active = {
            predecessor.part: _active(text, predecessor, position)
            for predecessor in site.predecessors
            if predecessor in norms.dictionaries
        }
        return TokenLayer(layer, position, targets, active, norms)

    def of(self, feature: FeatureId) -> float:
        """The clean activation of a predecessor, 0 when silent."""
        return self.active.get(feature.part, {}).get(feature, 0.0)

    def norm(self, feature: FeatureId) -> float:
        """|a| times the length of its decoder row: how far its removal moves the hidden state."""
        return abs(self.of(feature)) * self.norms.of(feature)

    def _unlike(self, length: float, feature: FeatureId) -> float:
        """How far a feature's norm is from a length, as a ratio of either sign."""
        return abs(math.log(self.norm(feature) / length))

    def named(self, strategy: Predecessors, target: FeatureId) -> dict[Part, list[FeatureId]]:
        """What a strategy names for a target at each predecessor site, active or not."""
        found: dict[Part, list[FeatureId]] = {}
        for predecessor in target.site.predecessors:
            table = strategy.named.get((target.site, predecessor))
            if table is not None and predecessor.part in self.active:
                rows = table.index[target.index].tolist()
                found[predecessor.part] = [FeatureId(predecessor, row) for row in rows if row >= 0]
        return found

    def available(self, named: Mapping[Part, Iterable[FeatureId]]) -> dict[Part, tuple[FeatureId, ...]]:
        """Those of the named features that are active, for the parts that have any."""
        kept = {part: tuple(f for f in named.get(part, ()) if self.of(f) > 0) for part in PARTS}
        return {part: features for part, features in kept.items() if features}

    def control(
        self, target: FeatureId, removed: tuple[FeatureId, ...], sample: Sample, seed: int
    ) -> tuple[FeatureId, ...] | None:
        """Other active features in place of those removed: as many, of the same sites, alike in norm.

        For each removed feature five active features of its site are drawn that are neither removed nor taken
        yet, and of these the one whose norm is nearest in ratio is taken. The draw depends on the token, the
        target and what is removed. None where a site has not enough other active features.
        """
        rng = generator(seed, "control", sample.dataset, sample.content, self.position, str(target), *map(str, removed))
        taken: list[FeatureId] = []
        for feature in removed:
            others = [f for f in self.active[feature.part] if f not in removed and f not in taken]
            if not others:
                return None
            places = rng.choice(len(others), min(HANDFUL, len(others)), replace=False).tolist()
            length = self.norm(feature)
            taken.append(min([others[place] for place in places], key=partial(self._unlike, length)))
        return tuple(sorted(taken))


def _active(text: PreparedText, site: Site, position: int) -> dict[FeatureId, float]:
    index, values = text.active(site, position)
    return {FeatureId(site, i): v for i, v in zip(index.tolist(), values.tolist(), strict=True)}
