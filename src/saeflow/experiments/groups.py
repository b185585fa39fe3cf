"""The eight origin groups of appendix A.1, and other names that rows, tables and figures share. No numpy, no torch."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from functools import cached_property
from typing import Final

from saeflow.ids import Part

PARTS: Final = (Part.RES, Part.MLP, Part.ATT)
"""Parts of the predecessor sites, in table order."""

_BITS: Final = {Part.RES: 1, Part.MLP: 2, Part.ATT: 4}

EXHAUSTIVE: Final = "exhaustive"
GREEDY: Final = "greedy"
SEARCHES: Final = (EXHAUSTIVE, GREEDY)
"""Strategies that try out active features instead of naming matches."""


class Origin(enum.Flag):
    """Which matched predecessors of a residual feature are active together with it: the groups of appendix A.1."""

    NOWHERE = 0
    RES = 1
    MLP = 2
    ATT = 4

    @staticmethod
    def of(active: Iterable[Part]) -> Origin:
        """The group of a feature whose predecessors at these parts are active."""
        return Origin(sum({_BITS[part] for part in active}))

    @staticmethod
    def groups() -> tuple[Origin, ...]:
        """All eight groups, with fewer predecessors first: the order of every table and figure."""
        return tuple(sorted(map(Origin, range(8)), key=lambda o: (o.value.bit_count(), o.value)))

    @staticmethod
    def named(label: str) -> Origin:
        """The group with this label; any other string raises a KeyError."""
        return {origin.label: origin for origin in Origin.groups()}[label]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts whose predecessor is active, in the order res, mlp, att."""
        return tuple(part for part in PARTS if Origin[part.name] in self)

    @cached_property
    def label(self) -> str:
        """The group as text: "nowhere", "RES", "RES & MLP"; the paper writes "From RES & MLP"."""
        return " & ".join(part.name for part in self.parts) or "nowhere"


ALL: Final = "all"
"""The name in tables for all datasets, layers or groups together."""

ORDER: Final = tuple(origin.value for origin in Origin.groups())
"""The values of `Origin`, in the order of every table."""

GROUPS: Final = tuple(origin.label for origin in Origin.groups())
"""The labels of `Origin`, in the order of every table."""

LABELS: Final = tuple(Origin(value).label for value in range(8))
"""The labels of `Origin`, indexed by its values 0 to 7."""
