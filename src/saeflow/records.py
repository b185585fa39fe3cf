"""Plain rows that pass between the parts of saeflow. No torch."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple

from saeflow.ids import FeatureId, Part


class Match(NamedTuple):
    """A matched feature and its score: for cosine matching that of two decoder rows, in [-1, 1]."""

    feature: FeatureId
    score: float


class Origin(enum.Flag):
    """Which matched predecessors of a residual feature are active with it: the eight groups of appendix A.1."""

    NOWHERE = 0
    RES = 1
    MLP = 2
    ATT = 4

    @staticmethod
    def of(active: Iterable[Part]) -> Origin:
        """The group of a feature whose predecessors at these parts are active."""
        origin = Origin.NOWHERE
        for part in active:
            origin |= Origin[part.name]
        return origin

    @staticmethod
    def groups() -> tuple[Origin, ...]:
        """All eight, those with fewer predecessors first: the order of every table and figure."""
        return tuple(sorted(map(Origin, range(8)), key=lambda o: (o.value.bit_count(), o.value)))

    @staticmethod
    def named(label: str) -> Origin:
        """The group with this label; KeyError for none of the eight."""
        return {origin.label: origin for origin in Origin.groups()}[label]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts whose predecessor is active, in the order res, mlp, att."""
        return tuple(part for part in (Part.RES, Part.MLP, Part.ATT) if Origin[part.name] in self)

    @property
    def label(self) -> str:
        """How the group is written: "nowhere", "RES", "RES & MLP"; the paper says "From RES & MLP"."""
        return " & ".join(part.name for part in self.parts) or "nowhere"
