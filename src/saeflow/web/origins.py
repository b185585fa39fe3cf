"""In which groups of appendix A.1 each feature was seen: from the rows of `saeflow origins`. No torch.

Rows are read in a thread after the start; a card that is asked for before waits. Shares of one feature are over all
its observations; their intervals are of texts (saeflow.experiments.statistics), and there is none where all
observations are of one text.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from saeflow.errors import SaeflowError
from saeflow.ids import FeatureId, Part
from saeflow.web.answers import Groups, Interval, OriginShares

if TYPE_CHECKING:
    from saeflow.experiments.observations import Observations

EXPERIMENT: Final = "origins"


class Origins:
    """The groups of features in one results folder."""

    def __init__(self, folder: Path, result: str) -> None:
        """`result` is the id of the results on the page."""
        self._folder, self._result = folder, result
        self._seen: Observations | None = None
        self._method = ""
        self._counts: Mapping[tuple[int, int], tuple[int, ...]] = {}
        self._problem = ""
        self._ready = threading.Event()

    @property
    def problem(self) -> str:
        """Why the rows cannot be used; empty when they can, or are not read yet."""
        return self._problem

    def shares(self, feature: FeatureId) -> OriginShares | None:
        """The shares of a feature, None when it was not seen or the rows are not read yet."""
        counts = self._counts.get((feature.layer, feature.index)) if feature.part is Part.RES else None
        if counts is None:
            return None
        n = sum(counts)
        labels = _labels()
        return OriginShares(n=n, shares={labels[v]: c / n for v, c in enumerate(counts) if c})

    def groups(self, feature: FeatureId, timeout: float = 60.0) -> Groups | None:
        """The shares of a feature with their intervals, None when it was not seen; waits for the rows."""
        self._ready.wait(timeout)
        seen = self._seen
        if seen is None or (feature.layer, feature.index) not in self._counts or feature.part is not Part.RES:
            return None
        import numpy as np

        from saeflow.experiments.statistics import RATE, by_text, mean_estimates

        here = (seen.layer == feature.layer) & (seen.feature == feature.index)
        shape = (len(seen.texts.number), 8)
        counts = by_text(seen.cluster[here], seen.groups[self._method][here], np.ones(int(here.sum())), shape)
        totals = counts.sum(1, keepdims=True).repeat(8, axis=1)
        labels = _labels()
        shares = {
            labels[value]: Interval(share=estimate.value, low=estimate.low, high=estimate.high)
            for value, estimate in enumerate(mean_estimates(counts, totals, seen.texts.datasets, span=RATE))
            if estimate.value
        }
        return Groups(
            n=int(counts.sum()),
            texts=int(np.count_nonzero(counts.sum(1))),
            method=self._method,
            result=self._result,
            shares=shares,
        )

    def read(self) -> None:
        """Read the rows; why that failed is in `problem`."""
        try:
            self._load()
        except (SaeflowError, OSError, KeyError, ValueError) as error:
            self._problem = str(error)
        finally:
            self._ready.set()

    def _load(self) -> None:
        import numpy as np

        from saeflow.experiments.observations import Observations
        from saeflow.experiments.results import Results

        seen = Observations.of(Results.open(self._folder).rows())
        self._method = next(iter(seen.groups))
        pairs = np.stack([seen.layer, seen.feature], 1)
        features, which = np.unique(pairs, axis=0, return_inverse=True)
        cells = which.reshape(-1) * 8 + seen.groups[self._method]
        counts = np.bincount(cells, minlength=len(features) * 8).reshape(-1, 8)
        self._seen = seen
        self._counts = {
            (layer, index): tuple(row) for (layer, index), row in zip(features.tolist(), counts.tolist(), strict=True)
        }


def _labels() -> list[str]:
    """The name of each group by the value of its `Origin`."""
    from saeflow.experiments.records import Origin

    return [Origin(value).label for value in range(8)]
