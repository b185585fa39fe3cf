"""Plain types that pass between the parts of saeflow. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from saeflow.ids import FeatureId


class Match(NamedTuple):
    """A matched feature and its score: for cosine matching that of two decoder rows, in [-1, 1]."""

    feature: FeatureId
    score: float


Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is being done)."""
