"""Match single features straight from the weights, for one graph without matching the whole release first.

A graph asks for the matches of one feature at a time. From the weights, each answer is one matrix-vector
product: the rows of the target dictionary times the direction of the feature. A graph through 26 layers of a
16k-wide release reads each `W_dec` once and takes about one product per edge, whereas an atlas multiplies every
row with every row.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import UnknownFeature, UnknownSite, WidthMismatch
from saeflow.ids import FeatureId, Site
from saeflow.matching.methods import RowCache
from saeflow.matching.rows import check_k
from saeflow.plain_types import Match
from saeflow.sources.dictionary import AttentionWriter, Dictionary

KEPT = 4
"""Sites whose directions stay in memory: a feature's own site, and its three predecessor sites."""


class DirectMatches:
    """Answers what `trace` asks of an atlas, from dictionaries by cosine (section 3.2).

        trace(seed, DirectMatches(load_dictionaries("gemma-scope-2b")))

    Any pair of sites can be matched. The directions of the last few sites are kept in memory, and every answer.
    """

    def __init__(
        self, dictionaries: Mapping[Site, Dictionary], *, release: str = "", projector: AttentionWriter | None = None
    ) -> None:
        """`projector` is the model, needed where a dictionary lives in z."""
        self._dictionaries = dictionaries
        self._projector = projector
        self._rows: RowCache[Site, Float[Tensor, "n_features d_model"]] = RowCache(KEPT)
        self._directions: dict[FeatureId, Float[Tensor, " d_model"]] = {}
        self._answers: dict[tuple[FeatureId, Site], tuple[int, tuple[Match, ...]]] = {}
        """How many matches were asked for, and those there are."""
        self.release = release or str(getattr(dictionaries, "name", ""))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site with a dictionary, in order of computation."""
        return tuple(sorted(self._dictionaries))

    def has(self, source: Site, target: Site) -> bool:
        """Whether there are dictionaries at both sites."""
        return source in self._dictionaries and target in self._dictionaries

    def best(self, feature: FeatureId, target: Site, k: int | None = None) -> tuple[Match, ...]:
        """The best `k` matches of `feature` at `target`, best first; 1 when `k` is None.

        Empty if the feature has no direction: its row is zeros or not finite.

        Raises:
            UnknownSite: when there is no dictionary at one of the sites.
            UnknownFeature: when the index lies outside its dictionary.
            InvalidArgument: when `k` is not between 1 and the number of features at `target`.
            WidthMismatch: when the two write into spaces of different width.
        """
        wanted = 1 if k is None else k
        asked, known = self._answers.get((feature, target), (0, ()))
        if not 1 <= wanted <= asked:
            known = self._match(feature, target, wanted)
            self._answers[feature, target] = wanted, known
        return known[:wanted]

    def _match(self, feature: FeatureId, target: Site, k: int) -> tuple[Match, ...]:
        direction = self._direction(feature)
        rows = self._of(target)
        if rows.shape[1] != len(direction):
            raise WidthMismatch(
                f"{feature} is {len(direction)} wide and the rows at {target} are {rows.shape[1]} wide. Both must "
                "write into the same stream; give the model where attention features live in z."
            )
        check_k(k, len(rows), f"rows at {target}")
        if not direction.any():
            return ()
        scores = (rows @ direction).masked_fill(~rows.any(dim=1), -torch.inf)
        top = scores.topk(k)
        return tuple(
            Match(FeatureId(target, index), score)
            for index, score in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            if score != -torch.inf
        )

    def _direction(self, feature: FeatureId) -> Float[Tensor, " d_model"]:
        if feature not in self._directions:
            rows = self._of(feature.site)
            if feature.index >= len(rows):
                raise UnknownFeature(
                    f"{feature} does not exist: the dictionary at {feature.site} has {len(rows)} features, 0 to "
                    f"{len(rows) - 1}."
                )
            self._directions[feature] = rows[feature.index].clone()
        return self._directions[feature]

    def _of(self, site: Site) -> Float[Tensor, "n_features d_model"]:
        """The directions of a site, read if they are not in memory."""
        if site not in self._dictionaries:
            raise UnknownSite(
                f"{self.release or 'the release'} has no dictionary at {site}. Its {len(self._dictionaries)} sites "
                f"are {', '.join(map(str, self.sites))}."
            )

        def read() -> Float[Tensor, "n_features d_model"]:
            rows = self._dictionaries[site].directions(self._projector).float()
            self._dictionaries[site].unload()
            return rows

        return self._rows.get(site, read)
