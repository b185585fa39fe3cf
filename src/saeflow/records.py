"""Plain rows that pass between the parts of saeflow. No torch."""

from __future__ import annotations

from typing import NamedTuple

from saeflow.ids import FeatureId


class Match(NamedTuple):
    """A matched feature and its score: for cosine matching that of two decoder rows, in [-1, 1]."""

    feature: FeatureId
    score: float
