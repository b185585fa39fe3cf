"""Plain rows that pass between the parts of saeflow. No torch."""

from __future__ import annotations

from typing import NamedTuple

from saeflow.ids import FeatureId


class Match(NamedTuple):
    """A matched feature and how similar it is: the cosine of two decoder rows, in [-1, 1]."""

    feature: FeatureId
    score: float
